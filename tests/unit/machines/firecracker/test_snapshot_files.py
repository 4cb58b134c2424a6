"""The memory of a snapshot: what the last one had, and what has changed."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest

from emberbox.machines.firecracker.snapshot_files import (
    merge,
)

PAGE = 4096


def sparse(path: Path, pages: dict[int, bytes], size: int = 64) -> Path:
    with path.open("wb") as file:
        file.truncate(size * PAGE)
        for number, data in pages.items():
            file.seek(number * PAGE)
            file.write(data * PAGE)
    return path


def test_changes_are_merged_and_holes_stay(tmp_path: Path) -> None:
    base = sparse(tmp_path / "base", {1: b"a", 2: b"b", 40: b"c"})
    changes = sparse(tmp_path / "changes", {2: b"B", 63: b"z"})
    expected = bytearray(base.read_bytes())
    expected[2 * PAGE : 3 * PAGE] = b"B" * PAGE
    expected[63 * PAGE :] = b"z" * PAGE
    merge(base, changes, tmp_path / "memory")
    assert (tmp_path / "memory").read_bytes() == expected
    assert (tmp_path / "memory").stat().st_blocks * 512 <= 16 * PAGE
    assert (tmp_path / "memory").stat().st_mode & 0o777 == 0o444
    assert not changes.exists()
    assert base.read_bytes()[2 * PAGE : 3 * PAGE] == b"b" * PAGE


def test_pages_that_became_zeros_take_no_space(tmp_path: Path) -> None:
    base = sparse(tmp_path / "base", dict.fromkeys(range(32), b"a"), 1024)
    zeros = dict.fromkeys((*range(4, 20), *range(40, 1000)), b"\x00")
    changes = sparse(tmp_path / "changes", zeros | {7: b"B", 30: b"C", 31: b"\0", 500: b"z"}, 1024)
    written = changes.read_bytes()
    expected = bytearray(base.read_bytes())
    for number in (*zeros, 7, 30, 31, 500):
        expected[number * PAGE : (number + 1) * PAGE] = written[number * PAGE : (number + 1) * PAGE]
    merge(base, changes, tmp_path / "memory")
    assert (tmp_path / "memory").read_bytes() == expected
    assert (tmp_path / "memory").stat().st_blocks * 512 <= 24 * PAGE


def test_a_whole_snapshot_has_holes_as_well(tmp_path: Path) -> None:
    whole = tmp_path / "changes"
    data = b"".join(bytes([number % 7 // 6]) * PAGE for number in range(1000))
    whole.write_bytes(data)
    merge(None, whole, tmp_path / "memory")
    assert (tmp_path / "memory").read_bytes() == data
    assert (tmp_path / "memory").stat().st_blocks * 512 <= 160 * PAGE


def test_what_changed_may_be_many_parts_of_what_was(tmp_path: Path) -> None:
    numbers = random.Random(7)
    base = sparse(tmp_path / "base", {n: b"a" for n in range(300) if numbers.random() < 0.7}, 300)
    changes = sparse(tmp_path / "changes", {n: numbers.choice([b"\0", b"b"]) for n in range(0, 300, 2)}, 300)
    old, new = base.read_bytes(), changes.read_bytes()
    merge(base, changes, tmp_path / "memory")
    pages = [(new if n % 2 == 0 else old)[n * PAGE : (n + 1) * PAGE] for n in range(300)]
    assert (tmp_path / "memory").read_bytes() == b"".join(pages)


def test_a_base_may_be_on_another_file_system(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if Path(other).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no other file system")
        base = sparse(Path(other) / "base", {1: b"a", **dict.fromkeys(range(100, 900), b"b")}, 1024)
        expected = bytearray(base.read_bytes())
        expected[500 * PAGE : 501 * PAGE] = b"B" * PAGE
        merge(base, sparse(tmp_path / "changes", {500: b"B"}, 1024), tmp_path / "memory")
    assert (tmp_path / "memory").read_bytes() == expected
    assert (tmp_path / "memory").stat().st_blocks * 512 <= 820 * PAGE


def test_a_first_snapshot_is_its_changes(tmp_path: Path) -> None:
    changes = sparse(tmp_path / "changes", {})
    merge(None, changes, tmp_path / "memory")
    merge(tmp_path / "memory", sparse(tmp_path / "changes", {}), tmp_path / "next")
    assert (tmp_path / "next").read_bytes() == bytes(64 * PAGE)
