"""All files of a sandbox that its user can write, as the guest tells them, and their content where it is compared."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from emberbox.errors import ExecutionFailed, VmNotAvailable
from emberbox.guest.changes import MOST_FILES
from emberbox.guest.file_operations import EXACT
from emberbox.guest.trees import CLOSED, DEEPEST_FILES, OWN
from emberbox.sandbox.instance import SandboxInstance

LONGEST_COMPARED = 8 << 20
"""Bytes of a file that is read to see whether it differs; a longer one with another mark is taken for changed."""
_TREE_SECONDS = 60.0
_DEEPEST = DEEPEST_FILES + 40
"""Folders in a path: the guest's own bound, and those above the home and work directory."""
_MOST_ROOTS = 1000


@dataclass(frozen=True, slots=True)
class File:
    """A file, a link, or (where they were asked for) a folder, which has no size, and a mark only if it is closed or
    the agent's."""

    kind: str
    size: int
    mode: int
    mark: str
    """It changes whenever the file does: inode, and time of its last change."""
    target: str | None

    @property
    def closed(self) -> bool:
        """Whether it is a folder whose content cannot be seen."""
        return self.kind == "dir" and self.mark == CLOSED

    @property
    def own(self) -> bool:
        """Whether it is a folder in which the agent keeps something."""
        return self.kind == "dir" and self.mark == OWN


@dataclass(frozen=True, slots=True)
class Room:
    """A file system below which the user can write."""

    root: str
    device: int
    free: int


async def tree(instance: SandboxInstance) -> dict[str, File]:
    """All files that the user of a sandbox can write, by their paths.

    Raises:
        ExecutionFailed: there are too many, or the machine answers nonsense.
    """
    _, payload = await instance.open_channel().call("tree", timeout=_TREE_SECONDS, folders=False)
    return await _understood(payload)


async def whole_tree(instance: SandboxInstance) -> tuple[dict[str, File], list[Room]]:
    """The same with folders, those at the top included, and what their file systems still take.

    Raises:
        ExecutionFailed: as of `tree`.
        VmNotAvailable: an agent does not tell them.
    """
    header, payload = await instance.open_channel().call("tree", timeout=_TREE_SECONDS, folders=True)
    if header.get("exact") != EXACT:
        raise VmNotAvailable(
            f"Sandbox {instance.id} was started by an older Emberbox, which cannot take back single files safely.",
            remediation="Roll back without `paths`, or use a new sandbox.",
            retryable=False,
        )
    try:
        rooms = [Room(str(root), int(device), int(free)) for root, device, free in header["free"][:_MOST_ROOTS]]
    except (ValueError, TypeError, LookupError, OverflowError) as exc:
        raise _nonsense() from exc
    return await _understood(payload), rooms


async def _understood(payload: bytes) -> dict[str, File]:
    try:
        return await asyncio.to_thread(_parsed, payload)
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError) as exc:
        raise _nonsense() from exc


def _nonsense() -> ExecutionFailed:
    return ExecutionFailed("The guest's answer is not valid.", remediation="Create a new sandbox.")


def _parsed(payload: bytes) -> dict[str, File]:
    rows = json.loads(payload)
    if len(rows) > 2 * MOST_FILES + 1:
        raise ValueError("too many")
    if any(row[0].count("/") > _DEEPEST for row in rows):
        raise ValueError("too deep")
    return {
        _name(path): File(str(kind), int(size), int(mode) & 0o7777, str(mark), None if target is None else str(target))
        for path, kind, size, mode, mark, target in rows
    }


def _name(path: str) -> str:
    path.encode("utf-8", "surrogateescape")  # what else there is of surrogate pairs is no name
    return path


async def content(instance: SandboxInstance, path: str, most: int) -> bytes | None:
    """A file, or None if it is longer than `most` bytes, whatever its size was said to be."""
    pieces: list[bytes] = []
    async for piece in instance.files.read_stream(path):
        most -= len(piece)
        if most < 0:
            return None
        pieces.append(piece)
    return b"".join(pieces)
