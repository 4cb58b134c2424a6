"""Why an execution ended: pure functions from what was seen to the `reason` of its `done` event."""

from __future__ import annotations

import signal

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


class ExitInfo:
    """What is known about the end of one execution."""

    __slots__ = (
        "cause",
        "cut_off",
        "died",
        "exit_code",
        "files",
        "interrupted",
        "killed",
        "memory_kill",
        "starved",
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
        self.starved = False
        """The agent killed something of it for want of memory."""
        self.cause: str | None = None
        """What the language kernel says about it."""
        self.stderr = b""
        """The last words on stderr."""
        self.truncated = False
        self.files = 0
        """Bytes of memory that the user's files take."""
        self.cut_off = False
        """The code has closed what its interpreter is reached by."""


def reason(ending: ExitInfo) -> str:  # noqa: PLR0911 - one for each
    """The `reason` field for this ending."""
    if ending.starved and (ending.exit_code or ending.timed_out):
        return "memory"
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


def death(ending: ExitInfo, language: str, memory: int) -> Dict[str, str]:
    """The `error` of code whose interpreter has died with it; `memory` is what programs may use, in bytes."""
    why, signalled = reason(ending), ending.exit_code - 128
    name = "InterpreterDied"
    if why == "memory":
        name = "MemoryError"
        limit = f" than {memory >> 20} MiB of memory" if memory > 0 else " memory than there is"
        text = f"the program used more{limit} and was killed"
        if memory > 0 and ending.files * 4 > memory:
            text += f"; files in the home directory, /tmp and /dev/shm take {ending.files >> 20} MiB of it: remove some"
    elif why == "timeout":
        text = "the program did not stop when its time was over, and was killed"
    elif why == "processes":
        text = "no process could be started: too many are running"
    elif why in ("killed", "interrupted"):
        text = "the program was killed on request"
    elif ending.cut_off:
        text = "the program closed the descriptors of its interpreter, which could not go on and was killed"
    elif signalled > 0:
        text = f"the program was ended by signal {signalled} ({_signal_name(signalled)})"
    else:
        text = f"the program ended its interpreter with exit code {ending.exit_code}"
    text += f"; what it had defined in this context is gone, and the next {language} code begins anew"
    return {"name": name, "value": text, "traceback": f"{name}: {text}"}


def replaced(code: int) -> Dict[str, str]:
    """The `error` of code that became another program by `exec`, which ended with this code."""
    text = f"the code became another program by exec, which ended with exit code {code}; subprocess keeps the context"
    return {"name": "InterpreterReplaced", "value": text, "traceback": f"InterpreterReplaced: {text}"}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _cause_in(ending: ExitInfo) -> str | None:
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
