"""Files of two points of a sandbox's life: what differs, and taking back some of them.

A file that has the same mark (inode and time of its last change) in both is the same; others are read and compared.
"""

from __future__ import annotations

import difflib
import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from emberbox.errors import ExecutionFailed, RollbackFailed, ValidationFailed
from emberbox.models import FileDiff
from emberbox.sandbox.outcome import printable
from emberbox.sandbox.session import Session

_LONGEST_TEXT = 1 << 18
"""Bytes of a file that is shown as a difference of lines."""
_LONGEST_COMPARED = 8 << 20
"""Bytes of a file that is read to see whether it differs; a longer one with another mark is taken for changed."""
_MOST_TEXTS = 200
"""Files that are shown as a difference of lines; the others are only named."""


@dataclass(frozen=True, slots=True)
class _File:
    kind: str
    size: int
    mode: int
    mark: str
    target: str | None


async def _tree(session: Session) -> dict[str, _File]:
    """All files that the user of a sandbox can write."""
    channel = session.open_channel()
    _, payload = await channel.call("tree", timeout=_TREE_SECONDS)
    try:
        return {
            str(path): _File(str(kind), int(size), int(mode), str(mark), None if target is None else str(target))
            for path, kind, size, mode, mark, target in json.loads(payload)
        }
    except (ValueError, TypeError, RecursionError) as exc:
        raise ExecutionFailed("The machine's answer makes no sense.", remediation="Create a new sandbox.") from exc


_TREE_SECONDS = 60.0


async def differences(then: Session, now: Session) -> list[FileDiff]:
    """Files that differ, sorted by path, with the lines that differ where both are text."""
    before, after = await _tree(then), await _tree(now)
    found: list[FileDiff] = []
    texts = 0
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old == new:
            continue
        readable = texts < _MOST_TEXTS
        a = await _content(then, path, old, other=new) if readable else None
        b = await _content(now, path, new, other=old) if readable else None
        if old is not None and new is not None and a is not None and a == b and old.mode == new.mode:
            continue
        diff = _lines(path, a, b, old, new)
        texts += diff is not None
        found.append(
            FileDiff(
                path=printable(path),
                change=_change(old, new),
                size_before=None if old is None else old.size,
                size_after=None if new is None else new.size,
                diff=diff,
            )
        )
    return found


def _change(old: _File | None, new: _File | None) -> Literal["created", "changed", "deleted"]:
    if old is None:
        return "created"
    return "deleted" if new is None else "changed"


async def _content(session: Session, path: str, file: _File | None, *, other: _File | None) -> bytes | None:
    """Bytes of one side: empty where there is no file, None where it is not to be read."""
    if file is None:
        return b""
    if file.kind == "symlink":
        return (file.target or "").encode("utf-8", "surrogateescape")
    longest = _LONGEST_COMPARED if other is not None and other.size == file.size else _LONGEST_TEXT
    if file.kind != "file" or file.size > longest or not path.isprintable():
        return None
    return await session.files.read_bytes(path)


def _lines(path: str, a: bytes | None, b: bytes | None, old: _File | None, new: _File | None) -> str | None:
    """A unified diff; None for what is no text, or too long."""
    if a is None or b is None or max(len(a), len(b)) > _LONGEST_TEXT or b"\0" in a + b:
        return None
    try:
        one, other = (side.decode().splitlines(keepends=True) for side in (a, b))
    except UnicodeDecodeError:
        return None
    names = ("/dev/null" if old is None else f"a{path}", "/dev/null" if new is None else f"b{path}")
    lines = difflib.unified_diff(one, other, *names)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


async def take_back(then: Session, now: Session, paths: Sequence[str]) -> list[str]:
    """Make the named files and folders in `now` what they are in `then`; the files that were not the same.

    Raises:
        ValidationFailed: a path exists in neither, or is none.
        RollbackFailed: a file could not be written; the message says which, those before it are done.
    """
    before, after = await _tree(then), await _tree(now)
    wanted = _below(paths, now.image.template.workdir, before.keys() | after.keys())
    affected: list[str] = []
    for path in sorted(wanted):
        old, new = before.get(path), after.get(path)
        if old == new or await _same(then, now, path, old, new):
            continue
        try:
            await _restore(then, now, path, old, new)
        except ExecutionFailed as exc:
            done = f"; these are done: {', '.join(affected)}" if affected else ""
            raise RollbackFailed(f"{printable(path)} could not be taken back: {exc.message}{done}") from exc
        affected.append(printable(path))
    return affected


def _below(paths: Sequence[str], workdir: str, known: set[str]) -> set[str]:
    wanted: set[str] = set()
    for path in paths:
        if not isinstance(path, str) or not path or "\0" in path:
            raise ValidationFailed(f"{path!r:.80} is no path.", remediation="Name files or folders of the sandbox.")
        full = posixpath.normpath(posixpath.join(workdir, path))
        found = {name for name in known if name == full or name.startswith(full.rstrip("/") + "/")}
        if not found:
            raise ValidationFailed(
                f"There is no file {full!r:.200}, neither now nor then.",
                remediation="Name files or folders below the home directory or /tmp; diff() lists what differs.",
            )
        wanted |= found
    return wanted


async def _same(then: Session, now: Session, path: str, old: _File | None, new: _File | None) -> bool:
    """Only the mark differs."""
    if (
        old is None
        or new is None
        or (old.kind, old.size, old.mode, old.target) != (new.kind, new.size, new.mode, new.target)
    ):
        return False
    a = await _content(then, path, old, other=new)
    return a is not None and a == await _content(now, path, new, other=old)


async def _restore(then: Session, now: Session, path: str, old: _File | None, new: _File | None) -> None:
    if old is None:
        await now.files.remove(path)
    elif old.kind == "symlink":
        await _link(now, old.target or "", path)
    elif old.kind == "file":
        if new is not None and new.kind != "file":
            await now.files.remove(path)  # else it would be written through a link
        await now.files.write(path, then.files.read_stream(path), mode=old.mode)


async def _link(session: Session, target: str, path: str) -> None:
    made = await session.runner.exec(["ln", "-sfnT", "--", target, path], timeout=30)
    if made.exit_code != 0:
        raise ExecutionFailed(made.stderr[:500] or "ln failed")
