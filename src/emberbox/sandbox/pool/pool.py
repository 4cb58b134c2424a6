"""The warm pool: machines made ahead, and places for sandboxes. It stands between the manager and a machine factory.

What happens when is decided by `state`; this module carries it out: it starts, stops, watches and kills machines,
and keeps those who must wait for a place.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from emberbox.config import Settings
from emberbox.errors import (
    ExecutionFailed,
    ExecutionTimeout,
    NoCapacity,
    SessionNotFound,
    VmConnectionError,
    VmExecutionError,
    VmNotAvailable,
)
from emberbox.host.pressure import MemoryReader
from emberbox.images.store import Image
from emberbox.machines.contract import Machine, MachineFactory, Snapshot
from emberbox.models import MachineLimits, PoolStatus
from emberbox.sandbox.pool import state
from emberbox.sandbox.pool.state import Kind, PoolState, Rules
from emberbox.sandbox.pool.templates import TemplateSnapshots

_HEALTHY_SECONDS = 2.0
"""In which a machine of the pool must answer when it is taken."""
_TICK_SECONDS = 1.0
_WAITING_TICK_SECONDS = 0.1
"""While somebody waits for memory that others may give back at any time."""
_SPIN_SECONDS = 0.05
"""Of a processor between two ticks: what is stopped uses none."""
_STUCK_SECONDS = 5.0
"""Without a start after which `warm` does not wait any longer; longer than the pauses after its first failures."""
_HOPELESS = 3
"""Failed starts after which `warm` does not wait any longer."""
_REHEARSAL = b"import sys\nprint('x')\n[1]"
_REHEARSED = {
    "rehearsal": True,
    "language": "python",
    "env": {},
    "args": [],
    "track": True,
    **dict.fromkeys(("stdout_limit", "stderr_limit", "results_limit"), 1 << 16),
}
_REMEMBERED = 1024
"""Kinds of sandboxes."""


class _NoTemplateError(Exception):
    """The template has no snapshot (any more) that a clone could be made of."""


@dataclass(frozen=True, slots=True)
class _Idle:
    """A machine of the pool that is ready. `holding`: its image, which must not be removed."""

    machine: Machine
    holding: contextlib.ExitStack
    watcher: asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What the pool may do; see the settings of the same names."""

    rules: Rules
    boot_timeout: float = 60.0
    capacity_timeout: float = 30.0
    min_free_bytes: int = 256 << 20

    @classmethod
    def of(cls, settings: Settings) -> PoolOptions:
        rules = Rules(
            size=settings.vm_execution.vm_pool_size,
            max_age=settings.pool_max_age_seconds,
            max_sandboxes=settings.max_sandboxes,
        )
        return cls(
            rules,
            boot_timeout=settings.boot_timeout_seconds,
            capacity_timeout=settings.capacity_timeout_seconds,
            min_free_bytes=settings.min_free_memory_mb << 20,
        )


