"""What a snapshot of a microVM consists of: `state` and `memory` of Firecracker's, and `machine.json` of ours, which
says what else it depends on. Firecracker trusts these files, and so do we: their folder is private."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from emberbox.machines.microvm.fingerprint import MicroVmFingerprint
from emberbox.machines.microvm.sparse import written_parts

LAYOUT = 1
"""Of the place in which a machine finds its disk and its socket (place.py), whose names are in its state."""
_PAGE = 4096
_ZEROS = bytes(_PAGE)
_CHUNK = 1 << 20
_REFUSALS = (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL)
"""Of copy_file_range(2): snapshots may be on another file system than the machines that they are copied from."""


class Fingerprint(MicroVmFingerprint):
    """What a snapshot depends on, besides its files."""

    words: ClassVar[Mapping[str, str]] = {
        "layout": "was taken by another version of Emberbox",
        "firecracker": "was taken by Firecracker {theirs}, this is {ours}",
        "processor": "was taken on another processor ({theirs}), this is {ours}",
        "disk": "was taken of another root disk than the one of its image",
    }
    layout: int = LAYOUT
    firecracker: str
    """Version: the format of the state is its own."""
    processor: str
    """Vendor and model: a guest must not find itself on another one."""
    disk: str
    """SHA-256 of the root disk, of which the guest's kernel remembers a part."""
    disk_bandwidth_mb: int | None = None
    disk_operations: int | None = None
    """Limits of the disk that Firecracker's state has; a copy may have others (disk_limits.py)."""


def merge(base: Path | None, changes: Path, target: Path) -> None:
    """Write the memory of a machine: what its last snapshot (`base`; None: there is none) had, and what `changes` has
    instead. Pages that nobody ever wrote to, and those that have become zeros, are holes. Where the file system can,
    nothing is copied but references.

    Raises:
        OSError: the disk refused.
    """
    with target.open("xb") as file, changes.open("rb") as newer:
        os.truncate(file.fileno(), changes.stat().st_size)
        changed = list(_runs(newer.fileno()))
        if base is not None:
            with base.open("rb") as older:
                for start, end in _without(written_parts(older.fileno()), changed):
                    _copy(older.fileno(), file.fileno(), start, end)
        for start, end, zeros in changed:
            if not zeros:
                _copy(newer.fileno(), file.fileno(), start, end)
    target.chmod(0o444)
    changes.unlink()


def _runs(file: int) -> Iterator[tuple[int, int, bool]]:
    """Start and end of each part that is no hole, divided into pages that are nothing but zeros (True) and others."""
    for start, end in written_parts(file):
        begun, kind = start, False
        for offset in range(start, end, _CHUNK):
            chunk = os.pread(file, min(_CHUNK, end - offset), offset)
            for at in range(0, len(chunk), _PAGE):
                zeros = chunk.startswith(_ZEROS, at)
                if zeros is not kind:
                    if begun < offset + at:
                        yield begun, offset + at, kind
                    begun, kind = offset + at, zeros
        yield begun, end, kind


def _without(parts: Iterable[tuple[int, int]], others: Sequence[tuple[int, int, bool]]) -> Iterator[tuple[int, int]]:
    """What of some parts lies in none of others; both are in order."""
    number = 0
    for part, end in parts:
        start = part
        while number < len(others) and others[number][1] <= start:
            number += 1
        following = number
        while start < end and following < len(others) and others[following][0] < end:
            if start < others[following][0]:
                yield start, others[following][0]
            start = max(start, others[following][1])
            following += 1
        if start < end:
            yield start, end


def _copy(source: int, target: int, start: int, end: int) -> None:
    """Copy a part of a file to its own place."""
    while start < end:
        try:
            copied = os.copy_file_range(source, target, end - start, start, start)
        except OSError as exc:
            if exc.errno not in _REFUSALS:
                raise
            copied = os.pwrite(target, os.pread(source, min(_CHUNK, end - start), start), start)
        if copied == 0:
            raise OSError(errno.EIO, "a snapshot became shorter")
        start += copied
