"""All sandboxes of an engine: made, found, ended. The work is done by `starter`, `copies`, `snapshots.service` and
`durability.service`, which call downwards only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from emberbox.errors import SessionNotFound
from emberbox.images.store import Image
from emberbox.machines.contract import Death, MachineFactory
from emberbox.models import MachineLimits, TerminationReason
from emberbox.sandbox.copies import SandboxCopies
from emberbox.sandbox.durability.records import SandboxRecords
from emberbox.sandbox.durability.registry import SandboxRecord, SandboxRegistry
from emberbox.sandbox.durability.service import Durability
from emberbox.sandbox.instance import SandboxInstance, SandboxState
from emberbox.sandbox.options import LOCAL_AGENT, SandboxOptions
from emberbox.sandbox.pool.pool import MachinePool, PoolOptions
from emberbox.sandbox.pool.state import Rules
from emberbox.sandbox.pool.templates import TemplateSnapshots
from emberbox.sandbox.snapshots.scratch import SnapshotScratch
from emberbox.sandbox.snapshots.service import SnapshotQuota, SnapshotService
from emberbox.sandbox.snapshots.store import SnapshotStore
from emberbox.sandbox.starter import NewSandbox, Starter, StartRules


class SandboxManager:
    """All sandboxes of one engine.

    Args:
        factory: makes the machines.
        boot_timeout: seconds that a start may take.
        snapshot_base: folder in which this manager keeps snapshots, in a directory of its own; those of templates
            are shared with other processes of this user.
        store: of snapshots that outlive this process.
        quota: how many snapshots there may be, and how many sandboxes of one agent.
        pool: what may be made ahead, and how many sandboxes there may be.
        registry: where sandboxes are written down that outlive this process; None: none does.
        orphan_grace_seconds: how long the machines of those run on when it dies.

    Attributes:
        pool: machines made ahead, and places for sandboxes.
        snapshots: taken, removed, gone back to.
        copies: branches and forks.
        durability: of the sandboxes that outlive this process.
    """

    def __init__(
        self,
        factory: MachineFactory,
        boot_timeout: float,
        snapshot_base: Path,
        store: SnapshotStore,
        quota: SnapshotQuota | None = None,
        pool: PoolOptions | None = None,
        registry: SandboxRegistry | None = None,
        orphan_grace_seconds: float = 0,
    ) -> None:
        quota = quota or SnapshotQuota()
        self._templates = TemplateSnapshots(snapshot_base / "templates", factory.backend, factory.identity)
        self._scratch = SnapshotScratch(snapshot_base)
        self.pool = MachinePool(factory, self._templates, pool or PoolOptions(Rules()))
        self.snapshots = SnapshotService(self.pool, self._scratch, store, quota)
        records = None if registry is None else SandboxRecords(registry, self.snapshots)
        rules = StartRules(boot_timeout, quota.agent_sandboxes, orphan_grace_seconds)
        self._starter = Starter(self.pool, self._templates, self.snapshots, records, rules)
        self.copies = SandboxCopies(self._starter, self.snapshots, self._scratch)
        self.durability = None if records is None else Durability(self._starter, self.snapshots, records)

    async def create(
        self,
        image: Image,
        limits: MachineLimits,
        *,
        envs: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
        agent_id: str = LOCAL_AGENT,
        own: bool = False,
        idle_seconds: float | None = None,
        durable: bool = True,
    ) -> SandboxInstance:
        """Start a sandbox from a template (see `Starter`).

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
        return await self._starter.start(NewSandbox(image, limits, options, timeout))

    async def warm(self, image: Image, limits: MachineLimits, count: int | None = None) -> None:
        """Fill the pool of these sandboxes; raises what `MachinePool.warm` raises."""
        if self._templates.find(image, limits) is None:
            instance = await self.create(image, limits)  # it takes the snapshot
            await instance.kill()
        await self.pool.warm(image, limits, count)

    # --- which there are ------------------------------------------------------------------------------------------

    def instances(self) -> list[SandboxInstance]:
        """List the live sandboxes."""
        return self._starter.instances()

    def get(self, sandbox_id: str) -> SandboxInstance:
        """Find a live sandbox by its id; raises SessionNotFound."""
        instance = self._starter.find(sandbox_id)
        if instance is None:
            raise SessionNotFound(f"There is no sandbox {sandbox_id!r:.80}.")
        return instance

    def suspended(self) -> list[SandboxRecord]:
        """List the sandboxes without a machine."""
        return [] if self.durability is None else self.durability.suspended

    def knows(self, sandbox_id: str) -> bool:
        """Whether `find` would find it."""
        return self.agent_of(sandbox_id) is not None

    async def find(self, sandbox_id: str) -> SandboxInstance:
        """Find a sandbox by its id; one that was suspended is woken.

        Raises:
            SessionNotFound: there is none.
        """
        if self.durability is not None and (
            self._starter.find(sandbox_id) is None or self.durability.is_suspended(sandbox_id)
        ):
            return await self.durability.wake(sandbox_id)
        return self.get(sandbox_id)

    def agent_of(self, sandbox_id: str) -> str | None:
        """Say whose a sandbox is; None where there is none of this id."""
        instance = self._starter.find(sandbox_id)
        if instance is not None:
            return instance.agent_id
        return next((record.agent_id for record in self.suspended() if record.sandbox_id == sandbox_id), None)

    def own(self, agent_id: str) -> str | None:
        """Name the sandbox that an agent gets without naming one."""
        for instance in self.instances():
            if instance.own and instance.agent_id == agent_id and instance.state is not SandboxState.CLOSED:
                return instance.id
        return next((one.sandbox_id for one in self.suspended() if one.own and one.agent_id == agent_id), None)

    # --- their ends -----------------------------------------------------------------------------------------------

    async def end(self, instance: SandboxInstance) -> None:
        """Suspend a sandbox that nobody uses, or kill it."""
        if instance.durable and self.durability is not None:
            await self.durability.suspend(instance)
        else:
            unused = "" if instance.idle_seconds is None else f" for {instance.idle_seconds:g} s"
            await instance.kill(Death(TerminationReason.KILLED, f"nobody used it{unused}"))

    async def forget_expired(self) -> None:
        """End what has no machine and no time any more."""
        if self.durability is not None:
            await self.durability.forget_expired()

    def sweep(self) -> None:
        """Remove the snapshots of owners that are gone. Blocks."""
        self._scratch.sweep()

    async def close(self) -> None:
        """Suspend those that are to outlive us; kill the others, and remove their snapshots."""
        try:
            if self.durability is not None:
                await self.durability.suspend_all()
        finally:
            await asyncio.gather(self.pool.close(), *(instance.kill() for instance in self.instances()))
            await asyncio.to_thread(self._scratch.release)
