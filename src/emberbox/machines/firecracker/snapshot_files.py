"""What a snapshot of a microVM consists of: `state` and `memory` of Firecracker's, and `machine.json` of ours, which
says what else it depends on. Firecracker trusts these files, and so do we: their folder is private."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pydantic import ValidationError

from emberbox.errors import VmNotAvailable
from emberbox.machines.base import Snapshot
from emberbox.models import Model

MARKS = "machine.json"
LAYOUT = 1
"""Of the place in which a machine finds its disk and its socket (place.py), whose names are in its state."""


class Marks(Model):
    """What a snapshot depends on, besides its files."""

    layout: int = LAYOUT
    firecracker: str
    """Version: the format of the state is its own."""
    processor: str
    """Vendor and model: a guest must not find itself on another one."""
    disk: str
    """SHA-256 of the root disk, of which the guest's kernel remembers a part."""


def write_marks(directory: Path, marks: Marks) -> None:
    """Raises OSError."""
    (directory / MARKS).write_text(marks.model_dump_json(), encoding="utf-8")


def check_marks(snapshot: Snapshot, ours: Marks) -> None:
    """Raises VmNotAvailable: the snapshot is of no use here; the message says why."""
    try:
        theirs = Marks.model_validate_json((snapshot.directory / MARKS).read_bytes())
    except (OSError, ValidationError) as exc:
        raise VmNotAvailable(
            f"Snapshot {snapshot.directory} is damaged: {MARKS} cannot be read.",
            remediation="Take a new one.",
            retryable=False,
        ) from exc
    what = {
        "layout": "was taken by another version of Emberbox",
        "firecracker": "was taken by Firecracker {theirs}, this is {ours}",
        "processor": "was taken on another processor ({theirs}), this is {ours}",
        "disk": "was taken of another root disk than the one of its image",
    }
    for name, text in what.items():
        there, here = getattr(theirs, name), getattr(ours, name)
        if there != here:
            raise VmNotAvailable(
                f"Snapshot {snapshot.directory} " + text.format(theirs=there, ours=here) + ".",
                remediation="Take a new one here.",
                retryable=False,
            )


def merge(base: Path | None, changes: Path, target: Path) -> None:
    """Write the memory of a machine: what its last snapshot (`base`; None: there is none) had, and what `changes` has
    instead. Pages that nobody ever wrote to are holes. Where the file system can, nothing is copied but references.

    Raises:
        OSError: the disk refused.
    """
    if base is None:
        changes.rename(target)
        return
    with target.open("xb") as file:
        os.truncate(file.fileno(), changes.stat().st_size)
        for path in (base, changes):
            with path.open("rb") as source:
                _copy_data(source.fileno(), file.fileno())
    target.chmod(0o444)
    changes.unlink()


def _copy_data(source: int, target: int) -> None:
    """Copy all of a file but its holes, each part to its own place."""
    size, offset = os.fstat(source).st_size, 0
    while offset < size:
        try:
            offset = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(source, offset, os.SEEK_HOLE)
        while offset < end:
            copied = os.copy_file_range(source, target, end - offset, offset, offset)
            if copied == 0:
                raise OSError(errno.EIO, "a snapshot became shorter")
            offset += copied
