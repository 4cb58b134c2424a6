"""Archives of snapshots: there and back, and what hostile or damaged ones may try."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emberbox import Settings, load_settings
from emberbox.errors import SnapshotFailed, SnapshotNotFound, ValidationFailed, VmExecutionError
from emberbox.images.store import Image, ImageStore
from emberbox.machines.digests import verify_digests
from emberbox.sandbox.snapshots.archive import export_snapshot, import_snapshot
from emberbox.sandbox.snapshots.store import SnapshotStore
from snapshot_fakes import make_image, make_node

Entries = list[tuple[tarfile.TarInfo, bytes]]


def quiet(_: str, __: float | None) -> None:
    """Progress that nobody sees."""


class Host:
    """A cache and a state directory."""

    def __init__(self, folder: Path) -> None:
        self.settings: Settings = load_settings(cache_dir=folder / "cache", state_dir=folder / "state")
        self.image: Image = make_image(self.settings)
        self.store = SnapshotStore(self.settings.state_dir / "snapshots", ImageStore(self.settings), lambda: "gvisor 1")

    def snapshot(self, **fields: Any) -> str:
        node = make_node(self.image, self.store.folder, **fields)
        self.store.seal(node, {"SECRET": "s3cret"}, {})
        return node.info.snapshot_id

    def files(self) -> list[str]:
        """All below both directories."""
        roots = [self.settings.cache_dir, self.settings.state_dir]
        return sorted(str(path) for root in roots for path in root.rglob("*") if path.is_file())


@pytest.fixture
def here(tmp_path: Path) -> Host:
    return Host(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Host:
    return Host(tmp_path / "there")


@pytest.fixture
def archive(here: Host, tmp_path: Path) -> Path:
    """A good archive, not compressed."""
    path = tmp_path / "good.tar"
    export_snapshot(here.store, here.snapshot(path=("ex-1",), parent="snap-0"), path, quiet)
    return path


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz"])
def test_there_and_back(here: Host, there: Host, tmp_path: Path, name: str) -> None:
    shutil.rmtree(there.settings.cache_dir / "guest")
    original = here.snapshot(path=("ex-1", "ex-2"))
    parts: list[float | None] = []
    size = export_snapshot(here.store, original, tmp_path / name, lambda _, part: parts.append(part))
    assert size == (tmp_path / name).stat().st_size
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert parts[-1] == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["here", "there", name])
    record = import_snapshot(there.store, tmp_path / name, lambda _, part: parts.append(part))
    assert record == there.store.record(original)
    node = there.store.node(record)
    verify_digests(node.snapshot)
    assert (node.moment.executions, record.envs) == (("ex-1", "ex-2"), {"SECRET": "s3cret"})
    assert node.snapshot.image.guest_dir == there.image.guest_dir
    assert (record.imported, record.info.kept, record.info.parent_id) == (True, True, None)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in node.snapshot.directory.iterdir()}
    assert modes == {0o600}
    with pytest.raises(ValidationFailed, match="is here already") as error:
        import_snapshot(there.store, tmp_path / name, quiet)
    assert "snapshot delete" in error.value.remediation


def test_any_tar_can_read_it(archive: Path, here: Host) -> None:
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    (snapshot,) = here.store.names()
    assert names[:3] == ["archive.json", "snapshot.json", "guest/__init__.py"]
    assert names[-2:] == ["files/checkpoint.img", "files/pages.img"]
    assert f"guest/{here.store.record(snapshot).guest}" not in names


# --- export -----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_there_is_not_replaced(here: Host, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ValidationFailed, match="mine exists already"):
        export_snapshot(here.store, here.snapshot(), tmp_path / "mine", quiet)
    assert (tmp_path / "mine").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing(here: Host, tmp_path: Path) -> None:
    damaged, missing, agentless = here.snapshot(), here.snapshot(), here.snapshot()
    (here.store.folder / damaged / "pages.img").write_bytes(b"damaged")
    (here.store.folder / missing / "pages.img").unlink()
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(SnapshotFailed, match=r"pages\.img of snapshot .* is damaged"):
        export_snapshot(here.store, damaged, out / "s.tar", quiet)
    with pytest.raises(SnapshotFailed, match=r"pages\.img: No such file"):
        export_snapshot(here.store, missing, out / "s.tar.gz", quiet)
    shutil.rmtree(here.image.guest_dir)
    with pytest.raises(SnapshotFailed, match="guest agent"):
        export_snapshot(here.store, agentless, out / "s.tar", quiet)
    with pytest.raises(SnapshotNotFound):
        export_snapshot(here.store, "snap-00", out / "s.tar", quiet)
    with pytest.raises(SnapshotFailed, match="no-folder"):
        export_snapshot(here.store, agentless, tmp_path / "no-folder" / "s.tar", quiet)
    assert list(out.iterdir()) == []


# --- import -----------------------------------------------------------------------------------------------------------


def entries(path: Path) -> Entries:
    with tarfile.open(path) as tar:
        found = []
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            found.append((info, file.read()))
        return found


def pack(path: Path, content: Entries) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in content:
            info.size = len(data) if info.type == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data))
    return path


def rewritten(archive: Path, change: Callable[[dict[str, Any]], object], member: str = "snapshot.json") -> Entries:
    """The entries of an archive, with one of its documents changed."""
    content = entries(archive)
    for index, (info, data) in enumerate(content):
        if info.name == member:
            document = json.loads(data)
            change(document)
            content[index] = (info, json.dumps(document).encode())
    return content


def entry(
    name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, data


def refused(host: Host, path: Path, error: type[VmExecutionError] = ValidationFailed) -> VmExecutionError:
    """It is refused, and nothing has changed."""
    before = host.files()
    with pytest.raises(error) as info:
        import_snapshot(host.store, path, quiet)
    assert host.files() == before
    assert info.value.message
    assert info.value.remediation
    return info.value


ADDED = {
    "a link": entry("files/pages.img", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "a hard link": entry("files/x", kind=tarfile.LNKTYPE, link="files/pages.img"),
    "a folder": entry("files/", kind=tarfile.DIRTYPE),
    "a device": entry("files/x", kind=tarfile.CHRTYPE),
    "a fifo": entry("files/x", kind=tarfile.FIFOTYPE),
    "a sparse file": entry("files/x", kind=tarfile.GNUTYPE_SPARSE),
    "a long name": entry("files/" + "x" * 300),
    "an absolute path": entry("/tmp/emberbox-was-here"),
    "a path upwards": entry("files/../../../x"),
    "a hidden file": entry("files/.snapshot.json"),
    "another record": entry("files/snapshot.json"),
    "an extra file": entry("files/extra.img"),
    "a file beside": entry("extra"),
    "a name with a line end": entry("files/a\nb"),
    "guest code after the files": entry("guest/agent.py"),
}


@pytest.mark.parametrize("what", list(ADDED))
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_nothing_but_the_files_of_a_snapshot_comes_in(
    there: Host, archive: Path, tmp_path: Path, what: str, place: str
) -> None:
    content = entries(archive)
    content.insert({"first": 0, "middle": len(content) - 1, "last": len(content)}[place], ADDED[what])
    refused(there, pack(tmp_path / "bad.tar", content))
    assert not Path("/tmp/emberbox-was-here").exists()


@pytest.mark.parametrize(
    "name", ["../x.py", "/x.py", "a/../../x.py", "x.so", "__pycache__/x.pyc", "a/b/c.py", ".py", "-x.py"]
)
def test_a_guest_agent_has_only_its_own_files(there: Host, archive: Path, tmp_path: Path, name: str) -> None:
    content = entries(archive)
    content.insert(2, entry(f"guest/{name}"))
    refused(there, pack(tmp_path / "bad.tar", content))


def test_a_changed_guest_agent_is_noticed(there: Host, archive: Path, tmp_path: Path) -> None:
    content = [(i, b"evil()" if i.name == "guest/agent.py" else d) for i, d in entries(archive)]
    error = refused(there, pack(tmp_path / "bad.tar", content))
    assert "guest agent is not the one of the snapshot" in error.message


@pytest.mark.parametrize(
    "name", ["archive.json", "snapshot.json", "guest/agent.py", "files/pages.img", "files/checkpoint.img"]
)
@pytest.mark.parametrize("how", ["missing", "twice", "damaged"])
def test_every_file_must_be_there_once_and_whole(
    there: Host, archive: Path, tmp_path: Path, name: str, how: str
) -> None:
    content: Entries = []
    for info, data in entries(archive):
        if info.name != name:
            content.append((info, data))
        elif how != "missing":
            content.append((info, data if how == "twice" else data[:-2] + b"!!"))
            content += [(info, data)] * (how == "twice")
    refused(there, pack(tmp_path / "bad.tar", content))


RECORDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "image elsewhere": lambda r: r.update(image="../../../etc"),
    "image absolute": lambda r: r.update(image="/etc"),
    "guest elsewhere": lambda r: r.update(guest="../" * 4 + "x"),
    "id elsewhere": lambda r: r["info"].update(snapshot_id="../x"),
    "another id": lambda r: r["info"].update(snapshot_id="snap-00"),
    "a file elsewhere": lambda r: r["digests"].update({"../x": "0" * 64}),
    "a file that is missing": lambda r: r["digests"].update({"more.img": "0" * 64}),
    "no files": lambda r: r.update(digests={}),
    "its own digest": lambda r: r["digests"].update({"snapshot.json": "0" * 64}),
    "no digest": lambda r: r["digests"].update({"pages.img": ""}),
    "another format": lambda r: r.update(format=2),
    "more memory than allowed": lambda r: r["limits"].update(memory_mb=1 << 20),
    "nonsense": lambda r: r.clear(),
}


@pytest.mark.parametrize("what", list(RECORDS))
def test_a_record_is_not_believed(there: Host, archive: Path, tmp_path: Path, what: str) -> None:
    error = refused(there, pack(tmp_path / "bad.tar", rewritten(archive, RECORDS[what])), VmExecutionError)
    assert isinstance(error, ValidationFailed | SnapshotNotFound)


def test_what_a_template_says_of_files_of_the_host_is_dropped(there: Host, archive: Path, tmp_path: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["template"]["directory"] = "/etc"
        record["template"]["files"] = [{"source": "shadow", "path": "/home/user/x"}]
        record["imported"] = False

    record = import_snapshot(there.store, pack(tmp_path / "s.tar", rewritten(archive, change)), quiet)
    assert (record.template.files, record.template.directory, record.imported) == ([], Path("/"), True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "gvisor 2"}, "is of gvisor 2 on"),
        ({"processor": "z80"}, "on z80"),
    ],
)
def test_one_of_another_back_end_is_refused(
    there: Host, archive: Path, tmp_path: Path, change: dict[str, str], words: str
) -> None:
    path = pack(tmp_path / "other.tar", rewritten(archive, lambda record: record.update(change)))
    assert words in refused(there, path, SnapshotFailed).message


def test_one_whose_image_is_not_here_says_which(there: Host, archive: Path, tmp_path: Path) -> None:
    path = pack(tmp_path / "o.tar", rewritten(archive, lambda record: record.update(built_at="2020-01-01T00:00:00Z")))
    assert "another build" in refused(there, path, VmExecutionError).message
    shutil.rmtree(there.image.directory)
    error = refused(there, archive, VmExecutionError)
    assert there.image.directory.name in error.message
    assert str(there.settings.cache_dir / "images") in error.remediation


def test_one_of_a_newer_version_says_so(there: Host, archive: Path, tmp_path: Path) -> None:
    newer = rewritten(archive, lambda head: head.update(format=9), "archive.json")
    assert "format 9" in refused(there, pack(tmp_path / "new.tar", newer)).message


@pytest.mark.parametrize("compressed", [False, True])
def test_one_that_is_cut_short_is_refused(there: Host, archive: Path, tmp_path: Path, compressed: bool) -> None:
    data = archive.read_bytes()
    data = gzip.compress(data) if compressed else data
    draw = random.Random(1)
    for size in {0, 1, 511, 512, 1000, len(data) - 1, len(data) - 600, *(draw.randrange(len(data)) for _ in range(25))}:
        (tmp_path / "cut").write_bytes(data[:size])
        refused(there, tmp_path / "cut")


def test_damage_anywhere_changes_nothing_or_is_refused(there: Host, archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    draw = random.Random(2)
    good = 0
    for _ in range(150):
        place = draw.randrange(len(data))
        (tmp_path / "bad").write_bytes(
            data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]
        )
        before = there.files()
        try:
            record = import_snapshot(there.store, tmp_path / "bad", quiet)
        except VmExecutionError:
            assert there.files() == before
            continue
        good += 1  # in a field of the record that nothing depends on
        verify_digests(there.store.node(there.store.record(record.info.snapshot_id)).snapshot)
        there.store.remove(record.info.snapshot_id)
    assert good < 75


@pytest.mark.parametrize("tail", [b"x", b"\0" * 4096 + b"x", bytes(1 << 20)])
def test_nothing_follows_its_end(there: Host, archive: Path, tmp_path: Path, tail: bytes) -> None:
    (tmp_path / "more").write_bytes(archive.read_bytes().rstrip(b"\0") + bytes(2048) + tail)
    refused(there, tmp_path / "more")


def test_nothing_is_hidden_between_files(there: Host, archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    (size,) = (info.size for info, _ in entries(archive) if info.name == "archive.json")
    data[512 + size + 10] = 65
    (tmp_path / "hidden").write_bytes(data)
    assert "hidden" in refused(there, tmp_path / "hidden").message


def test_a_size_that_no_disk_has_is_refused_before_it_is_read(there: Host, archive: Path, tmp_path: Path) -> None:
    content = entries(archive)
    with (tmp_path / "huge").open("wb") as file:
        for info, data in content[:-1]:
            info.size = len(data)
            file.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
        content[-1][0].size = 1 << 60
        file.write(content[-1][0].tobuf(tarfile.GNU_FORMAT))
    error = refused(there, tmp_path / "huge", SnapshotFailed)
    assert "MiB left" in error.message
    assert "state_dir" in error.remediation


@pytest.mark.parametrize("member", ["archive.json", "snapshot.json", "guest/agent.py"])
def test_no_document_is_larger_than_it_may_be(there: Host, archive: Path, tmp_path: Path, member: str) -> None:
    """Compressed, gigabytes of it would be small."""
    content = [(i, d + b" " * (9 << 20) if i.name == member else d) for i, d in entries(archive)]
    path = pack(tmp_path / "large.tar", content)
    path.write_bytes(gzip.compress(path.read_bytes()))
    refused(there, path)


def test_a_full_disk_leaves_nothing(there: Host, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    assert "No space left" in refused(there, archive, SnapshotFailed).message
    monkeypatch.undo()
    monkeypatch.setattr(SnapshotStore, "write", staticmethod(full))
    shutil.rmtree(there.image.guest_dir)
    with pytest.raises(SnapshotFailed, match="No space left"):
        import_snapshot(there.store, archive, quiet)
    assert there.store.names() == []


@pytest.mark.parametrize("data", [b"", b"not an archive at all", b"\x1f\x8bnot gzip", bytes(10240), b"PK\3\4" * 300])
def test_other_files_are_refused(there: Host, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    refused(there, tmp_path / "file")


def test_a_file_that_is_not_there_is_named(there: Host, tmp_path: Path) -> None:
    assert "no-such.tar" in refused(there, tmp_path / "no-such.tar", SnapshotFailed).message
