"""The memory watch: ends the program that takes too much, before the machine's cap has to kill all of them.

What counts is what the machine uses, not what programs have reserved: thread stacks, V8 and WebAssembly map far more
than they ever touch.
"""

from __future__ import annotations

import os
import signal

from .processes import (
    CROWD,
    Held,
    crowded,
    family,
    kill_leftovers,
    out_of_memory_kills,
    own_machine,
    processes_of,
    send_signal,
)
from .shared_memory import remove_shared_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterable, List

    from .executions import Execution
    from .limits import Settings
    from .loop import Loop
    from .processes import Process

FASTEST_GROWTH = 4 << 30
"""Bytes a second that programs can touch for the first time: how long it may take until they have used up the rest."""
SHORTEST, LONGEST = 0.01, 0.25
"""Seconds between two looks."""
LONGEST_AFTER = 1.0
"""Seconds between two looks at what has been left behind, where nothing runs."""
MORE = 0.12
"""Of the limit: what may be used beyond it where the memory was full when the execution began. The machine has 0.17 of
it beyond the limit."""
MOST = 0.7
"""Of the processes that the user may have: what executions that are over have left is ended where it takes so many. (A
fork bomb at the limit ends and begins many at a time.)"""
SMALL = 16
"""A process with less than this part of the memory is not why there is none left."""
SHARE = 0.85
"""Of the memory that a machine's own kernel manages, which programs may use."""
AHEAD = 2
"""Where looks come late, so much of what was used up between two of them must be left for the next."""
LATE = 0.1
"""Seconds by which a look came too late: what runs keeps the processors from the agent."""
MEMINFO_SIZE = 1 << 13
_opened: List[int] = []
PAGE = os.sysconf("SC_PAGE_SIZE")


def _sizes() -> Dict[bytes, int]:
    if not _opened:  # kept open: where a fork bomb has the processors, each system call takes a tenth of a second
        _opened.append(os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC))
    sizes: Dict[bytes, int] = {}
    for line in os.pread(_opened[0], MEMINFO_SIZE, 0).splitlines():
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


def shared_files(settings: Settings) -> int:
    """Bytes of memory that the files of the user's own file systems take."""
    total = 0
    for folder in {settings.home, "/tmp", "/dev/shm", *settings.writable}:  # noqa: S108
        try:
            figures = os.statvfs(folder)
        except OSError:
            continue
        total += (figures.f_blocks - figures.f_bfree) * figures.f_frsize
    return total


