"""Memory files: what is written is what is read, and only what differs is kept."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from emberbox.errors import VmNotAvailable
from emberbox.machines.qemu.memory import PAGE, Mapped, PagesFile, new_memory, own_runs, seal
from emberbox.machines.qemu.shared_memory import SharedMemory, SharedMemoryCache, save_memory

SIZE = 64 * PAGE


def memory(*pages: int) -> int:
    """A memory in which these pages hold their own numbers."""
    fd = new_memory(SIZE)
    for number in pages:
        os.pwrite(fd, bytes([number]) * PAGE, number * PAGE)
    return fd


def content(fd: int) -> bytes:
    return os.pread(fd, SIZE, 0)


def test_a_memory_comes_back_without_its_empty_pages(tmp_path: Path) -> None:
    fd = memory(1, 2, 40)
    os.pwrite(fd, bytes(PAGE), 5 * PAGE)  # written, and zero all the same
    try:
        digest = save_memory(fd, tmp_path / "base")
        with PagesFile(tmp_path / "base") as pages:
            assert pages.digest() == digest
            assert pages.runs == [(PAGE, 2 * PAGE), (40 * PAGE, PAGE)]
        base = SharedMemory.load(tmp_path / "base", digest)
        assert content(base.fd) == content(fd)
        base.release()
    finally:
        os.close(fd)


def test_a_base_is_sealed_and_closed_with_its_last_user(tmp_path: Path) -> None:
    fd = memory(3)
    digest = save_memory(fd, tmp_path / "base")
    os.close(fd)
    bases, base = SharedMemoryCache(), SharedMemory.load(tmp_path / "base", digest)
    bases.add(base)
    assert bases.get(digest) is base
    assert bases.get("other") is None
    with pytest.raises(PermissionError):
        os.pwrite(base.fd, b"x", 0)
    for _ in range(2):
        base.release()
    assert base.fd >= 0
    bases.close()
    assert base.fd == -1


def test_a_base_is_linked_where_that_can_be_done_and_copied_else(tmp_path: Path) -> None:
    fd = memory(3)
    digest = save_memory(fd, tmp_path / "base")
    os.close(fd)
    base = SharedMemory.load(tmp_path / "base", digest)
    assert base.save(tmp_path / "link") == digest
    assert (tmp_path / "link").samefile(tmp_path / "base")
    (tmp_path / "link").unlink()
    (tmp_path / "base").unlink()  # its name is gone, its content is not
    assert base.save(tmp_path / "copy") == digest
    with PagesFile(tmp_path / "copy") as pages:
        assert pages.digest() == digest
    base.release()


@pytest.mark.parametrize("damage", ["short", "magic", "beyond", "empty"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    fd = memory(1)
    save_memory(fd, tmp_path / "base")
    os.close(fd)
    data = bytearray((tmp_path / "base").read_bytes())
    if damage == "short":
        del data[-1:]
    elif damage == "magic":
        data[0] ^= 1
    elif damage == "beyond":
        data[24:32] = (SIZE).to_bytes(8, "little")
    else:
        data.clear()
    (tmp_path / "damaged").write_bytes(data)
    with pytest.raises(VmNotAvailable, match=r"damaged|cannot be read"):
        PagesFile(tmp_path / "damaged")


def test_another_content_than_the_digest_says_is_refused(tmp_path: Path) -> None:
    fd = memory(1)
    save_memory(fd, tmp_path / "base")
    os.close(fd)
    with pytest.raises(VmNotAvailable, match="is damaged"):
        SharedMemory.load(tmp_path / "base", "0" * 64)


def test_own_pages_are_those_that_are_no_file_s() -> None:
    present, swapped, of_file = 0x80, 0x40, 0xA0
    entries = b"".join(bytes(7) + bytes([top]) for top in (0, present, present | 1, of_file, swapped, 0, present))
    assert own_runs(entries) == [(PAGE, 2 * PAGE), (4 * PAGE, PAGE), (6 * PAGE, PAGE)]


def test_the_pages_that_a_process_changed_are_found_and_put_back(tmp_path: Path) -> None:
    """This process plays QEMU: it maps a base privately and writes to it."""
    fd = memory(1, 2, 3)
    seal(fd)
    pages = mmap.mmap(fd, SIZE, flags=mmap.MAP_PRIVATE)
    try:
        assert pages[PAGE] == 1  # read only: it stays the file's
        pages[2 * PAGE] = 77
        pages[50 * PAGE] = 78
        mapped = Mapped.find(os.getpid(), SIZE)
        mapped.write_own_pages(tmp_path / "pages")
        pages[2 * PAGE] = 0
        with PagesFile(tmp_path / "pages") as changed:
            assert changed.runs == [(2 * PAGE, PAGE), (50 * PAGE, PAGE)]
            mapped.load(changed)
        assert (pages[2 * PAGE], pages[2 * PAGE + 1], pages[50 * PAGE]) == (77, 2, 78)
        with pytest.raises(OSError, match="not found"):
            Mapped.find(os.getpid(), SIZE + PAGE)
    finally:
        pages.close()
        os.close(fd)
