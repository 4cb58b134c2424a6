"""The processes in which gVisor runs the guest's code (systrap's stubs), below the sandbox process.

While the sandbox process is stopped, a stub goes on with user code to its next system call, or spins waiting for the
answer to its last one. So a machine rests only when these are stopped as well.

A stub that is being made is traced by the sandbox process (ptrace), which would take a signal from elsewhere for the
answer that it waits for: both would hang. So stubs are stopped when all threads of that process are, and those that it
traces just then are left alone: they run nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

_STOPPED = frozenset("TtZX")
"""proc(5): stopped, in a tracing stop, and at the end."""


class Stubs:
    """The stubs of one machine.

    Args:
        find: pids of all processes of the machine; asked again before each signal, because a pid may have become a
            stranger's meanwhile.
    """

    def __init__(self, find: Callable[[], Iterable[int]]) -> None:
        self._find = find
        self._stopped: list[int] = []
        """pidfds, open as long as they are stopped."""

    def stop(self, others: set[int]) -> None:
        """Stop all but `others` and those that are traced. `others` must be stopped (see `are_stopped`): no new ones
        come then."""
        for pidfd in self._untraced(others):
            self._stopped.append(pidfd)
            _send(pidfd, signal.SIGSTOP)

    def all_go_on(self, others: set[int]) -> None:
        """Let all but `others` go on, which somebody else may have stopped."""
        self._stopped += self._untraced(others)
        self.go_on()

    def _untraced(self, others: set[int]) -> list[int]:
        """Descriptors of all but `others` and those that are traced."""
        pidfds: list[tuple[int, int]] = []
        for pid in self._find():
            if pid not in others:
                with contextlib.suppress(OSError):
                    pidfds.append((pid, os.pidfd_open(pid)))
        still_ours = set(self._find())
        found = []
        for pid, pidfd in pidfds:
            if pid in still_ours and not _is_traced(pid):
                found.append(pidfd)
            else:
                os.close(pidfd)
        return found

    def go_on(self) -> None:
        """Let those go on that were stopped."""
        for pidfd in self._stopped:
            _send(pidfd, signal.SIGCONT)
        self.forget()

    def forget(self) -> None:
        """Close the descriptors: the machine is gone."""
        for pidfd in self._stopped:
            os.close(pidfd)
        self._stopped.clear()


def descendants(roots: Iterable[int]) -> list[int]:
    """The roots and all processes below them, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int((entry / "stat").read_bytes().rsplit(b")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, ())
    return found


def are_stopped(pids: Iterable[int]) -> bool:
    """Whether every thread of these processes is stopped: SIGSTOP only asks for it."""
    return all(_state(task) in _STOPPED for pid in pids for task in _tasks(pid))


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []  # it has ended


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text("ascii", "replace").rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return "X"


def _is_traced(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:
        return False
    return "\nTracerPid:\t0\n" not in status


def _send(pidfd: int, number: int) -> None:
    with contextlib.suppress(OSError):  # it has ended, or is not ours to signal
        signal.pidfd_send_signal(pidfd, number)
