"""Exceptions of user code as text: only the user's frames, the user's lines."""

from __future__ import annotations

import errno
import linecache
import os
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE_BUDGET = 2 << 20
CELL_OVERHEAD = 600
"""Bytes of old cells kept for tracebacks and inspect.getsource."""
VALUE_LIMIT = 10_000
TRACEBACK_LIMIT = 60_000


class Sources:
    """Makes the text of cells known to linecache, and forgets the oldest when they grow too large."""

    def __init__(self) -> None:
        self._cells: List[tuple[str, int]] = []
        self._size = 0

    def texts(self) -> List[tuple[str, str]]:
        """Names and texts of the cells that are known, the oldest first."""
        return [(name, "".join(linecache.getlines(name))) for name, _ in self._cells]

    def add(self, name: str, source: str) -> None:
        """Remember the text of a cell."""
        # A modification time of None keeps linecache from looking for the file.
        linecache.cache[name] = (len(source), None, [line + "\n" for line in source.split("\n")], name)
        self._cells.append((name, len(source) + CELL_OVERHEAD))
        self._size += len(source) + CELL_OVERHEAD
        while self._size > SOURCE_BUDGET and len(self._cells) > 1:
            old, size = self._cells.pop(0)
            self._size -= size
            linecache.cache.pop(old, None)


def describe(exc: BaseException, cell: str) -> Dict[str, str]:
    """The `error` of an execution."""
    try:
        value = str(exc)
    except Exception as problem:  # noqa: BLE001 - a __str__ of the user may raise anything
        value = f"<str() of the exception raised {type(problem).__name__}>"
    try:
        text = _format(exc, cell)
    except Exception as problem:  # noqa: BLE001 - likewise for whatever formatting calls
        text = f"<no traceback: {type(problem).__name__}>"
    return {
        "name": type(exc).__name__,
        "value": value[:VALUE_LIMIT].encode("utf-8", "backslashreplace").decode(),
        "traceback": _bounded(text).encode("utf-8", "backslashreplace").decode(),
    }


def _bounded(text: str) -> str:
    if len(text) <= TRACEBACK_LIMIT:
        return text
    half = TRACEBACK_LIMIT // 2
    return f"{text[:half]}\n  ...\n{text[-half:]}"


def _format(exc: BaseException, cell: str) -> str:
    report = traceback.TracebackException(type(exc), exc, exc.__traceback__, compact=True)
    _keep_user_frames(report, cell, set())
    return "".join(report.format())


def _keep_user_frames(report: Any, cell: str, seen: set[int]) -> None:
    if report is None or id(report) in seen:
        return
    seen.add(id(report))
    frames = list(report.stack or ())
    first = next((index for index, frame in enumerate(frames) if frame.filename.startswith("<cell ")), None)
    # What comes before the first cell is this kernel, and asyncio where the code awaits.
    frames = [frame for frame in frames[first or 0 :] if not frame.filename.startswith(HERE)]
    report.stack = traceback.StackSummary.from_list(frames)
    for other in [report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())]:
        _keep_user_frames(other, cell, seen)


def cause_of(exc: BaseException) -> str | None:
    """Which limit of the machine this exception speaks of, if any."""
    seen: set[int] = set()
    current: BaseException | None = exc
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, MemoryError):
            return "memory"
        if isinstance(current, OSError):
            if current.errno in (errno.ENOSPC, errno.EDQUOT):
                return "disk"
            if current.errno == errno.EAGAIN and _forked(current):
                return "processes"
            if current.errno == errno.ENOMEM:
                return "memory"
        if isinstance(current, RuntimeError) and "can't start new thread" in str(current):
            return "processes"
        current = current.__cause__ or current.__context__
    return None


def _forked(exc: OSError) -> bool:
    """Whether EAGAIN came from making a process and not from a descriptor that does not block."""
    frames = traceback.extract_tb(exc.__traceback__)
    line = (frames[-1].line or "") if frames else ""
    return any(word in line for word in ("fork", "spawn", "Popen"))
