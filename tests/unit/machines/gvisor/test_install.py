"""Archives of official releases, made here."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from emberbox.errors import VmNotAvailable
from emberbox.machines.gvisor.install import unpack

RELEASE = {"runsc": b"program", "./gvisor-bin/gvisor_sentry": b"sentry", "containerd-shim-runsc-v1": b"shim"}


def archive(files: dict[str, bytes], *, link: str | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:bz2") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        if link is not None:
            entry = tarfile.TarInfo("gvisor-bin/link")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            tar.addfile(entry)
    return out.getvalue()


def test_a_release_is_unpacked(tmp_path: Path) -> None:
    unpack(archive(RELEASE), tmp_path / "new")
    assert (tmp_path / "new/runsc").read_bytes() == b"program"
    assert (tmp_path / "new/gvisor-bin/gvisor_sentry").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "gvisor-bin/../../evil", "other/evil", "gvisor-bin/a/b", ".hidden"]
)
def test_other_names_and_links_are_left_out(tmp_path: Path, name: str) -> None:
    unpack(archive(RELEASE | {name: b"x"}, link="/etc/passwd"), tmp_path / "new")
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir())
    assert found == ["new/containerd-shim-runsc-v1", "new/gvisor-bin/gvisor_sentry", "new/runsc"]


@pytest.mark.parametrize("data", [b"", b"no archive", archive({"README": b"x"}), archive(RELEASE)[:-30]])
def test_what_is_no_release_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(VmNotAvailable, match="archive of this release"):
        unpack(data, tmp_path / "new")
