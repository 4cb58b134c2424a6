"""The agent's event loop: descriptors, timers and the deaths of child processes, in one thread, without asyncio."""

from __future__ import annotations

import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Set, Tuple

READ = select.POLLIN
WRITE = select.POLLOUT


class Loop:
    """Calls back when a descriptor is ready, a timer is due, a child has died, or before it goes to sleep."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: Dict[int, Callable[[int], None]] = {}
        self._timers: Dict[int, Tuple[float, Callable[[], None]]] = {}
        self._next_timer = 0
        self._children: Dict[int, Callable[[int], None]] = {}
        self._stopped = False
        self._time: float | None = None
        self._ready: Dict[int, int] = {}
        self._unasked: Set[int] = set()
        self.rounds = 0
        """How often it has woken up."""
        self.before_sleep: List[Callable[[], None]] = []
        self._wakeup, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the poll events whenever `fd` is ready. A second call replaces the first."""
        if fd not in self._handlers:
            self._unasked.add(fd)
        self._handlers[fd] = callback
        self._poll.register(fd, events)

    def pause(self, fd: int) -> None:
        """Ignore `fd` until `watch` is called again; poll would report its hang-up for ever otherwise."""
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def empty(self, fd: int) -> bool:
        """Whether `fd` had nothing to read when this round began; False where that is not known.

        Descriptors are asked in the order in which `watch` began: what was written to `fd` before something that woke
        up one that is watched longer counts.
        """
        return fd in self._handlers and fd not in self._unasked and fd not in self._ready

    def time(self) -> float:
        """Seconds on the clock of `Process.started`, read once a round: until gVisor has calibrated its clocks, one or
        two seconds after a restore, each look at one is a system call of 20 to 100 us."""
        if self._time is None:
            self._time = time.clock_gettime(time.CLOCK_BOOTTIME)
        return self._time

    def later(self, seconds: float, callback: Callable[[], None]) -> int:
        """Call back once, `seconds` from now. The answer is for `cancel`."""
        self._next_timer += 1
        self._timers[self._next_timer] = (self.time() + seconds, callback)
        return self._next_timer

    def cancel(self, timer: int | None) -> None:
        """Forget a timer; harmless when it has run."""
        if timer is not None:
            self._timers.pop(timer, None)

    def on_death(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call back with the wait status once `pid`, a child of this process, has been reaped."""
        self._children[pid] = callback

    def stop(self) -> None:
        """Leave `run` before it sleeps again."""
        self._stopped = True

    def run(self) -> None:
        """Serve until `stop`."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        self.watch(self._wakeup, READ, self._on_signal)
        self._reap()
        while not self._stopped:
            for hook in self.before_sleep:
                hook()
            if self._stopped:
                break
            ready = self._poll.poll(self._patience())
            self._time, self._ready = None, dict(ready)
            self._unasked.clear()
            self.rounds += 1
            for fd, events in ready:
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler(events)
            if self._timers:
                self._run_timers()

    def _patience(self) -> float | None:
        if not self._timers:
            return None
        first = min(deadline for deadline, _ in self._timers.values())
        # The present is that of this round's beginning: a timer is late by what its handlers took, at most.
        # Rounded up: a poll that ends a fraction of a millisecond early would spin until the deadline.
        return max(0.0, (first - self.time()) * 1000 + 1)

    def _run_timers(self) -> None:
        now = self.time()
        for key in [key for key, (deadline, _) in self._timers.items() if deadline <= now]:
            timer = self._timers.pop(key, None)
            if timer is not None:
                timer[1]()

    def _on_signal(self, _events: int) -> None:
        try:
            while os.read(self._wakeup, 4096):
                pass
        except BlockingIOError:
            pass
        self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            callback = self._children.pop(pid, None)
            if callback is not None:
                callback(status)
