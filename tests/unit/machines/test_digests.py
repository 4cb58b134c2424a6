from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from emberbox.errors import VmNotAvailable
from emberbox.machines import digests as module
from emberbox.machines.contract import Snapshot
from emberbox.machines.digests import Verifier, states_of


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """As the process knows it that wrote it."""
    (tmp_path / "pages.img").write_bytes(bytes(100_000))
    (tmp_path / "checkpoint.img").write_bytes(b"state")
    anything, written = cast("Any", None), states_of(tmp_path)
    while _now(tmp_path) <= max(state.changed_ns for state in written.values()):
        pass  # the kernel's clock of files goes on every few milliseconds
    return Snapshot(tmp_path, anything, anything, 1, 100_005, written=written)


def _now(folder: Path) -> int:
    probe = folder.with_name(f"{folder.name}-probe")
    probe.touch()
    return probe.stat().st_ctime_ns


def turn(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(50_000)
        file.write(b"\x01")


def turn_and_set_back(path: Path) -> None:
    before = path.stat()
    turn(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def replace_by_copy(path: Path) -> None:
    before, data = path.stat(), path.read_bytes()
    path.with_name("copy").write_bytes(data)
    path.with_name("copy").rename(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a turned byte": turn,
    "a turned byte, and the time set back": turn_and_set_back,
    "truncated": lambda path: os.truncate(path, 1000),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, 200_000),
    "missing": lambda path: path.unlink(),
}


def digested(snapshot: Snapshot) -> Snapshot:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in snapshot.directory.iterdir()}
    return replace(snapshot, digests=found)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("how", ["as written", "with digests", "of another process"])
def test_damage_is_found_before_each_use(snapshot: Snapshot, how: str, damage: str) -> None:
    if how != "as written":
        snapshot = digested(snapshot)
    if how == "of another process":
        snapshot = replace(snapshot, written=None)
    verifier = Verifier()
    verifier.verify(snapshot)
    verifier.verify(snapshot)
    DAMAGE[damage](snapshot.directory / "pages.img")
    for _ in range(2):
        with pytest.raises(VmNotAvailable, match=r"pages\.img") as refused:
            verifier.verify(snapshot)
        assert not refused.value.retryable


def test_what_is_not_touched_is_not_read_again(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(module, "_check_digest", lambda path, digest: read.append(path.name))
    verifier = Verifier()
    verifier.verify(digested(snapshot))
    assert read == [], "it was written by this process"
    other = replace(digested(snapshot), written=None)
    verifier.verify(other)
    verifier.verify(other)
    assert sorted(read) == ["checkpoint.img", "pages.img"], "the first time all of it"
    os.utime(snapshot.directory / "pages.img")
    verifier.verify(other)
    verifier.verify(digested(snapshot))
    assert sorted(read) == ["checkpoint.img", "pages.img", "pages.img"]


def test_a_copy_of_the_same_content_is_good_where_there_is_a_digest(snapshot: Snapshot) -> None:
    replace_by_copy(snapshot.directory / "pages.img")
    Verifier().verify(replace(digested(snapshot), written=snapshot.written))
    with pytest.raises(VmNotAvailable, match="was changed after it had been written"):
        Verifier().verify(snapshot)


def test_links_to_a_file_are_no_change_where_the_back_end_makes_them(snapshot: Snapshot, tmp_path: Path) -> None:
    os.link(snapshot.directory / "pages.img", tmp_path / "link")
    Verifier(linked=True).verify(snapshot)
    turn(snapshot.directory / "pages.img")
    with pytest.raises(VmNotAvailable, match="was changed"):
        Verifier(linked=True).verify(snapshot)
