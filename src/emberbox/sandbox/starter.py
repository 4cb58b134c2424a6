"""Starts sandboxes, and owns what each of them holds for as long as it lives.

A sandbox begins with a machine of the warm pool, a fork of its template's snapshot, a boot, a fork of another snapshot,
or a machine that an earlier process left. Whichever it was, one `_Holding` says what it holds, from the beginning of
its start until its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field, replace

from emberbox.errors import ExecutionTimeout, NoCapacity, SnapshotFailed, VmConnectionError, VmNotAvailable
from emberbox.images.store import Image
from emberbox.machines.contract import Death, Machine, Snapshot
from emberbox.models import MachineLimits
from emberbox.sandbox.durability.records import SandboxRecords
from emberbox.sandbox.durability.registry import SandboxRecord
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.log import warn
from emberbox.sandbox.losses import Losses
from emberbox.sandbox.options import LOCAL_AGENT, SandboxOptions
from emberbox.sandbox.pool.pool import MachinePool
from emberbox.sandbox.pool.templates import TemplateSnapshots
from emberbox.sandbox.snapshots.service import SnapshotService

_ADOPTION_SECONDS = 15.0
_LEAST_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class StartRules:
    """What holds for every start.

    Args:
        boot_timeout: seconds that one may take.
        agent_sandboxes: how many one agent may have; None: any number.
        orphan_grace_seconds: how long the machines of durable sandboxes run on when this process dies.
    """

    boot_timeout: float
    agent_sandboxes: int | None = None
    orphan_grace_seconds: float = 0
    at_once: int = field(default_factory=lambda: max(_LEAST_AT_ONCE, 2 * (os.cpu_count() or 1)))
    """Starts at the same time. Twenty-five on two processors each took longer than one may; one after the other they
    are done sooner, and each has its time."""


@dataclass(frozen=True, slots=True)
class NewSandbox:
    """A sandbox that is to be started.

    Args:
        image: what it has.
        limits: of its machine.
        options: what it is.
        timeout: seconds after which it is killed; None: never.
        snapshot: what it goes on from; None: it begins as its template says.
        counted: it counts as a sandbox, and waits until there may be one more; others do not outlive this process.
    """

    image: Image
    limits: MachineLimits
    options: SandboxOptions = field(default_factory=SandboxOptions)
    timeout: float | None = None
    snapshot: Snapshot | None = None
    counted: bool = True

    @classmethod
    def copy_of(
        cls, snapshot: Snapshot, options: SandboxOptions, timeout: float | None = None, *, counted: bool = True
    ) -> NewSandbox:
        """Ask for one that goes on from a snapshot, with the image and the limits of that."""
        return cls(snapshot.image, snapshot.limits, options, timeout, snapshot, counted)


@dataclass(slots=True, eq=False)
class _Holding:
    """What a sandbox holds from the beginning of its start until it ends: its agent's share by being there, and the
    rest to be let go of."""

    agent_id: str
    counted: bool
    rest: contextlib.ExitStack
    """Its place in the pool, its image."""
    instance: SandboxInstance | None = None
    """None while it starts."""


class Starter:
    """The live sandboxes of one engine. It is told of their events.

    Args:
        pool: has machines, and places for sandboxes.
        templates: what sandboxes are forked from.
        snapshots: of the sandboxes.
        records: of those that outlive this process; None: none does.
        rules: what holds for every start.
    """

    def __init__(
        self,
        pool: MachinePool,
        templates: TemplateSnapshots,
        snapshots: SnapshotService,
        records: SandboxRecords | None,
        rules: StartRules,
    ) -> None:
        self._pool = pool
        self._templates = templates
        self._snapshots = snapshots
        self._records = records
        self._rules = rules
        self._places = asyncio.Semaphore(rules.at_once)
        """Of starts; who waits for one waits for others to start or to fail, which has a deadline."""
        self._held: dict[str, _Holding] = {}
        self.losses = Losses(records)

    def find(self, sandbox_id: str) -> SandboxInstance | None:
        """Find a live sandbox by its id."""
        holding = self._held.get(sandbox_id)
        return None if holding is None else holding.instance

    def instances(self) -> list[SandboxInstance]:
        """List the live sandboxes."""
        return [holding.instance for holding in self._held.values() if holding.instance is not None]

    # --- starts ---------------------------------------------------------------------------------------------------

    async def start(self, new: NewSandbox) -> SandboxInstance:
        """Start a sandbox. A failed or cancelled start leaves nothing behind.

        Raises:
            NoCapacity: no place or no memory for it in time, or its agent has as many as it may have.
            VmNotAvailable, ExecutionTimeout: its machine does not start, or does not go on.
        """
        with self._starting(new) as holding:
            if new.counted:
                holding.rest.callback(await self._pool.admit(new.image, new.limits))
            holding.rest.enter_context(new.image.in_use())
            async with self._places:
                instance = await (self._from_template(new) if new.snapshot is None else self._copy(new, new.snapshot))
            await self._opened(instance, holding)
        if new.snapshot is None:
            self._pool.created(new.image, new.limits)
        return instance

    async def adopt(self, record: SandboxRecord, machine: Machine) -> SandboxInstance:
        """Have a sandbox go on with a machine that an earlier process left.

        Raises:
            VmNotAvailable, ExecutionTimeout: it does not answer.
            ImageError: its image is not there any more.
        """
        image = self._snapshots.store.images.reopen(record.image, record.built_at, record.guest, record.template)
        new = NewSandbox(image, record.limits, record.options())
        with self._starting(new) as holding:
            holding.rest.callback(self._pool.occupy(image, record.limits))
            holding.rest.enter_context(image.in_use())
            instance = self._instance(machine, new)
            await self._started(instance, instance.start_adopted(_ADOPTION_SECONDS), None)
            await self._opened(instance, holding)
        return instance

    @contextlib.contextmanager
    def _starting(self, new: NewSandbox) -> Iterator[_Holding]:
        """Count a sandbox for its agent. When its start fails, whatever it holds by then is given back."""
        options = new.options
        if new.counted:
            self._check_share(options)
        holding = _Holding(options.agent_id, new.counted, contextlib.ExitStack())
        self._held[options.sandbox_id] = holding
        try:
            yield holding
        except BaseException:
            self._let_go(options.sandbox_id, holding)
            raise

    def _check_share(self, options: SandboxOptions) -> None:
        """Raises NoCapacity: the agent has as many as it may have."""
        most, agent_id = self._rules.agent_sandboxes, options.agent_id
        mine = {name for name, held in self._held.items() if held.agent_id == agent_id and held.counted}
        if self._records is not None:
            mine.update(record.sandbox_id for record in self._records.suspended if record.agent_id == agent_id)
        if most is None or agent_id == LOCAL_AGENT or options.sandbox_id in mine or len(mine) < most:
            return
        raise NoCapacity(
            f"Agent {agent_id!r:.80} has {len(mine)} sandboxes already.",
            remediation="Kill one, or raise max_sandboxes_per_agent in the settings.",
        )

    async def _copy(self, new: NewSandbox, snapshot: Snapshot, *, more: bool = True) -> SandboxInstance:
        """Start it from a snapshot. `more`: as of `MachinePool.fork`."""
        instance = self._instance(await self._pool.fork(snapshot, more=more), new)
        await self._started(instance, instance.start_copy(self._rules.boot_timeout), new.timeout)
        return instance

    async def _from_template(self, new: NewSandbox) -> SandboxInstance:
        """Take a machine of the warm pool, or start one until its agent is ready: fork it from the template's snapshot,
        or boot it where there is none yet."""
        return await self._leased(new) or await self._forked(new) or await self._booted(new)

    async def _leased(self, new: NewSandbox) -> SandboxInstance | None:
        machine = await self._pool.lease(new.image, new.limits, new.options.envs)
        if machine is None:
            return None
        instance = self._instance(machine, new)

        async def start() -> None:
            instance.start_leased()

        await self._started(instance, start(), new.timeout)
        return instance

    async def _forked(self, new: NewSandbox) -> SandboxInstance | None:
        snapshot = self._templates.find(new.image, new.limits)
        if snapshot is None:
            return None
        try:
            return await self._copy(new, snapshot, more=False)
        except (VmNotAvailable, ExecutionTimeout) as exc:
            # the reason for the caller, if there is one beyond this snapshot, is that of the boot that follows; what
            # may pass (a busy host) is no reason to take the snapshot from others
            if not exc.retryable and not isinstance(exc, ExecutionTimeout):
                await asyncio.to_thread(self._templates.discard, snapshot)
            return None

    async def _booted(self, new: NewSandbox) -> SandboxInstance:
        instance = self._instance(await self._pool.boot(new.image, new.limits), new)
        await self._started(instance, self._boot(instance), new.timeout)
        return instance

    async def _boot(self, instance: SandboxInstance) -> None:
        """Start a machine that was booted, and write it down for the sandboxes after it. An environment of one
        sandbox's own must not reach the others, so it comes afterwards."""
        await instance.start(self._rules.boot_timeout)
        try:
            snapshot, _ = await instance.checkpoint(self._templates.place(instance.image, instance.limits))
            await asyncio.to_thread(self._templates.keep, snapshot)
        except VmConnectionError as exc:
            raise await instance.died_early() from exc
        except (OSError, SnapshotFailed) as exc:
            warn("template snapshot not taken", exc, template=instance.image.name)
        await instance.add_environment()

    def _instance(self, machine: Machine, new: NewSandbox) -> SandboxInstance:
        durable = new.options.durable and new.counted and self._records is not None
        options = replace(new.options, durable=durable)
        grace = self._rules.orphan_grace_seconds
        return SandboxInstance(machine, new.image, new.limits, options, self, orphan_grace_seconds=grace)

    async def _started(
        self, instance: SandboxInstance, start: Coroutine[object, object, None], timeout: float | None
    ) -> None:
        try:
            await start
            instance.set_timeout(timeout)
            instance.check_alive()
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(instance.kill()))
            raise

    async def _opened(self, instance: SandboxInstance, holding: _Holding) -> None:
        """It has started: it can be found from here on, and is written down if it is to outlive this process."""
        holding.instance = instance
        with self.losses.told_in(instance):
            if instance.durable and self._records is not None:
                try:
                    await instance.survive_owner(instance.machine)
                    instance.check_alive()
                    self._records.opened(instance)
                except BaseException:
                    await asyncio.shield(asyncio.ensure_future(instance.kill()))
                    raise

    # --- events of sandboxes --------------------------------------------------------------------------------------

    def closed(self, instance: SandboxInstance) -> None:
        """Let go of what a sandbox held, which has ended; its snapshots and its record go with it, unless it is only
        suspended."""
        holding = self._held.get(instance.id)
        if holding is not None and holding.instance is instance:  # else it has not started: see `_starting`
            self._let_go(instance.id, holding)
        if self._records is None or self._records.closed(instance.id):
            self._snapshots.closed(instance.id)

    def _let_go(self, sandbox_id: str, holding: _Holding) -> None:
        """Give back what a sandbox held; harmless when that was done."""
        if self._held.get(sandbox_id) is holding:
            del self._held[sandbox_id]
        holding.rest.close()

    async def died(self, instance: SandboxInstance, death: Death) -> bool:
        """Have a sandbox go on from its last snapshot, since its machine died by itself. One that is to outlive this
        process and has snapshots is suspended when no machine comes up: whoever asks for it later may be luckier."""
        if await self._snapshots.revive(instance, death):
            return True
        if instance.is_open and not self._suspended(instance) and instance.own and instance.lineage.total:
            if instance.durable and self._records is not None:
                self._records.leave(instance.id)
                self._snapshots.closed(instance.id)  # `closed` takes it for one that goes on
            self.losses.note(instance.agent_id, instance.id, instance.lineage.lost(death))
        return False

    def _suspended(self, instance: SandboxInstance) -> bool:
        return instance.durable and self._records is not None and self._records.died(instance)

    def changed(self, instance: SandboxInstance) -> None:
        """Write a sandbox down as it is now, if it is to be found again after a restart."""
        if self._records is not None:
            self._records.changed(instance)
