"""The memory watch: ends the program that takes too much, before the machine's cap has to kill all of them.

What counts is what the machine uses, not what programs have reserved: thread stacks, V8 and WebAssembly map far more
than they ever touch.
"""

from __future__ import annotations

import os
import signal

from .processes import family, out_of_memory_kills, processes_of, send_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterable

    from .executions import Execution
    from .limits import Settings
    from .loop import Loop

FASTEST_GROWTH = 4 << 30
"""Bytes a second that programs can touch for the first time: how long it may take until they have used up the rest."""
SHORTEST, LONGEST = 0.02, 0.25
"""Seconds between two looks."""
SMALL = 16
"""A process with less than this part of the memory is not why there is none left."""
SHARE = 0.85
"""Of the memory that a machine's own kernel manages, which programs may use."""
PAGE = os.sysconf("SC_PAGE_SIZE")


def _sizes() -> Dict[bytes, int]:
    sizes: Dict[bytes, int] = {}
    with open("/proc/meminfo", "rb") as file:
        for line in file:
            name, _, rest = line.partition(b":")
            sizes[name] = int(rest.split()[0]) * 1024
    return sizes


def used() -> int:
    """Bytes that the machine uses, files in memory included."""
    sizes = _sizes()
    return sizes[b"MemTotal"] - sizes.get(b"MemAvailable", sizes.get(b"MemFree", 0))


def left(limit: int, *, kernel: bool) -> int:
    """Bytes that programs may still use, below zero where it is too much already.

    Where the machine has a `kernel` of its own, that needs some of the memory, and its balloon may hold more.
    """
    if not kernel:
        return limit - used()
    sizes = _sizes()
    return min(limit, int(sizes[b"MemTotal"] * SHARE)) - sizes.get(b"AnonPages", 0) - sizes.get(b"Shmem", 0)


def resident(pid: int) -> int:
    """Bytes that a process has in memory; 0 when it has gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE
    except (OSError, ValueError, IndexError):
        return 0


class MemoryWatch:
    """Looks while something runs, and never else: an idle machine sleeps.

    Args:
        loop: the agent's.
        settings: `memory` is the limit.
        running: what is under way, asked at each look.
    """

    def __init__(self, loop: Loop, settings: Settings, running: Callable[[], Iterable[Execution]]) -> None:
        self._loop = loop
        self._settings = settings
        self._running = running
        self._kernel = out_of_memory_kills() is not None
        self._timer: int | None = None

    def begin(self) -> None:
        """Something runs now."""
        if self._settings.memory > 0 and self._timer is None:
            self._timer = self._loop.later(SHORTEST, self._look)

    def end(self) -> None:
        """Nothing runs any more."""
        self._loop.cancel(self._timer)
        self._timer = None

    def _look(self) -> None:
        rest = left(self._settings.memory, kernel=self._kernel)
        pause = min(LONGEST, max(SHORTEST, rest / FASTEST_GROWTH))
        if rest <= 0 and self._relieve():
            pause = LONGEST  # what has been killed takes a moment to give everything back
        self._timer = self._loop.later(pause, self._look)

    def _relieve(self) -> bool:
        """Kill the largest process of what runs; the second time all that belongs to the same execution."""
        table = processes_of(self._settings.uid)
        running = list(self._running())
        owners: Dict[int, Execution] = {}
        for execution in running:
            others = {pid for other in running if other is not execution for pid in other.pids()}
            for root in execution.pids():
                owners.update(dict.fromkeys(family(table, root, execution.began, others), execution))
        sizes = {pid: resident(pid) for pid in table}
        suspects = [pid for pid in owners if sizes[pid] > self._settings.memory // SMALL] or list(sizes)
        if not suspects:
            return False
        largest = max(suspects, key=lambda pid: sizes[pid])
        owner = owners.get(largest)
        if owner is not None and (owner.starved or largest in owner.pids()):
            owner.kill()
        else:
            send_signal(largest, signal.SIGKILL)
        if owner is not None:
            owner.starved = True
        return True
