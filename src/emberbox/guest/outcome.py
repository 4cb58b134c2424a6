"""Why an execution ended: pure functions from what was seen to the `reason` of its `done` event."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

DISK_FULL = (b"No space left on device", b"ENOSPC", b"Disk quota exceeded", b"StorageFull")
NO_PROCESSES = (b"Resource temporarily unavailable", b"can't start new thread", b"Cannot fork", b"EAGAIN")
NO_MEMORY = (
    b"MemoryError",
    b"heap out of memory",
    b"Cannot allocate memory",
    b"cannot allocate",
    b"std::bad_alloc",
    b"memory allocation of ",
    b"out of memory",
)
CAUSES = frozenset({"memory", "processes", "disk"})
TEXT_LIMITS = {"name": 200, "value": 10_000, "traceback": 60_000}


class Ending:
    """What is known about the end of one execution."""

    __slots__ = (
        "cause",
        "died",
        "exit_code",
        "interrupted",
        "killed",
        "memory_kill",
        "stderr",
        "timed_out",
        "truncated",
    )

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self.timed_out = False
        self.killed = False
        """A request sent a deadly signal, or ended the context."""
        self.interrupted = False
        """A request sent SIGINT and the code gave in."""
        self.died = False
        """The process died in a way that is no ordinary exit."""
        self.memory_kill = False
        """The kernel of the machine killed something for want of memory."""
        self.cause: str | None = None
        """What the language kernel says about it."""
        self.stderr = b""
        """The last words on stderr."""
        self.truncated = False


def reason(ending: Ending) -> str:
    """The `reason` field for this ending."""
    if ending.timed_out:
        return "processes" if ending.cause == "processes" else "timeout"
    if ending.killed:
        return "killed"
    if ending.interrupted:
        return "interrupted"
    if ending.exit_code:
        cause = ending.cause or ("memory" if ending.memory_kill else None) or _cause_in(ending)
        if cause in CAUSES:
            return str(cause)
    if ending.died:
        return "crashed"
    return "output-truncated" if ending.truncated else "completed"


def _cause_in(ending: Ending) -> str | None:
    for cause, words in (("disk", DISK_FULL), ("processes", NO_PROCESSES), ("memory", NO_MEMORY)):
        if any(word in ending.stderr for word in words):
            return cause
    return None


def clean_error(value: Any) -> Dict[str, str] | None:
    """The `error` field that a kernel sent, checked and bounded; raises ValueError when it is nonsense."""
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in TEXT_LIMITS):
        raise ValueError("a kernel sent an error that is none")
    return {key: shorten(value[key], limit) for key, limit in TEXT_LIMITS.items()}


def shorten(text: str, limit: int) -> str:
    """`text` without its middle where it is longer than `limit`."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
