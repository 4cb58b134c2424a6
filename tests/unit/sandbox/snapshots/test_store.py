"""Snapshots that outlive the process."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from emberbox import Settings
from emberbox.errors import SnapshotFailed, SnapshotNotFound, VmNotAvailable
from emberbox.images.store import Image, ImageStore
from emberbox.machines.digests import verify_digests
from emberbox.sandbox.snapshots.store import SnapshotStore
from snapshot_fakes import FILES, make_node

IDENTITY = "gvisor 1"


@pytest.fixture
def store(settings: Settings) -> SnapshotStore:
    return SnapshotStore(settings.state_dir / "snapshots", ImageStore(settings), lambda: IDENTITY)


def sealed(store: SnapshotStore, image: Image, **fields: object) -> str:
    """A finished snapshot in the store; its id."""
    node = make_node(image, store.folder, **fields)  # type: ignore[arg-type]
    store.seal(node, {"A": "b"}, {"m": "n"})
    return node.info.snapshot_id


def names(store: SnapshotStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_a_snapshot_comes_back_as_it_was(store: SnapshotStore, image: Image) -> None:
    original = make_node(image, store.folder, path=("ex-1", "ex-2"), parent="snap-0")
    store.seal(original, {"A": "b"}, {"m": "n"})
    record = store.record(original.info.snapshot_id)
    assert (record.envs, record.metadata) == ({"A": "b"}, {"m": "n"})
    node = store.node(record)
    assert (node.info, node.moment.executions) == (original.info, ("ex-1", "ex-2"))
    assert (node.snapshot.directory, node.snapshot.last_request) == (original.snapshot.directory, 7)
    assert (node.snapshot.image.directory, node.snapshot.limits) == (image.directory, image.limits)
    verify_digests(node.snapshot)


def test_it_is_private(store: SnapshotStore, image: Image, tmp_path: Path) -> None:
    elsewhere = make_node(image, tmp_path / "elsewhere")
    previous = os.umask(0)
    try:
        store.keep(elsewhere, {"SECRET": "s3cret"}, {})
    finally:
        os.umask(previous)
    place = store.folder / elsewhere.info.snapshot_id
    assert [stat.S_IMODE(path.stat().st_mode) for path in (store.folder, place, place / "snapshot.json")] == [
        0o700, 0o700, 0o600
    ]  # fmt: skip


@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_damaged_files_are_noticed_before_use(store: SnapshotStore, image: Image, name: str, damage: str) -> None:
    node = store.node(store.record(sealed(store, image)))
    path = node.snapshot.directory / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "truncated" else b"X" + data[1:])
    with pytest.raises(VmNotAvailable, match=name) as error:
        verify_digests(node.snapshot)
    assert not error.value.retryable


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\xff" * 10])
def test_a_record_that_cannot_be_read_spares_the_others(store: SnapshotStore, image: Image, text: str) -> None:
    good, bad = sealed(store, image), sealed(store, image)
    (store.folder / bad / "snapshot.json").write_text(text)
    assert [record.info.snapshot_id for record in store.records()] == [good]
    with pytest.raises(SnapshotFailed, match="cannot be read") as error:
        store.record(bad)
    assert "emberbox snapshot delete" in error.value.remediation
    store.sweep(lambda info: info.sandbox_id == "sb-other")
    store.sweep_unfinished()
    assert names(store) == sorted([good, bad]), "what cannot be read is somebody's"
    store.remove(bad)
    assert names(store) == [good]


def test_what_is_told_of_a_damaged_record_holds_nothing_of_its_environment(store: SnapshotStore, image: Image) -> None:
    name = sealed(store, image)
    for text in ('{"envs": {"PASSWORD": "s3cret"', '{"envs": {"PASSWORD": "s3cret"}}', '{"envs": "s3cret"}'):
        (store.folder / name / "snapshot.json").write_text(text)
        with pytest.raises(SnapshotFailed, match="cannot be read") as error:
            store.record(name)
        assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"format": 2}, "no snapshot of this version"), ({"info": "another"}, "no snapshot of this version")],
)
def test_records_of_another_version_or_place_are_refused(
    store: SnapshotStore, image: Image, change: dict[str, object], words: str
) -> None:
    name = sealed(store, image)
    path = store.folder / name / "snapshot.json"
    record = json.loads(path.read_text())
    if "info" in change:
        change = {"info": {**record["info"], "snapshot_id": "snap-0"}}
    path.write_text(json.dumps({**record, **change}))
    with pytest.raises(SnapshotFailed, match=words):
        store.record(name)


@pytest.mark.parametrize("name", ["../../etc", "..", "snap-../x", "snap-", "", "/", "snap-a/b", "sb-1", "snap-\0"])
def test_ids_are_no_paths(store: SnapshotStore, name: str) -> None:
    for ask in (store.record, store.remove):
        with pytest.raises(SnapshotNotFound):
            ask(name)


@pytest.mark.parametrize("bad", ["../x", "a/b", "", ".", "..", ".hidden", "A", "x" * 101])
def test_a_record_names_no_file_elsewhere(store: SnapshotStore, image: Image, bad: str) -> None:
    name = sealed(store, image)
    path = store.folder / name / "snapshot.json"
    record = json.loads(path.read_text())
    record["digests"][bad] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(SnapshotFailed, match="cannot be read"):
        store.record(name)


def test_a_snapshot_of_another_back_end_is_refused(store: SnapshotStore, settings: Settings, image: Image) -> None:
    record = store.record(sealed(store, image))
    other = SnapshotStore(store.folder, ImageStore(settings), lambda: "gvisor 2")
    with pytest.raises(SnapshotFailed, match=r"gvisor 1 on .*, and this is gvisor 2"):
        other.node(record)
    with pytest.raises(SnapshotFailed, match="of gvisor 1 on z80"):
        store.node(record.model_copy(update={"processor": "z80"}))


def test_a_missing_image_is_named_with_its_remedy(store: SnapshotStore, settings: Settings, image: Image) -> None:
    record = store.record(sealed(store, image))
    (image.directory / "manifest.json").unlink()
    with pytest.raises(SnapshotFailed, match=f"image {image.directory.name} is not here") as error:
        store.node(record)
    assert f"Copy that directory of the time to {settings.cache_dir / 'images'}" in error.value.remediation
    assert not error.value.retryable


def test_keeping_takes_no_space_twice_and_outlives_the_original(
    store: SnapshotStore, image: Image, tmp_path: Path
) -> None:
    node = make_node(image, tmp_path / "elsewhere")
    store.keep(node, {}, {})
    assert node.info.kept
    kept = store.folder / node.info.snapshot_id
    assert (kept / "pages.img").stat().st_ino == (node.snapshot.directory / "pages.img").stat().st_ino
    for path in node.snapshot.directory.iterdir():
        path.unlink()
    verify_digests(store.node(store.record(node.info.snapshot_id)).snapshot)


@pytest.mark.parametrize("step", ["mkdir", "link and copy", "record", "rename"])
def test_a_full_disk_leaves_nothing(
    store: SnapshotStore, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    node = make_node(image, tmp_path / "elsewhere")
    sealed(store, image)
    before = names(store)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    places: dict[str, list[tuple[object, str]]] = {
        "mkdir": [(Path, "mkdir")],
        "link and copy": [(os, "link"), (shutil, "copyfile")],
        "record": [(SnapshotStore, "write")],
        "rename": [(Path, "rename")],
    }
    for place, name in places[step]:
        monkeypatch.setattr(place, name, full)
    with pytest.raises(SnapshotFailed, match="No space left"):
        store.keep(node, {}, {})
    monkeypatch.undo()
    assert not node.info.kept
    assert names(store) == before
    store.keep(node, {}, {})


def test_what_was_never_finished_is_swept(store: SnapshotStore, image: Image) -> None:
    good = sealed(store, image)
    make_node(image, store.folder)  # never sealed
    (store.folder / ".snap-0123").mkdir()  # a checkpoint under way
    young, old = store.folder / ".new-snap-1", store.folder / ".new-snap-2"
    for path in (young, old):
        path.mkdir()
    os.utime(old, (0, 0))
    store.sweep_unfinished()
    assert names(store) == sorted([good, young.name]), "another process may be putting together the young one"


def test_a_sweep_removes_what_is_not_wanted(store: SnapshotStore, image: Image) -> None:
    mine, other = sealed(store, image, sandbox_id="sb-1"), sealed(store, image, sandbox_id="sb-2")
    kept = sealed(store, image, sandbox_id="sb-1", kept=True)
    store.sweep(lambda info: info.sandbox_id == "sb-1" and not info.kept)
    assert names(store) == sorted([other, kept])
    assert mine not in names(store)
    with pytest.raises(SnapshotNotFound):
        store.remove(mine)


def test_an_empty_store_has_nothing(store: SnapshotStore) -> None:
    assert store.records() == []
    store.sweep(lambda _: True)
    store.sweep_unfinished()
