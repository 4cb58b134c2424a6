"""The processes in which gVisor runs the guest's code (systrap's stubs), below the sandbox process.

While the sandbox process is stopped, a stub goes on with user code to its next system call, or spins waiting for the
answer to its last one. So a machine rests only when these are stopped as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path


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
        """Stop all but `others`, which must be stopped already: no new ones come then."""
        pidfds: list[tuple[int, int]] = []
        for pid in self._find():
            if pid not in others:
                with contextlib.suppress(OSError):
                    pidfds.append((pid, os.pidfd_open(pid)))
        still_ours = set(self._find())
        for pid, pidfd in pidfds:
            self._stopped.append(pidfd)
            if pid in still_ours:
                _send(pidfd, signal.SIGSTOP)

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


def _send(pidfd: int, number: int) -> None:
    with contextlib.suppress(OSError):  # it has ended, or is not ours to signal
        signal.pidfd_send_signal(pidfd, number)