class MachinePool:
    """Machines for the sandboxes of one engine. Nothing is pooled before a template was used twice, or `warm` called.

    Args:
        factory: makes the machines.
        templates: what clones are made of.
        options: how many, how old, how long.
        available: bytes of memory that the host has left, or None.
        clock: seconds, for the age of machines.
    """

    def __init__(
        self,
        factory: MachineFactory,
        templates: TemplateSnapshots,
        options: PoolOptions,
        *,
        available: Callable[[], int | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._factory = factory
        self._templates = templates
        self._options = options
        self._available = available or MemoryReader().available_bytes
        self._clock = clock
        self._state = PoolState(options.rules)
        self._kinds: dict[str, tuple[Image, MachineLimits]] = {}
        self._idle: dict[int, _Idle] = {}
        self._starting: dict[int, asyncio.Task[None]] = {}
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._tickets = itertools.count(1)
        self._errors: dict[str, VmExecutionError] = {}
        """Why the last start of a key failed."""
        self._background: set[asyncio.Task[Any]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._changes: set[asyncio.Future[None]] = set()

    # --- places ---------------------------------------------------------------------------------------------------

    async def admit(self, image: Image, limits: MachineLimits) -> Callable[[], None]:
        """Wait, first come first served, until one more sandbox may start. Call the answer when it has ended.

        Raises:
            NoCapacity: there was no place, or no memory, within `capacity_timeout_seconds`.
        """
        ticket = next(self._tickets)
        future = self._waiters[ticket] = asyncio.get_running_loop().create_future()
        self._read_memory()
        self._feed(state.Wanted(ticket, self._key(image, limits)))
        try:
            if not future.done():
                async with asyncio.timeout(self._options.capacity_timeout):
                    await future
        except BaseException as exc:
            self._waiters.pop(ticket, None)
            self._feed(state.Released(ticket))
            if isinstance(exc, TimeoutError):
                raise self._no_capacity() from exc
            raise
        return partial(self._release, ticket)

    def occupy(self, image: Image, limits: MachineLimits) -> Callable[[], None]:
        """Count a sandbox that an earlier process left, at once and even beyond the bound: those to come wait until
        there is room again. Call the answer when it has ended."""
        ticket = next(self._tickets)
        self._feed(state.Occupied(ticket, self._key(image, limits)))
        return partial(self._release, ticket)

    def _release(self, ticket: int) -> None:
        self._feed(state.Released(ticket))

    def _no_capacity(self) -> NoCapacity:
        waited = f"for {self._options.capacity_timeout:g} s"
        details = {
            "sandboxes": self._state.sandboxes,
            "max_sandboxes": self._options.rules.max_sandboxes,
            "min_free_memory_mb": self._options.min_free_bytes >> 20,
        }
        if self._state.full:
            most = self._options.rules.max_sandboxes
            return NoCapacity(f"There are {most} sandboxes, and none of them ended {waited}.", details=details)
        least = self._options.min_free_bytes >> 20
        return NoCapacity(f"The host had less than {least} MiB of memory left {waited}.", details=details)

    # --- machines -------------------------------------------------------------------------------------------------

    async def boot(self, image: Image, limits: MachineLimits) -> Machine:
        """A machine started from nothing."""
        return await self._factory.boot(image, limits)

    async def fork(self, snapshot: Snapshot, *, more: bool = True) -> Machine:
        """A machine that goes on from a snapshot, in a blank if one is ready. Never waits for a place.

        `more`: there will be more of these, so that blanks are made ahead from now on.
        """
        key = self._key(snapshot.image, snapshot.limits)
        blank = self._take(Kind.BLANK, key, more=more)
        if blank is None:
            return await self._factory.fork(snapshot)
        return await self._factory.fork(snapshot, blank)

    async def lease(self, image: Image, limits: MachineLimits, envs: Mapping[str, str]) -> Machine | None:
        """A clone of the template's snapshot that is awake, answers, and has `envs`; None if none is ready. It never
        comes back."""
        key = self._key(image, limits)
        while (machine := self._take(Kind.CLONE, key)) is not None:
            try:
                await machine.resume()
                # it has had its new randomness when it was forked
                await machine.channel.call("wake", timeout=_HEALTHY_SECONDS, fork=False, env=dict(envs))
            except (VmConnectionError, VmNotAvailable, ExecutionTimeout, ExecutionFailed):
                self._spawn(machine.kill())
            except BaseException:
                await asyncio.shield(asyncio.ensure_future(machine.kill()))
                raise
            else:
                return machine
        return None

    def created(self, image: Image, limits: MachineLimits) -> None:
        """A sandbox was started: from the second one on, there may well be a third."""
        self._feed(state.Created(self._key(image, limits)))

    async def warm(self, image: Image, limits: MachineLimits, count: int | None = None) -> None:
        """Fill the pool of these sandboxes (up to `count`; None: `vm_pool_size`), whose template has a snapshot.

        Raises:
            NoCapacity: there is no room for so many.
            VmNotAvailable, ExecutionTimeout: they do not start.
        """
        key = self._key(image, limits)
        self._errors.pop(key, None)
        self._read_memory()
        self._feed(state.WarmUp(key, count))
        shelf = self._state.shelves[key]
        failures, loop = shelf.failures, asyncio.get_running_loop()
        end = loop.time() + _STUCK_SECONDS
        while len(shelf.ready[Kind.CLONE]) < shelf.high:
            if shelf.failures - failures >= _HOPELESS or not shelf.pooled or self._state.closed:
                raise self._errors.get(key) or VmNotAvailable("The pool cannot be filled.", retryable=True)
            if shelf.starting[Kind.CLONE]:  # each start has a deadline of its own
                end = loop.time() + _STUCK_SECONDS
            elif loop.time() >= end:
                raise self._errors.get(key) or self._no_room(shelf)
            await self._change(end)

    async def _change(self, end: float) -> None:
        """Wait for any change, or until this time of the loop."""
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.add(change)
        try:
            async with asyncio.timeout_at(end):
                await change
        except TimeoutError:
            pass
        finally:
            self._changes.discard(change)

    def _no_room(self, shelf: state.Shelf) -> NoCapacity:
        what = "room" if self._state.enough_memory else "memory"
        ready = len(shelf.ready[Kind.CLONE])
        return NoCapacity(f"There is {what} for {ready} machines in the pool, not for {shelf.high}.")

    def status(self) -> list[PoolStatus]:
        """What there is, for each kind of sandbox that was asked for."""
        return [
            PoolStatus(
                template=self._kinds[key][0].name,
                limits=self._kinds[key][1],
                ready=len(shelf.ready[Kind.CLONE]),
                starting=len(shelf.starting[Kind.CLONE]),
                in_use=shelf.in_use,
                high=shelf.high if shelf.pooled else 0,
                low=shelf.low if shelf.pooled else 0,
                blanks=len(shelf.ready[Kind.BLANK]),
            )
            for key, shelf in self._state.shelves.items()
        ]

    def tick(self) -> None:
        """Look at the clock and the memory; called by the pool itself while there is something to look after."""
        self._read_memory()
        self._feed(state.Tick())

    async def close(self) -> None:
        """Kill every machine of the pool; those that were handed out are others' business."""
        self._feed(state.Closing())
        gone = VmNotAvailable("The engine is closed.", remediation="Make a new one.")
        for future in self._waiters.values():
            if not future.done():
                future.set_exception(gone)
        if self._keeper is not None:
            self._keeper.cancel()
        if self._alarm is not None:
            self._alarm.cancel()
        while tasks := {*self._background, *self._starting.values()}:
            await asyncio.wait(tasks)
            await asyncio.sleep(0)  # they are taken off the lists

    def abandon(self) -> None:
        """Let go of the images, without an event loop; the factory lets go of the machines."""
        for idle in self._idle.values():
            idle.holding.close()
        self._idle.clear()

    # --- carrying it out ------------------------------------------------------------------------------------------

    def _key(self, image: Image, limits: MachineLimits) -> str:
        key = self._templates.key(image, limits)
        if key not in self._kinds:
            if len(self._kinds) >= _REMEMBERED:
                self._kinds = {key: kind for key, kind in self._kinds.items() if key in self._state.shelves}
                self._errors.clear()
            self._kinds[key] = (image, limits)
        return key

    def _feed(self, event: state.Event) -> int | None:
        """Tell the state, do what it says; the token of a machine that it gives."""
        given = None
        for instruction in self._state.handle(event, self._clock()):
            match instruction:
                case state.HandOut(token):
                    given = token
                case state.Start(token, kind, key):
                    self._start(token, kind, key)
                case state.Kill(token):
                    self._kill(token)
                case state.Admit(ticket):
                    future = self._waiters.pop(ticket)
                    if not future.done():
                        future.set_result(None)
        for change in self._changes:
            if not change.done():
                change.set_result(None)
        if self._keeper is None and self._state.needs_tick:
            self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="pool")
        if (
            self._alarm is None
            and (cooldown := self._state.cooldown_until - self._clock()) > 0
            and not self._state.closed
        ):
            self._alarm = asyncio.get_running_loop().call_later(cooldown, self._cooldown_is_over)
        return given

    def _cooldown_is_over(self) -> None:
        self._alarm = None
        self.tick()

    def _take(self, kind: Kind, key: str, *, more: bool = True) -> Machine | None:
        while (token := self._feed(state.Take(kind, key, more))) is not None:
            machine = self._off_the_shelf(token)
            if machine is not None:
                return machine
        return None

    def _off_the_shelf(self, token: int) -> Machine | None:
        idle = self._idle.pop(token, None)
        if idle is None:
            return None
        idle.watcher.cancel()
        idle.holding.close()
        return idle.machine

    def _start(self, token: int, kind: Kind, key: str) -> None:
        task = asyncio.get_running_loop().create_task(self._make(token, kind, key), name=f"pool {kind} {token}")
        self._starting[token] = task
        task.add_done_callback(lambda _: self._starting.pop(token, None))

    async def _make(self, token: int, kind: Kind, key: str) -> None:
        """Start a machine of the pool and put it on its shelf."""
        image, limits = self._kinds[key]
        outcome: state.Event = state.Lost(token)
        try:
            with contextlib.ExitStack() as holding:
                holding.enter_context(image.in_use())
                machine = await (self._clone if kind is Kind.CLONE else self._factory.prepare)(image, limits)
                watcher = asyncio.get_running_loop().create_task(self._watch(token, machine))
                self._idle[token] = _Idle(machine, holding.pop_all(), watcher)
                outcome = state.Started(token)
        except _NoTemplateError:
            self._errors[key] = VmNotAvailable("The template has no snapshot to make clones of.", retryable=True)
            outcome = state.Lost(token, parked=True)
        except VmExecutionError as exc:
            self._errors[key] = exc
        except OSError as exc:
            self._errors[key] = VmNotAvailable(f"Cannot use image {image.name!r}: {exc.strerror}.", retryable=True)
        finally:
            self._feed(outcome)

    async def _clone(self, image: Image, limits: MachineLimits) -> Machine:
        """A sandbox but for its environment: restored, awake, its pages touched, and stopped."""
        snapshot = await asyncio.to_thread(self._templates.find, image, limits)
        if snapshot is None:
            raise _NoTemplateError
        try:
            machine = await self._factory.fork(snapshot)
            try:
                deadline = self._options.boot_timeout
                await machine.channel.call("wake", timeout=deadline, fork=True, env={})
                await self._rehearse(machine, image)
                await machine.pause(idle=True)
            except BaseException:
                await asyncio.shield(asyncio.ensure_future(machine.kill()))
                raise
        except VmNotAvailable as exc:
            if not exc.retryable:
                await asyncio.to_thread(self._templates.discard, snapshot)
                raise _NoTemplateError from exc
            raise
        return machine

    async def _rehearse(self, machine: Machine, image: Image) -> None:
        """Have the agent and its spare interpreters touch the pages that a first execution needs: after a restore each
        costs some ten microseconds at its first use, which would make that execution three times slower."""
        deadline = self._options.boot_timeout
        await machine.channel.call("touch", timeout=deadline)
        if "python" in image.template.warm:
            with contextlib.suppress(ExecutionFailed, SessionNotFound):  # it died; the next one starts at first use
                await machine.channel.call("run_code", _REHEARSAL, timeout=deadline, **_REHEARSED)

    def _kill_what_spins(self, before: Mapping[int, float]) -> dict[int, float]:
        """Replace machines that use a processor although they are stopped: seconds of each, for the next look. Of 250
        of gVisor one did so, some time after it was stopped: a process of its waits for an answer by spinning."""
        now: dict[int, float] = {}
        for token, idle in list(self._idle.items()):
            used = idle.machine.stats().cpu_seconds
            if used is None:
                continue
            now[token] = used
            if used - before.get(token, used) > _SPIN_SECONDS:
                self._kill(token)
                self._feed(state.Lost(token))
        return now

    async def _watch(self, token: int, machine: Machine) -> None:
        """A machine that dies while it waits is replaced."""
        await machine.wait()
        idle = self._idle.pop(token, None)
        if idle is not None:
            idle.holding.close()
            self._feed(state.Lost(token))

    def _kill(self, token: int) -> None:
        task = self._starting.get(token)
        if task is not None and token not in self._idle:
            task.cancel()
            return
        machine = self._off_the_shelf(token)
        if machine is not None:
            self._spawn(machine.kill())

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _read_memory(self) -> None:
        left = self._available()
        enough = left is None or left >= self._options.min_free_bytes
        if enough != self._state.enough_memory or not enough:
            self._feed(state.MemoryRead(enough))

    async def _keep(self) -> None:
        """Tick while there is something to look after."""
        used: dict[int, float] = {}
        try:
            while self._state.needs_tick:
                await asyncio.sleep(_WAITING_TICK_SECONDS if self._state.waiting else _TICK_SECONDS)
                used = self._kill_what_spins(used)
                self.tick()
        finally:
            self._keeper = None
