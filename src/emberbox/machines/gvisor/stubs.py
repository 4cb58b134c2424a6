"""The processes in which gVisor runs the guest's code (systrap's stubs), below the sandbox process.

While the sandbox process is stopped, a stub goes on with user code to its next system call, or spins waiting for the
answer to its last one. So a machine rests only when these are stopped as well.

No other stub may be stopped. One that is being made is traced by the sandbox process (ptrace), which would take a
signal from elsewhere for the answer that it waits for. One that carries out system calls for the sandbox process waits
in seccomp's notification (seccomp_unotify(2)): a signal takes that back, and the sandbox process, which was told of it
already, finds nothing, and gives up the program or itself. Both wait, and take no processor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_STOPPED = frozenset("TtZX")
"""proc(5): stopped, in a tracing stop, and at the end."""
_LOOK_SECONDS = 0.02
_COMPUTED = 2_000_000
"""Nanoseconds of a processor between two looks: no system call for the sandbox process takes so much."""
_PATIENCE = 2.0
"""Seconds for all of it: on a loaded host, the sandbox process took most of one to stop."""


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

    async def stop_computing(self, sandbox: set[int], others: set[int]) -> None:
        """Stop those that compute.

        Args:
            sandbox: processes of the machine that were sent SIGSTOP; where they do not stop, nothing is done.
            others: all that are no stubs.
        """
        end = time.monotonic() + _PATIENCE
        while not all(_state(task) in _STOPPED for pid in sandbox for task in _tasks(pid)):
            if time.monotonic() > end:
                return
            await asyncio.sleep(_LOOK_SECONDS / 10)
        before = self._running(others)
        while before:
            await asyncio.sleep(_LOOK_SECONDS)
            late, now = time.monotonic() > end, self._running(others)
            computing = {pid for pid, ran in now.items() if pid in before and (late or ran - before[pid] >= _COMPUTED)}
            self._stop(computing)
            before = {} if late else {pid: ran for pid, ran in now.items() if pid not in computing}

    def _running(self, others: set[int]) -> dict[int, int]:
        """The stubs that have a processor or wait for one, and the nanoseconds that they have had."""
        found = {}
        for pid in self._find():
            place = Path(f"/proc/{pid}")
            if pid not in others and _state(place) == "R" and not _is_traced(place):
                with contextlib.suppress(OSError, ValueError):
                    found[pid] = int((place / "schedstat").read_text("ascii").split()[0])
        return found

    def _stop(self, pids: set[int]) -> None:
        pidfds: list[tuple[int, int]] = []
        for pid in pids:
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

    def all_go_on(self, others: set[int]) -> None:
        """Let those go on that somebody else has stopped; `others` are none."""
        for pid in self._find():
            if pid not in others and _state(Path(f"/proc/{pid}")) == "T":
                with contextlib.suppress(OSError):
                    self._stopped.append(os.pidfd_open(pid))
        self.go_on()

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


def _is_traced(process: Path) -> bool:
    try:
        status = (process / "status").read_text("ascii", "replace")
    except OSError:
        return False
    return "\nTracerPid:\t0\n" not in status


def _send(pidfd: int, number: int) -> None:
    with contextlib.suppress(OSError):  # it has ended, or is not ours to signal
        signal.pidfd_send_signal(pidfd, number)
