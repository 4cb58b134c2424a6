"""The memory of machines: files in memory that copies map, files on the disk, and the pages in which they differ.

A machine that boots writes to its file in memory. Its copies map a sealed one privately: a page that they write to
becomes their own, and the kernel says which these are (pagemap in Documentation/admin-guide/mm of Linux).

Files on the disk hold the pages that differ from zero, or from those of another file: MAGIC, the size of the memory,
the number of runs, then of each run its offset and length, then the runs.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from emberbox.errors import VmNotAvailable

PAGE = mmap.PAGESIZE
NAME = "emberbox-ram"
_MAGIC = b"EMBRAM01"
_HEAD = struct.Struct("<8sQQ")
_RUN = struct.Struct("<QQ")
_CHUNK = 4 << 20
_OWN = re.compile(rb"[\x40-\x5f\x80-\x9f]+")
"""The highest bytes of entries of pagemap: present (63) or swapped (62), and no page of a file (61)."""
_SEALS = 0x0001 | 0x0002 | 0x0004 | 0x0008
"""F_SEAL_SEAL, SHRINK, GROW, WRITE of fcntl(2)."""
_ADD_SEALS = 1033
_ZERO = bytes(PAGE)

Runs = list[tuple[int, int]]
"""Offsets and lengths, in bytes."""
Read = Callable[[int, int], bytes]
"""Of length and offset."""


def new_memory(size: int) -> int:
    """A file in memory of that size, all zero; its descriptor. Raises OSError."""
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def seal(fd: int) -> None:
    """Nobody writes to it any more, whoever opens it; raises OSError."""
    fcntl.fcntl(fd, _ADD_SEALS, _SEALS)


# --- which pages ------------------------------------------------------------------------------------------------------


def filled_runs(read: Read, runs: Iterable[tuple[int, int]]) -> Runs:
    """The parts of these runs that are not zero, by page."""
    found: Runs = []
    for start, length in runs:
        for offset in range(start, start + length, _CHUNK):
            data = read(min(_CHUNK, start + length - offset), offset)
            for at in range(0, len(data), PAGE):
                if data[at : at + PAGE] != _ZERO:
                    _extend(found, offset + at)
    return found


def _extend(runs: Runs, page: int) -> None:
    if runs and runs[-1][0] + runs[-1][1] == page:
        runs[-1] = (runs[-1][0], runs[-1][1] + PAGE)
    else:
        runs.append((page, PAGE))


def own_runs(entries: bytes) -> Runs:
    """Of a private mapping: the parts that are the process's own, by its entries of pagemap (8 bytes each)."""
    return [(m.start() * PAGE, (m.end() - m.start()) * PAGE) for m in _OWN.finditer(entries[7::8])]


# --- files ------------------------------------------------------------------------------------------------------------


def write_pages(target: Path, size: int, runs: Runs, read: Read) -> str:
    """Write these parts of a memory of that size into a new file; its SHA-256. Raises OSError."""
    digest = hashlib.sha256()
    with target.open("xb") as file:

        def put(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        put(_HEAD.pack(_MAGIC, size, len(runs)))
        put(b"".join(_RUN.pack(*run) for run in runs))
        for start, length in runs:
            for offset in range(start, start + length, _CHUNK):
                wanted = min(_CHUNK, start + length - offset)
                data = read(wanted, offset)
                if len(data) != wanted:
                    raise OSError(errno.EIO, "the machine's memory cannot be read")
                put(data)
    target.chmod(0o444)
    return digest.hexdigest()


class PagesFile:
    """A file that `write_pages` wrote, open. Use it as a context manager.

    Raises:
        VmNotAvailable: it is damaged, or not there.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError) as exc:
            raise VmNotAvailable(f"The memory file {path} cannot be read: {exc}.", retryable=False) from exc
        self.size = self._begin = 0
        self.runs: Runs = []
        if not self._parsed():
            self._data.close()
            raise VmNotAvailable(
                f"The memory file {path} is damaged.", remediation="Take a new snapshot.", retryable=False
            )

    def _parsed(self) -> bool:
        if len(self._data) < _HEAD.size:
            return False
        magic, self.size, count = _HEAD.unpack_from(self._data)
        self._begin = _HEAD.size + count * _RUN.size
        if magic != _MAGIC or self._begin > len(self._data):
            return False
        self.runs = list(_RUN.iter_unpack(self._data[_HEAD.size : self._begin]))
        if any(offset % PAGE or not length or offset + length > self.size for offset, length in self.runs):
            return False
        return self._begin + sum(length for _, length in self.runs) == len(self._data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._data.close()

    def digest(self) -> str:
        """SHA-256 of the file."""
        with memoryview(self._data) as view:
            return hashlib.sha256(view).hexdigest()

    def put_into(self, fd: int, start: int = 0) -> None:
        """Write the pages to where they belong, counted from `start`; raises OSError."""
        at = self._begin
        with memoryview(self._data) as view:
            for offset, length in self.runs:
                end = at + length
                place = start + offset
                while at < end:
                    written = os.pwrite(fd, view[at : min(end, at + _CHUNK)], place)
                    if written <= 0:
                        raise OSError(errno.EIO, "the machine's memory cannot be written")
                    at, place = at + written, place + written


# --- the memory of a process ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mapped:
    """Where a process has its guest's memory."""

    pid: int
    start: int
    size: int

    @classmethod
    def find(cls, pid: int, size: int) -> Mapped:
        """Look for the mapping of a file of ours; raises OSError: it is not there, or may not be looked at."""
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split(None, 5)
            if len(fields) == 6 and fields[5].startswith(f"/memfd:{NAME}"):
                start, end = (int(part, 16) for part in fields[0].split("-"))
                if end - start == size:
                    return cls(pid, start, size)
        raise OSError(errno.ESRCH, "the guest's memory was not found")

    def write_own_pages(self, target: Path) -> None:
        """Write the pages that differ from the file into a new one; the machine stands still. Raises OSError."""
        runs = own_runs(self._entries())
        fd = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            write_pages(target, self.size, runs, lambda length, offset: _read(fd, length, self.start + offset))
        finally:
            os.close(fd)

    def load(self, pages: PagesFile) -> None:
        """Write pages of a file into the process; raises OSError."""
        fd = os.open(f"/proc/{self.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            pages.put_into(fd, self.start)
        finally:
            os.close(fd)

    def _entries(self) -> bytes:
        fd = os.open(f"/proc/{self.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _read(fd, self.size // PAGE * 8, self.start // PAGE * 8)
        finally:
            os.close(fd)


def _read(fd: int, length: int, offset: int) -> bytes:
    parts = []
    while length:
        data = os.pread(fd, length, offset)
        if not data:
            raise OSError(errno.EIO, "the machine's memory cannot be read")
        parts.append(data)
        length, offset = length - len(data), offset + len(data)
    return b"".join(parts)
