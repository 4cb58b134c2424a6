"""Which files differ between two points of a sandbox's life, and in which lines.

A file that has the same mark (inode and time of its last change) in both is the same; others are read and compared.
Both points belong to whoever runs code in them: what is read, looked for and answered has bounds, and beyond them a
file is only said to differ.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal

from emberbox.errors import GuestFileError
from emberbox.models import FileDiff
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.snapshots.file_trees import LONGEST_COMPARED, File, content, tree
from emberbox.sandbox.snapshots.unified import MOST_STEPS, Effort, TooDifferent, unified_diff

LONGEST_TEXT = 1 << 18
"""Bytes of a file that is shown as a difference of lines."""
MOST_TEXTS = 200
"""Files that are shown so; the others are only named."""
MOST_DIFF = 4 << 20
"""Characters of all these differences."""
MOST_FILES_READ = 2_000
"""Files that are read, on both sides; the others with another mark are taken for changed."""
MOST_READ = 64 << 20
"""Bytes of them."""
MOST_STEPS_IN_ALL = 4 * MOST_STEPS
LEAST_STEPS = 2_000
"""Of each file in any case: expensive ones do not keep small ones from being shown."""


@dataclass(slots=True)
class _Left:
    """What one call may still read, look for and answer."""

    texts: int = MOST_TEXTS
    characters: int = MOST_DIFF
    files: int = MOST_FILES_READ
    read: int = MOST_READ
    effort: Effort = field(default_factory=lambda: Effort(MOST_STEPS_IN_ALL))


async def diff(then: SandboxInstance, now: SandboxInstance) -> list[FileDiff]:
    """Files that differ, sorted by path, with the lines that differ where both are text and not too much."""
    before, after = await tree(then), await tree(now)
    left = _Left()
    found: list[FileDiff] = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old == new:
            continue
        a = await _content(then, path, old, new, left)
        b = None if a is None else await _content(now, path, new, old, left)
        if old is not None and new is not None and a is not None and a == b and _alike(old, new):
            continue
        found.append(
            FileDiff(
                path=path,
                change=_change(old, new),
                size_before=None if old is None else old.size,
                size_after=None if new is None else new.size,
                diff=None if a is None or b is None else await _lines(path, (old, a), (new, b), left),
            )
        )
    return found


def _alike(old: File, new: File) -> bool:
    return (old.kind, old.mode, old.target) == (new.kind, new.mode, new.target)


def _change(old: File | None, new: File | None) -> Literal["created", "changed", "deleted"]:
    if old is None:
        return "created"
    return "deleted" if new is None else "changed"


async def _content(
    instance: SandboxInstance, path: str, file: File | None, other: File | None, left: _Left
) -> bytes | None:
    """Bytes of one side: empty where there is no file, None where it is not to be read."""
    if file is None:
        return b""
    if file.kind == "symlink":
        return (file.target or "").encode("utf-8", "surrogatepass")
    same_size = other is not None and other.kind == "file" and other.size == file.size
    most = min(left.read, LONGEST_COMPARED if same_size else LONGEST_TEXT)
    shown = left.texts > 0 and path.isprintable()
    if file.kind != "file" or file.size > most or left.files <= 0 or not (same_size or shown):
        return None
    left.files -= 1
    try:
        data = await content(instance, path, most)
    except GuestFileError:
        return None  # changed meanwhile: it is told that it differs
    left.read -= most if data is None else len(data)
    return data


async def _lines(
    path: str, before: tuple[File | None, bytes], after: tuple[File | None, bytes], left: _Left
) -> str | None:
    """A unified diff; None for what is no text, too long, or too much work."""
    (old, a), (new, b) = before, after
    if left.texts <= 0 or not path.isprintable() or max(len(a), len(b)) > LONGEST_TEXT or b"\0" in a or b"\0" in b:
        return None
    try:
        one, other = a.decode(), b.decode()
    except UnicodeDecodeError:
        return None
    names = ("/dev/null" if old is None else f"a{path}", "/dev/null" if new is None else f"b{path}")
    effort = Effort(max(LEAST_STEPS, min(MOST_STEPS, left.effort.left)))
    given = effort.left
    try:
        diff = await asyncio.to_thread(unified_diff, one, other, *names, effort)
    except TooDifferent:
        return None
    finally:
        left.effort.left -= given - max(0, effort.left)
    if len(diff) > left.characters:
        return None
    left.texts -= 1
    left.characters -= len(diff)
    return diff