class MemoryWatch:
    """Looks while something runs, an execution or what one has left behind, and never else: an idle machine sleeps.

    Args:
        loop: the agent's.
        settings: `memory` is the limit.
        running: what is under way, asked at each look.
        kernels: the roots that wait for code, asked when nothing is under way.
        past: those of programs that have ended.
    """

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        running: Callable[[], Iterable[Execution]],
        kernels: Callable[[], List[int]] = list,
        past: Iterable[int] = (),
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._running = running
        self._kernels = kernels
        self._past = past
        self._kernel = out_of_memory_kills() is not None
        self._timer: int | None = None
        self._busy = False
        self._due = 0.0
        """When the next look is to be."""
        self._seen = 0
        """What was left at the last one."""
        self._more: int | None = None
        """What may be used beyond the limit, because so much was in use when this began; None: nobody has looked."""

    def begin(self) -> None:
        """Something runs now."""
        if self._settings.memory > 0 and not self._busy:
            self._busy, self._more, self._seen = True, None, 0
            self._again(SHORTEST, self._look)

    def end(self) -> None:
        """Nothing runs any more, but for what has been left behind."""
        if self._busy:
            self._busy = False
            self._again(LONGEST, lambda: self._look_after(LONGEST))

    def _again(self, pause: float, look: Callable[[], None]) -> None:
        self._loop.cancel(self._timer)
        self._due = self._loop.time() + pause
        self._timer = self._loop.later(pause, look)

    def _look(self) -> None:
        rest = self._rest()
        growth, self._seen = self._seen - rest, rest
        late = self._loop.time() - self._due > LATE
        pause = min(LONGEST, max(SHORTEST, rest / FASTEST_GROWTH))
        if rest <= 0 and self._relieve():
            pause = LONGEST  # what has been killed takes a moment to give everything back
        elif late and rest < AHEAD * growth and self._relieve(AHEAD * growth):
            pause = LONGEST
        elif rest > 0 and crowded():
            self._disperse()
        if self._busy:
            self._again(pause, self._look)

    def _look_after(self, pause: float) -> None:
        """Look at what executions have left behind, less and less often, until nothing of it is there."""
        self._timer = None
        rest = self._rest()
        crowd = crowded()
        if rest <= 0:
            self._relieve()
        elif crowd:
            self._disperse()
        if self._left_behind():
            pause = LONGEST if crowd or rest < self._settings.memory // SMALL else min(LONGEST_AFTER, 2 * pause)
            self._again(pause, lambda: self._look_after(pause))

    def _rest(self) -> int:
        rest = left(self._settings.memory, kernel=self._kernel)
        if self._more is None:
            # Files that fill the memory must not be the end of whoever comes to remove them.
            room = int(self._settings.memory * MORE)
            self._more = min(room, max(0, room - rest))
        return rest + self._more

    def _left_behind(self) -> bool:
        if not own_machine():
            return False
        kernels = set(self._kernels())
        return any(pid not in kernels or p.threads > 1 for pid, p in processes_of(self._settings.uid).items())

    def _owners(self, table: Dict[int, Process]) -> Dict[int, Execution]:
        """Which process belongs to which execution that is under way."""
        owners: Dict[int, Execution] = {}
        running = list(self._running())
        for execution in running:
            others = {*self._past, *(pid for other in running if other is not execution for pid in other.pids())}
            for root in execution.pids():
                owners.update(dict.fromkeys(family(table, root, execution.began, others), execution))
        return owners

    def _disperse(self) -> None:
        """Kill what executions that are over have left, where it is so much that hardly anything can be started."""
        uid, limit = self._settings.uid, self._settings.nproc
        if limit <= 0 or not own_machine():
            return
        with Held(uid, when=True):
            table = processes_of(uid)
            ours = {*self._owners(table), *self._kernels()}
            left_behind = sum(process.threads for pid, process in table.items() if pid not in ours)
            if left_behind >= limit * MOST:
                kill_leftovers(uid, ours)

    def _relieve(self, room: int = 0) -> bool:
        """Kill the largest process of what runs or has been left behind; all that belongs to the same execution where
        it is one of many, or has not helped. All are held meanwhile: a look takes longer than to use up the rest.

        With `room`, it does so only where a crowd has not left more than that.
        """
        with Held(self._settings.uid, when=True):
            table = processes_of(self._settings.uid)
            if room and (len(table) < CROWD or self._rest() > room):
                return False
            owners, kernels = self._owners(table), set(self._kernels())
            sizes = {pid: resident(pid) for pid in table}
            large = [pid for pid in table if sizes[pid] > self._settings.memory // SMALL]
            suspects = [pid for pid in large if pid in owners or pid not in kernels] or list(owners)
            if own_machine():
                suspects = suspects or [pid for pid in table if pid not in kernels] or large
            else:
                suspects = [pid for pid in suspects if pid in owners]
            if not suspects:
                return False
            largest = max(suspects, key=lambda pid: sizes[pid])
            owner = owners.get(largest)
            kin = [pid for pid in table if owners.get(pid) is owner and (owner is not None or pid not in kernels)]
            alone = 2 * sizes[largest] >= sum(sizes[pid] for pid in kin)
            killed = [largest] if alone else kin
            if owner is not None and (owner.starved or largest in owner.pids() or not alone):
                owner.kill()
                killed = [*kin, largest]
            else:
                for pid in killed:
                    send_signal(pid, signal.SIGKILL)
            if owner is not None:
                owner.starved = True
            remove_shared_memory(self._settings, set(table).difference(killed))
        return True
