"""Sandboxes that outlive the process: written down as they change, suspended when idle, found again after a restart.

A sandbox that is suspended is suspended: it has a snapshot and a record, and no machine. Whoever asks for it wakes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from emberbox.errors import (
    ExecutionTimeout,
    SessionNotFound,
    SnapshotFailed,
    SnapshotNotFound,
    VmExecutionError,
    VmNotAvailable,
)
from emberbox.machines.contract import Death, Machine
from emberbox.models import Recovery, TerminationReason
from emberbox.sandbox.durability.registry import SandboxRecord, SandboxRegistry
from emberbox.sandbox.instance import SandboxInstance, SandboxState
from emberbox.sandbox.snapshots.service import SnapshotService
from emberbox.sandbox.snapshots.tree import Node

_AT_ONCE = 4
_LIVE = frozenset({SandboxState.READY, SandboxState.PAUSED, SandboxState.RESTORING})
_INTERRUPT_SECONDS = 2.0
"""What runs when the service stops may take so long to end by itself; then it is killed."""
_STOP_SECONDS = 5.0


@dataclass(slots=True)
class Suspended:
    """A sandbox without a machine."""

    record: SandboxRecord
    nodes: list[Node]
    """Its snapshots that can be used, oldest first."""
    problem: VmExecutionError | None = None
    """Why others cannot be used."""

    def best(self) -> list[Node]:
        """What to go on from, best first: what has all of its executions, the head before newer ones (one may have
        been finished just before the end, when the record still named the head before it); then the rest."""
        newest = self.nodes[::-1]
        head = [node for node in newest if node.info.snapshot_id == self.record.head]
        whole = [node for node in (*head, *newest) if list(node.moment.executions) == self.record.path]
        return list({node.info.snapshot_id: node for node in (*whole, *head, *newest)}.values())

    @property
    def expired(self) -> bool:
        """Its own time is over."""
        return self.record.end_at is not None and self.record.end_at <= datetime.now(UTC)


class Host(Protocol):
    """What the keeper needs of the manager."""

    @property
    def snapshots(self) -> SnapshotService: ...

    def instances(self) -> list[SandboxInstance]: ...
    async def reopen(self, record: SandboxRecord, node: Node) -> SandboxInstance: ...
    async def adopt(self, record: SandboxRecord, machine: Machine) -> SandboxInstance: ...


class Durability:
    """Keeps the sandboxes of one manager.

    Args:
        host: the manager.
        ledger: an open one.
    """

    def __init__(self, host: Host, ledger: SandboxRegistry) -> None:
        self._host = host
        self._ledger = ledger
        self._known: set[str] = set()
        """Sessions that are written down."""
        self._suspended: dict[str, Suspended] = {}
        self._waking: dict[str, asyncio.Task[SandboxInstance]] = {}
        self._suspending: set[str] = set()
        """Sessions whose end is not the end of their sandbox."""

    # --- write down -----------------------------------------------------------------------------------------------

    def opened(self, instance: SandboxInstance) -> None:
        """Write a new sandbox down.

        Raises:
            SnapshotFailed: the disk refused.
        """
        if instance.id not in self._suspended:  # else it is being woken: its record is right until that is done
            self._write(self._record(instance, machine=instance.machine.id))
            self._known.add(instance.id)

    def changed(self, instance: SandboxInstance) -> None:
        """Write a sandbox down as it is now. Where the disk refuses, the older record stays: a restart would find the
        sandbox with it, or say what was lost."""
        if instance.id in self._known and instance.id not in self._suspending and instance.state in _LIVE:
            try:
                self._write(self._record(instance, machine=instance.machine.id))
            except SnapshotFailed as exc:
                _warn("sandbox not written down", instance.id, exc)

    def _write(self, record: SandboxRecord) -> None:
        try:
            self._ledger.write(record)
        except OSError as exc:
            raise SnapshotFailed(
                f"Sandbox {record.sandbox_id} cannot be written down: {exc.strerror or exc}.",
                remediation="Make space on the file system of `state_dir`.",
            ) from exc

    def _record(self, instance: SandboxInstance, *, machine: str | None) -> SandboxRecord:
        image = instance.image
        return SandboxRecord(
            sandbox_id=instance.id,
            agent_id=instance.agent_id,
            own=instance.own,
            image=image.directory.name,
            built_at=image.manifest.built_at,
            guest=image.guest_dir.name,
            template=image.template,
            limits=instance.limits,
            envs=instance.envs,
            metadata=instance.metadata,
            started_at=instance.started_at,
            end_at=instance.end_at,
            idle_seconds=instance.idle_seconds,
            machine=machine,
            head=self._host.snapshots.tree(instance).head,
            path=list(instance.lineage.executions),
            good=instance.lineage.last_succeeded,
        )

    def closed(self, sandbox_id: str) -> bool:
        """A session has ended; False when its sandbox goes on, suspended."""
        self._known.discard(sandbox_id)
        if sandbox_id in self._suspending:
            return False
        self._ledger.remove(sandbox_id)
        return True

    # --- suspend --------------------------------------------------------------------------------------------------

    async def suspend(self, instance: SandboxInstance, *, force: bool = False) -> None:
        """Take a snapshot and end the machine.

        `force`: code that runs is interrupted; where no snapshot can be taken, the sandbox goes back to its last one.

        Raises:
            SnapshotFailed, VmNotAvailable: code is running or it has just been used, or the disk is full; it goes on.
        """
        if instance.state is SandboxState.PAUSED:
            await instance.resume()
        tree = self._host.snapshots.tree(instance)
        node = None
        try:
            node = await self._last_snapshot(instance, interrupt=force)
        except VmExecutionError as exc:
            if not force or not tree.nodes():
                raise
            _warn("sandbox goes back to an older snapshot", instance.id, exc)
        if instance not in self._host.instances():
            raise VmNotAvailable(f"Sandbox {instance.id} was killed meanwhile.")
        record = self._record(instance, machine=None)
        try:
            if not force:
                _check_unused(instance, node)
            self._write(record)
        except SnapshotFailed as exc:
            if not force:
                with contextlib.suppress(SnapshotNotFound):
                    self._host.snapshots.delete(instance, node.info.snapshot_id if node else "")
                raise
            _warn("sandbox not written down", instance.id, exc)  # an older record is there
        if node is not None:
            for old in [n for n in tree.nodes() if n.info.kind == "shutdown" and n is not node]:
                tree.remove(old.info.snapshot_id)
        self._suspending.add(instance.id)
        self._suspended[instance.id] = Suspended(record, tree.nodes())
        await instance.suspend()

    async def _last_snapshot(self, instance: SandboxInstance, *, interrupt: bool) -> Node:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            try:
                return await self._host.snapshots.snapshot(instance, kind="shutdown")
            except SnapshotFailed:
                passed = loop.time() - began
                if not interrupt or passed > _STOP_SECONDS:
                    raise
                number = signal.SIGINT if passed < _INTERRUPT_SECONDS else signal.SIGKILL
                if not await instance.runner.interrupt(number=number):
                    raise
                await asyncio.sleep(0.05)  # until it has ended; it may also refuse to

    async def suspend_all(self) -> None:
        """When the service stops: nothing is lost but what is running just now."""
        if self._waking:
            await asyncio.wait(list(self._waking.values()))
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(instance: SandboxInstance) -> None:
            async with places:
                try:
                    await self.suspend(instance, force=True)
                except VmExecutionError as exc:
                    _warn("sandbox lost", instance.id, exc)
                    self._suspending.add(instance.id)  # its record stays, so that the next engine says so

        await asyncio.gather(*(one(instance) for instance in self._host.instances() if instance.durable))

    # --- back -----------------------------------------------------------------------------------------------------

    @property
    def suspended(self) -> list[SandboxRecord]:
        """Sandboxes without a machine."""
        return [sandbox.record for sandbox in self._suspended.values() if not sandbox.expired]

    def suspended_count(self, agent_id: str) -> int:
        """How many suspended sandboxes an agent has, but for those that are being woken."""
        names = [record.sandbox_id for record in self.suspended if record.agent_id == agent_id]
        return sum(name not in self._waking for name in names)

    def is_suspended(self, sandbox_id: str) -> bool:
        """It has no machine, or is just being given one or losing it."""
        return sandbox_id in self._suspended

    def snapshot_bytes(self, agent_id: str) -> int:
        """Of all snapshots of an agent's suspended sandboxes."""
        mine = [sandbox for sandbox in self._suspended.values() if sandbox.record.agent_id == agent_id]
        return sum(node.info.size_bytes for sandbox in mine for node in sandbox.nodes)

    async def forget_expired(self) -> None:
        """End the suspended sandboxes whose own time is over."""
        for sandbox_id in [sandbox_id for sandbox_id, sandbox in self._suspended.items() if sandbox.expired]:
            if sandbox_id not in self._waking:
                await self.forget(sandbox_id)

    async def wake(self, sandbox_id: str) -> SandboxInstance:
        """Give a suspended sandbox a machine; those who ask at once share it.

        Raises:
            SessionNotFound: there is no such sandbox.
            VmNotAvailable, SnapshotFailed: none of its snapshots can be used now.
        """
        await self.forget_expired()
        if sandbox_id not in self._suspended:
            raise SessionNotFound(f"There is no sandbox {sandbox_id!r:.80}.")
        task = self._waking.get(sandbox_id)
        if task is None:
            task = self._waking[sandbox_id] = asyncio.create_task(self._wake(sandbox_id))
            task.add_done_callback(lambda _: self._waking.pop(sandbox_id, None))
        return await asyncio.shield(task)

    async def _wake(self, sandbox_id: str) -> SandboxInstance:
        sandbox = self._suspended[sandbox_id]
        for instance in self._host.instances():
            if instance.id == sandbox_id:  # it is just being suspended
                await instance.kill()
        why = sandbox.problem or SnapshotFailed(f"Sandbox {sandbox_id} has no snapshot.")
        for node in sandbox.best():
            try:
                instance = await self._host.reopen(sandbox.record, node)
            except VmExecutionError as exc:
                if exc.retryable or isinstance(exc, ExecutionTimeout):
                    raise  # it may work in a moment: no reason to lose what an older snapshot has not
                _warn("snapshot passed over", sandbox_id, exc)
                why = exc
                continue
            self._come_back(instance, sandbox, node)
            return instance
        raise SnapshotFailed(
            f"Sandbox {sandbox_id} cannot go on: {why.message}",
            remediation=f"{why.remediation} Or end the sandbox with kill_sandbox().",
            retryable=False,
        ) from why

    def _come_back(self, instance: SandboxInstance, sandbox: Suspended, node: Node) -> None:
        record = sandbox.record
        del self._suspended[instance.id]
        self._suspending.discard(instance.id)
        self._host.snapshots.adopt_tree(instance, sandbox.nodes, node.info.snapshot_id)
        recovery = _recovery(record, "restored", node)
        instance.found_again(record, recovery)
        self._known.add(instance.id)
        if recovery.lost_executions:
            death = Death(TerminationReason.CRASHED, "the service that kept it stopped")
            instance.restored(node.moment, node.info.snapshot_id, death)
        else:
            instance.went_back_to(node.moment)
        node.moment = instance.lineage.moment

    async def forget(self, sandbox_id: str) -> bool:
        """End a suspended sandbox for good; False when there is none of this id."""
        if (task := self._waking.get(sandbox_id)) is not None:
            await asyncio.wait([task])
        sandbox = self._suspended.pop(sandbox_id, None)
        if sandbox is None:
            return False
        self._suspending.discard(sandbox_id)
        self._ledger.remove(sandbox_id)
        await asyncio.to_thread(self._host.snapshots.erase, sandbox_id, sandbox.nodes)
        return True

    # --- after a restart ------------------------------------------------------------------------------------------

    async def recover(self, machines: Mapping[str, Machine]) -> list[Recovery]:
        """Find again what an earlier process kept. `machines`: those of it that still run, by id; others than those of
        known sandboxes are killed."""
        records = await asyncio.to_thread(self._ledger.records)
        known = {record.sandbox_id for record in records} | self._ledger.unreadable()
        store = self._host.snapshots.store
        await asyncio.to_thread(store.sweep_unfinished)
        await asyncio.to_thread(store.sweep, lambda info: not info.kept and info.sandbox_id not in known)
        nodes, problems = await asyncio.to_thread(self._host.snapshots.stored_nodes)
        found = []
        for record in records:
            name = record.sandbox_id
            machine = machines.get(record.machine or "")
            found.append(await self._recover(Suspended(record, nodes.get(name, []), problems.get(name)), machine))
        left = [m for m in machines.values() if m.id not in {s.machine.id for s in self._host.instances()}]
        await asyncio.gather(*(machine.kill() for machine in left))
        return found

    async def _recover(self, sandbox: Suspended, machine: Machine | None) -> Recovery:
        record = sandbox.record
        self._suspended[record.sandbox_id] = sandbox
        self._suspending.add(record.sandbox_id)
        if sandbox.expired:
            await self.forget(record.sandbox_id)
            return _recovery(record, "lost", None)
        if machine is not None:
            try:
                instance = await self._host.adopt(record, machine)
            except (VmExecutionError, OSError) as exc:
                _warn("sandbox not adopted", record.sandbox_id, exc)
            else:
                return self._adopted(instance, sandbox)
        if not sandbox.nodes and sandbox.problem is None:
            await self.forget(record.sandbox_id)
            return _recovery(record, "lost", None)
        return _recovery(record, "dormant", next(iter(sandbox.best()), None))

    def _adopted(self, instance: SandboxInstance, sandbox: Suspended) -> Recovery:
        record = sandbox.record
        del self._suspended[instance.id]
        self._suspending.discard(instance.id)
        self._host.snapshots.adopt_tree(instance, sandbox.nodes, record.head)
        recovery = _recovery(record, "adopted", None)
        instance.found_again(record, recovery)
        self._known.add(instance.id)
        return recovery


