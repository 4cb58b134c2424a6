"""All files of a sandbox that its user can write, as the guest tells them, and their content where it is compared."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from emberbox.errors import ExecutionFailed, VmNotAvailable
from emberbox.guest.changes import DEEPEST, MOST_FILES
from emberbox.sandbox.instance import SandboxInstance

LONGEST_COMPARED = 8 << 20
"""Bytes of a file that is read to see whether it differs; a longer one with another mark is taken for changed."""
_TREE_SECONDS = 60.0
_DEEPEST = DEEPEST + 40
"""Folders in a path: the guest's own bound, and those above the home and work directory."""


@dataclass(frozen=True, slots=True)
class File:
    """A file, a link, or (where they were asked for) a folder, which has no mark and no size."""

    kind: str
    size: int
    mode: int
    mark: str
    """It changes whenever the file does: inode, and time of its last change."""
    target: str | None


async def tree(instance: SandboxInstance, *, folders: bool = False) -> dict[str, File]:
    """All files that the user of a sandbox can write, by their paths.

    Raises:
        ExecutionFailed: there are too many, or the machine answers nonsense.
        VmNotAvailable: `folders` were asked of an agent that does not tell them.
    """
    header, payload = await instance.open_channel().call("tree", timeout=_TREE_SECONDS, folders=folders)
    if folders and header.get("exact") is not True:
        raise VmNotAvailable(
            f"Sandbox {instance.id} was started by an older Emberbox, which cannot take back single files safely.",
            remediation="Roll back without `paths`, or use a new sandbox.",
            retryable=False,
        )
    try:
        return await asyncio.to_thread(_parsed, payload)
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError) as exc:
        raise ExecutionFailed("The machine's answer makes no sense.", remediation="Create a new sandbox.") from exc


def _parsed(payload: bytes) -> dict[str, File]:
    rows = json.loads(payload)
    if len(rows) > 2 * MOST_FILES + 1:
        raise ValueError("too many")
    if any(row[0].count("/") > _DEEPEST for row in rows):
        raise ValueError("too deep")
    return {
        str(path): File(str(kind), int(size), int(mode) & 0o7777, str(mark), None if target is None else str(target))
        for path, kind, size, mode, mark, target in rows
    }


async def content(instance: SandboxInstance, path: str, most: int) -> bytes | None:
    """A file, or None if it is longer than `most` bytes, whatever its size was said to be."""
    pieces: list[bytes] = []
    async for piece in instance.files.read_stream(path):
        most -= len(piece)
        if most < 0:
            return None
        pieces.append(piece)
    return b"".join(pieces)
