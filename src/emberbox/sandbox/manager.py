"""Makes sandboxes and knows which exist."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path

from emberbox.errors import (
    ExecutionTimeout,
    NoCapacity,
    SessionNotFound,
    SnapshotFailed,
    VmConnectionError,
    VmNotAvailable,
)
from emberbox.host.rundir import RunDir, dead_owners, make_run_dir
from emberbox.images.store import Image
from emberbox.machines.contract import Death, Machine, MachineFactory, Snapshot
from emberbox.models import MachineLimits, TerminationReason
from emberbox.sandbox.durability.registry import SandboxRecord, SandboxRegistry
from emberbox.sandbox.durability.service import Durability
from emberbox.sandbox.instance import SandboxInstance, SandboxState
from emberbox.sandbox.options import SandboxOptions
from emberbox.sandbox.pool.pool import MachinePool, PoolOptions
from emberbox.sandbox.pool.state import Rules
from emberbox.sandbox.pool.templates import TemplateSnapshots
from emberbox.sandbox.snapshots.service import SnapshotQuota, SnapshotService
from emberbox.sandbox.snapshots.store import SnapshotStore
from emberbox.sandbox.snapshots.tree import Node

LOCAL_AGENT = "local"
"""Whoever uses the SDK or the command line: nobody to share the host with."""
_ADOPTION_SECONDS = 15.0


class SandboxManager:
    """All sandboxes of one engine.

    Args:
        factory: makes the machines.
        boot_timeout: seconds that a start may take.
        snapshot_base: folder in which this manager keeps snapshots, in a directory of its own; those of templates
            are shared with other processes of this user.
        store: of snapshots that outlive this process.
        pool: what may be made ahead, and how many sandboxes there may be.
        bounds: how many snapshots there may be, and how many sandboxes of one agent.
        registry: where sandboxes are written down that outlive this process; None: none does.
        outlive_seconds: how long the machines of those run on when it dies.

    Attributes:
        snapshots: snapshots, rollback, branch, fork.
        durability: of the sandboxes that outlive this process.
        pool: machines made ahead, and places for sandboxes.
    """

    def __init__(
        self,
        factory: MachineFactory,
        boot_timeout: float,
        snapshot_base: Path,
        store: SnapshotStore,
        bounds: SnapshotQuota | None = None,
        pool: PoolOptions | None = None,
        ledger: SandboxRegistry | None = None,
        orphan_grace_seconds: float = 0,
    ) -> None:
        self._boot_timeout = boot_timeout
        self._orphan_grace_seconds = orphan_grace_seconds
        self._per_agent = None if bounds is None else bounds.agent_sandboxes
        self._snapshot_base = snapshot_base
        self._snapshot_dir: RunDir | None = None
        self._templates = TemplateSnapshots(snapshot_base / "templates", factory.backend, factory.identity)
        self._instances: dict[str, SandboxInstance] = {}
        self._images: dict[str, contextlib.ExitStack] = {}
        self.pool = MachinePool(factory, self._templates, pool or PoolOptions(Rules()))
        self.snapshots = SnapshotService(
            self.pool.fork, self._start_copy, self._own_folder, store, bounds or SnapshotQuota(), self._suspended_bytes
        )
        self.durability = None if ledger is None else Durability(self, ledger)
        self._places: Counter[str] = Counter()
        """How many sandboxes each agent has or is being given, the suspended ones apart."""

    async def create(
        self,
        image: Image,
        limits: MachineLimits,
        *,
        envs: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
        agent_id: str = "local",
        own: bool = False,
        idle_seconds: float | None = None,
        durable: bool = True,
    ) -> SandboxInstance:
        """A machine of the warm pool, or one that is started until its agent is ready: forked from the template's
        snapshot, or booted where there is none yet. A failed or cancelled start leaves nothing behind.

        `own`: it is the one that the agent gets without naming one. `idle_seconds`: it ends, or is suspended, when it
        is not used for so long. `durable`: it outlives this process where others do.

        Raises:
            NoCapacity: no place or no memory for it in time.
        """
        options = SandboxOptions(
            envs=envs or {},
            metadata=metadata or {},
            agent_id=agent_id,
            own=own,
            durable=durable,
            idle_seconds=idle_seconds,
        )
        with contextlib.ExitStack() as holding:
            holding.callback(self._share(agent_id))
            holding.callback(await self.pool.admit(image, limits))
            holding.enter_context(image.in_use())
            instance = await self._leased(image, limits, options, timeout)
            if instance is None:
                instance = await self._forked(image, limits, options, timeout)
            if instance is None:
                machine = await self.pool.boot(image, limits)
                instance = self._session(machine, image, limits, options)
                await self._started(instance, self._boot(instance), timeout)
            await self._opened(instance, holding)
        self.pool.created(image, limits)
        return instance

    async def _opened(self, instance: SandboxInstance, holding: contextlib.ExitStack) -> None:
        """It has started: what it holds is held until it ends, and it is written down if it is to outlive us."""
        self._images[instance.id] = holding.pop_all()
        if instance.durable and self.durability is not None:
            try:
                await instance.machine.survive_owner(self._orphan_grace_seconds)
                self.durability.opened(instance)
            except BaseException:
                await asyncio.shield(asyncio.ensure_future(instance.kill()))
                raise

    def changed(self, instance: SandboxInstance) -> None:
        """What is to be found again after a restart has changed."""
        if self.durability is not None:
            self.durability.changed(instance)

    async def reopen(self, record: SandboxRecord, node: Node) -> SandboxInstance:
        """A sandbox that was suspended goes on from a snapshot (see `Durability`)."""
        return await self._start_copy(node.snapshot, _options_of(record), None)

    async def adopt(self, record: SandboxRecord, machine: Machine) -> SandboxInstance:
        """A sandbox goes on with a machine that an earlier process left (see `Durability`)."""
        with contextlib.ExitStack() as holding:
            holding.callback(self._share(record.agent_id, ask=False))
            image = self.snapshots.store.images.reopen(record.image, record.built_at, record.guest, record.template)
            holding.enter_context(image.in_use())
            instance = self._session(machine, image, record.limits, _options_of(record))
            await self._started(instance, instance.start_adopted(_ADOPTION_SECONDS), None)
            await self._opened(instance, holding)
        return instance

    async def warm(self, image: Image, limits: MachineLimits, count: int | None = None) -> None:
        """Fill the pool of these sandboxes; raises what `MachinePool.warm` raises."""
        if self._templates.find(image, limits) is None:
            instance = await self.create(image, limits)  # it takes the snapshot
            await instance.kill()
        await self.pool.warm(image, limits, count)

    async def _leased(
        self, image: Image, limits: MachineLimits, options: SandboxOptions, timeout: float | None
    ) -> SandboxInstance | None:
        machine = await self.pool.lease(image, limits, options.envs)
        if machine is None:
            return None
        instance = self._session(machine, image, limits, options)

        async def start() -> None:
            instance.start_leased()

        await self._started(instance, start(), timeout)
        return instance

    async def _forked(
        self, image: Image, limits: MachineLimits, options: SandboxOptions, timeout: float | None
    ) -> SandboxInstance | None:
        snapshot = self._templates.find(image, limits)
        if snapshot is None:
            return None
        try:
            machine = await self.pool.fork(snapshot, more=False)
            instance = self._session(machine, image, limits, options)
            await self._started(instance, instance.start_copy(self._boot_timeout), timeout)
        except (VmNotAvailable, ExecutionTimeout) as exc:
            # the reason for the caller, if there is one beyond this snapshot, is that of the boot that follows; what
            # may pass (a busy host) is no reason to take the snapshot from others
            if not exc.retryable:
                await asyncio.to_thread(self._templates.discard, snapshot)
            return None
        return instance

    async def _boot(self, instance: SandboxInstance) -> None:
        """Start a booted session, and write it down for those after it. An environment of one sandbox's own must not
        reach the others, so it comes afterwards."""
        await instance.start(self._boot_timeout)
        try:
            snapshot, _ = await instance.checkpoint(self._templates.place(instance.image, instance.limits))
            await asyncio.to_thread(self._templates.keep, snapshot)
        except VmConnectionError as exc:
            raise await instance.died_early() from exc
        except (OSError, SnapshotFailed) as exc:
            import structlog

            log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox")
            log.warning("template snapshot not taken", template=instance.image.name, reason=str(exc))
        await instance.add_environment()

    def get(self, sandbox_id: str) -> SandboxInstance:
        """A live sandbox by its id."""
        try:
            return self._instances[sandbox_id]
        except KeyError:
            raise SessionNotFound(f"There is no sandbox {sandbox_id!r:.80}.") from None

    def knows(self, sandbox_id: str) -> bool:
        """Whether `find` would find it."""
        suspended = [] if self.durability is None else [record.sandbox_id for record in self.durability.suspended]
        return sandbox_id in self._instances or sandbox_id in suspended

    async def find(self, sandbox_id: str) -> SandboxInstance:
        """A sandbox by its id; one that was suspended is woken.

        Raises:
            SessionNotFound: there is none.
        """
        if self.durability is not None and (
            sandbox_id not in self._instances or self.durability.is_suspended(sandbox_id)
        ):
            return await self.durability.wake(sandbox_id)
        return self.get(sandbox_id)

    def agent_of(self, sandbox_id: str) -> str | None:
        """Whose a sandbox is; None where there is none of this id."""
        if sandbox_id in self._instances:
            return self._instances[sandbox_id].agent_id
        suspended = [] if self.durability is None else self.durability.suspended
        return next((record.agent_id for record in suspended if record.sandbox_id == sandbox_id), None)

    def own(self, agent_id: str) -> str | None:
        """The id of the sandbox that an agent gets without naming one."""
        for instance in self._instances.values():
            if instance.own and instance.agent_id == agent_id and instance.state is not SandboxState.CLOSED:
                return instance.id
        suspended = [] if self.durability is None else self.durability.suspended
        return next((record.sandbox_id for record in suspended if record.own and record.agent_id == agent_id), None)

    def _share(self, agent_id: str, *, ask: bool = True) -> Callable[[], None]:
        """Give an agent one more sandbox; what is returned takes it back. `ask`: whether it may have one more."""
        mine = self._places[agent_id]
        if self.durability is not None:
            mine += self.durability.suspended_count(agent_id)
        if ask and self._per_agent is not None and agent_id != LOCAL_AGENT and mine >= self._per_agent:
            raise NoCapacity(
                f"Agent {agent_id!r:.80} has {mine} sandboxes already.",
                remediation="Kill one, or raise max_sandboxes_per_agent in the settings.",
            )
        self._places[agent_id] += 1

        def give_back() -> None:
            self._places[agent_id] -= 1
            if not self._places[agent_id]:
                del self._places[agent_id]

        return give_back

    def _suspended_bytes(self, agent_id: str) -> int:
        return 0 if self.durability is None else self.durability.snapshot_bytes(agent_id)

    async def forget_expired(self) -> None:
        """End what has no machine and no time any more."""
        if self.durability is not None:
            await self.durability.forget_expired()

    async def end(self, instance: SandboxInstance) -> None:
        """Nobody uses it: suspend it, or kill it."""
        if instance.durable and self.durability is not None:
            await self.durability.suspend(instance)
        else:
            unused = "" if instance.idle_seconds is None else f" for {instance.idle_seconds:g} s"
            await instance.kill(Death(TerminationReason.KILLED, f"nobody used it{unused}"))

    def instances(self) -> list[SandboxInstance]:
        return list(self._instances.values())

    async def _start_copy(
        self, snapshot: Snapshot, options: SandboxOptions, timeout: float | None, *, counted: bool = True
    ) -> SandboxInstance:
        """A sandbox that goes on from a snapshot (see `Starter`)."""
        with contextlib.ExitStack() as holding:
            if counted:
                holding.callback(self._share(options.agent_id, ask=options.sandbox_id is None))
                holding.callback(await self.pool.admit(snapshot.image, snapshot.limits))
            holding.enter_context(snapshot.image.in_use())
            machine = await self.pool.fork(snapshot)
            options = replace(options, durable=options.durable and counted)
            instance = self._session(machine, snapshot.image, snapshot.limits, options)
            await self._started(instance, instance.start_copy(self._boot_timeout), timeout)
            await self._opened(instance, holding)
        return instance

    # --- life -----------------------------------------------------------------------------------------------------

    def _session(
        self, machine: Machine, image: Image, limits: MachineLimits, options: SandboxOptions
    ) -> SandboxInstance:
        return SandboxInstance(
            machine,
            image,
            limits,
            replace(options, durable=options.durable and self.durability is not None),
            on_closed=self._closed,
            revive=self.snapshots.revive,
            on_changed=self.changed,
            orphan_grace_seconds=self._orphan_grace_seconds,
        )

    async def _started(
        self, instance: SandboxInstance, start: Coroutine[object, object, None], timeout: float | None
    ) -> None:
        try:
            await start
            instance.set_timeout(timeout)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(instance.kill()))
            raise
        self._instances[instance.id] = instance

    def _own_folder(self) -> Path:
        if self._snapshot_dir is None:
            self._snapshot_dir = make_run_dir(self._snapshot_base, socket_paths=False)
        return self._snapshot_dir.path

    def sweep(self) -> None:
        """Remove the snapshots of owners that are gone."""
        for path, fd in dead_owners(self._snapshot_base):
            shutil.rmtree(path, ignore_errors=True)
            os.close(fd)

    async def close(self) -> None:
        """Suspend those that are to outlive us; kill the others, and remove their snapshots."""
        if self.durability is not None:
            await self.durability.suspend_all()
        await asyncio.gather(self.pool.close(), *(instance.kill() for instance in self.instances()))
        if self._snapshot_dir is not None:
            await asyncio.to_thread(self._snapshot_dir.release)
            self._snapshot_dir = None

    def _closed(self, sandbox_id: str) -> None:
        self._instances.pop(sandbox_id, None)
        self.snapshots.closed(sandbox_id, for_good=self.durability is None or self.durability.closed(sandbox_id))
        holding = self._images.pop(sandbox_id, None)
        if holding is not None:
            holding.close()


def _options_of(record: SandboxRecord) -> SandboxOptions:
    return SandboxOptions(record.envs, record.metadata, record.agent_id, record.sandbox_id)
