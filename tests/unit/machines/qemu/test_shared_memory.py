"""Memory files: put under another name, and found again behind the descriptors of a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from emberbox.machines.qemu import shared_memory as module
from emberbox.machines.qemu.machine import memory_fd_of
from emberbox.machines.qemu.shared_memory import SharedMemory

SIZE = 1 << 16


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("emberbox-ram")
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, b"guest", 0)
    yield fd
    os.close(fd)


def test_a_copy_has_an_offset_of_its_own(tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several snapshots of one base may be written at once."""

    def elsewhere(fd: int, target: Path) -> None:
        raise OSError(18, "another file system")

    (tmp_path / "file").write_bytes(b"pages" * 1000)
    file = os.open(tmp_path / "file", os.O_RDONLY)
    base = SharedMemory(os.dup(memory), "digest", file)
    monkeypatch.setattr(module, "_link", elsewhere)
    os.lseek(file, 7, os.SEEK_SET)
    assert base.save(tmp_path / "copy") == "digest"
    assert (tmp_path / "copy").read_bytes() == b"pages" * 1000
    assert os.lseek(file, 0, os.SEEK_CUR) == 7
    base.close()


def test_the_memory_of_a_process_is_found(memory: int) -> None:
    fd = memory_fd_of(os.getpid(), SIZE, os.O_RDONLY)
    assert os.pread(fd, 5, 0) == b"guest"
    os.close(fd)
    with pytest.raises(OSError, match="was not found"):
        memory_fd_of(os.getpid(), SIZE + 4096, os.O_RDONLY)


def test_what_is_put_in_its_place_is_not_opened(memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that has taken its QEMU over changes what stands behind the descriptor just after it was looked at."""
    (tmp_path / "shadow").write_bytes(b"secret")
    secret, kept, readlink = os.open(tmp_path / "shadow", os.O_RDONLY), os.dup(memory), os.readlink
    ours = os.fstat(memory).st_ino  # other tests' machines may have some as well, in this process

    def look(path: str) -> str:
        found = readlink(path)
        if Path(path).stat().st_ino == ours:
            os.dup2(secret, memory)
            os.dup2(secret, kept)
        return found

    monkeypatch.setattr(os, "readlink", look)
    try:
        fd = memory_fd_of(os.getpid(), SIZE, os.O_RDONLY)
    finally:
        monkeypatch.undo()
        os.close(secret)
        os.close(kept)
    assert os.pread(fd, 5, 0) == b"guest"
    os.close(fd)