def _check_unused(instance: SandboxInstance, node: Node | None) -> None:
    """Nothing was done in it since this snapshot was taken; raises SnapshotFailed."""
    if node is None or not instance.lineage.is_at(node.moment):
        raise SnapshotFailed(f"Sandbox {instance.id} has just been used.")


def _recovery(record: SandboxRecord, how: str, node: Node | None) -> Recovery:
    stays = set(record.path if how == "adopted" else node.moment.executions if node else ())
    return Recovery.model_validate(
        {
            "sandbox_id": record.sandbox_id,
            "agent_id": record.agent_id,
            "how": how,
            "snapshot_id": None if node is None else node.info.snapshot_id,
            "lost_executions": [execution for execution in record.path if execution not in stays],
        }
    )


def _warn(what: str, sandbox_id: str, why: Exception) -> None:
    import structlog

    log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox")
    log.warning(what, sandbox=sandbox_id, reason=str(why))


def idle(instances: Iterable[SandboxInstance], now: float) -> list[SandboxInstance]:
    """Those that nobody has used for their `idle_seconds` at a time of the loop's clock. What works is in use."""
    found = []
    for instance in instances:
        if instance.runner.busy:
            instance.used(now)
        elif instance.idle_seconds is not None and now - instance.last_used >= instance.idle_seconds:
            found.append(instance)
    return found


async def reap_idle(
    instances: Callable[[], Iterable[SandboxInstance]],
    end: Callable[[SandboxInstance], Awaitable[None]],
    every: float,
    forget_expired: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Every so many seconds, end the sessions that are idle, and what has no machine and no time any more."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(every)
        try:
            if forget_expired is not None:
                await forget_expired()
            for instance in idle(list(instances()), loop.time()):
                # it has just been used or killed, or the disk refused
                with contextlib.suppress(VmExecutionError, OSError):
                    await end(instance)
        except Exception as exc:  # noqa: BLE001 (whatever it is, the others are looked at again)
            _warn("idle sandboxes not ended", "", exc)
