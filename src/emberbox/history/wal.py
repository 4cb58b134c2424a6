"""What an open history writes down at once, before its database has it: one line of JSON for each entry.

A line is written with one call, so that it survives the end of this process at any instant; the next one that opens the
history takes what the database does not have. The file is that of the owner (see `owners`), which is locked for life.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from emberbox.models import CommandHistoryEntry


class Journal:
    """The journal of this owner.

    Args:
        fd: open for reading and writing; not closed here.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = 0

    def append(self, entry: CommandHistoryEntry) -> None:
        """Write an entry down; raises OSError, and then nothing of it is there."""
        line = entry.model_dump_json().encode() + b"\n"
        try:
            view = memoryview(line)
            while view:
                written = os.pwrite(self._fd, view, self._size + len(line) - len(view))
                view = view[written:]
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(line)

    def settled(self) -> None:
        """The database has all that was written down."""
        if self._size:
            os.ftruncate(self._fd, 0)
            self._size = 0


def read_journal(path: Path) -> list[CommandHistoryEntry]:
    """The entries of a journal in their order; a last line that was cut short is none."""
    found = []
    try:
        data = path.read_bytes()
    except OSError:
        return []
    for line in data.split(b"\n")[:-1]:
        try:
            found.append(CommandHistoryEntry.model_validate_json(line))
        except ValidationError:
            continue
    return found
