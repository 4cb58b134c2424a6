"""Durable sandboxes are suspended when they are idle or the service stops, woken when somebody asks for them, and found
again after a restart. What is written down of them is the business of `records`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping

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
from emberbox.sandbox.durability.records import SandboxRecords, Suspended
from emberbox.sandbox.durability.registry import SandboxRecord
from emberbox.sandbox.instance import SandboxInstance, SandboxState
from emberbox.sandbox.log import warn
from emberbox.sandbox.snapshots.service import SnapshotService
from emberbox.sandbox.snapshots.tree import Node
from emberbox.sandbox.starter import NewSandbox, Starter

_AT_ONCE = 4
_INTERRUPT_SECONDS = 2.0
"""What runs when the service stops may take so long to end by itself; then it is killed."""
_STOP_SECONDS = 5.0
_STOPPED = Death(TerminationReason.CRASHED, "the service that kept it stopped")


class Durability:
    """Suspends, wakes and finds again the sandboxes of one engine.

    Args:
        starter: of the sandboxes.
        snapshots: what they go on from.
        records: of those that outlive the process.
    """

    def __init__(self, starter: Starter, snapshots: SnapshotService, records: SandboxRecords) -> None:
        self._starter = starter
        self._snapshots = snapshots
        self._records = records
        self._waking: dict[str, asyncio.Task[SandboxInstance]] = {}

    # --- suspend --------------------------------------------------------------------------------------------------

    async def suspend(self, instance: SandboxInstance, *, force: bool = False) -> None:
        """Take a snapshot and end the machine.

        `force`: code that runs is interrupted; where no snapshot can be taken, the sandbox goes back to its last one.

        Raises:
            SnapshotFailed, VmNotAvailable: code is running or it has just been used, or the disk is full; it goes on.
        """
        if instance.state is SandboxState.PAUSED:
            await instance.resume()
        tree = self._snapshots.tree(instance)
        node = None
        try:
            node = await self._last_snapshot(instance, interrupt=force)
        except VmExecutionError as exc:
            if not force or not tree.nodes():
                raise
            warn("sandbox goes back to an older snapshot", exc, sandbox=instance.id)
        if not instance.is_open:
            raise VmNotAvailable(f"Sandbox {instance.id} was killed meanwhile.")
        record = self._records.record_of(instance, machine=None)
        try:
            if not force:
                _check_unused(instance, node)
            self._records.write(record)
        except SnapshotFailed as exc:
            if not force:
                with contextlib.suppress(SnapshotNotFound):
                    self._snapshots.delete(instance, node.info.snapshot_id if node else "")
                raise
            warn("sandbox not written down", exc, sandbox=instance.id)  # an older record is there
        if node is not None:
            for old in [n for n in tree.nodes() if n.info.kind == "shutdown" and n is not node]:
                tree.remove(old.info.snapshot_id)
        self._records.suspend(Suspended(record, tree, ends=instance.ends))
        await instance.suspend()

    async def _last_snapshot(self, instance: SandboxInstance, *, interrupt: bool) -> Node:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            try:
                return await self._snapshots.snapshot(instance, kind="shutdown")
            except SnapshotFailed:
                passed = loop.time() - began
                if not interrupt or passed > _STOP_SECONDS:
                    raise
                number = signal.SIGINT if passed < _INTERRUPT_SECONDS else signal.SIGKILL
                if not await instance.runner.interrupt(number=number):
                    raise
                await asyncio.sleep(0.05)  # until it has ended; it may also refuse to

    async def suspend_all(self) -> None:
        """Suspend all, when the service stops: nothing is lost but what is running just now."""
        if self._waking:
            await asyncio.wait(list(self._waking.values()))
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(instance: SandboxInstance) -> None:
            async with places:
                try:
                    await self.suspend(instance, force=True)
                except Exception as exc:  # noqa: BLE001 (whatever it is, the others are suspended)
                    if instance.is_open:  # else it was killed, which is no loss
                        warn("sandbox lost", exc, sandbox=instance.id)
                        self._records.leave(instance.id)

        await asyncio.gather(*(one(instance) for instance in self._starter.instances() if instance.durable))

    # --- back -----------------------------------------------------------------------------------------------------

    @property
    def suspended(self) -> list[SandboxRecord]:
        """Sandboxes without a machine, but for those whose own time is over."""
        return self._records.suspended

    def is_suspended(self, sandbox_id: str) -> bool:
        """Whether it has no machine, or is just being given one or losing it."""
        return self._records.find_suspended(sandbox_id) is not None

    async def forget_expired(self) -> None:
        """End the suspended sandboxes whose own time is over."""
        for sandbox_id in self._records.expired():
            if sandbox_id not in self._waking:
                await self.forget(sandbox_id)

    async def wake(self, sandbox_id: str) -> SandboxInstance:
        """Give a suspended sandbox a machine; those who ask at once share it.

        Raises:
            SessionNotFound: there is no such sandbox.
            VmNotAvailable, SnapshotFailed: none of its snapshots can be used now.
        """
        await self.forget_expired()
        if not self.is_suspended(sandbox_id):
            raise SessionNotFound(f"There is no sandbox {sandbox_id!r:.80}.")
        task = self._waking.get(sandbox_id)
        if task is None:
            task = self._waking[sandbox_id] = asyncio.create_task(self._wake(sandbox_id))
            task.add_done_callback(lambda _: self._waking.pop(sandbox_id, None))
        return await asyncio.shield(task)

    async def _wake(self, sandbox_id: str) -> SandboxInstance:
        sandbox = self._records.find_suspended(sandbox_id)
        if sandbox is None:
            raise SessionNotFound(f"There is no sandbox {sandbox_id!r:.80}.")
        leaving = self._starter.find(sandbox_id)
        if leaving is not None:  # it is just being suspended
            await leaving.kill()
        why = sandbox.problem or SnapshotFailed(f"Sandbox {sandbox_id} has no snapshot.")
        for node in sandbox.best():
            try:
                instance = await self._starter.start(NewSandbox.copy_of(node.snapshot, sandbox.record.options()))
            except VmExecutionError as exc:
                if exc.retryable or isinstance(exc, ExecutionTimeout):
                    raise  # it may work in a moment: no reason to lose what an older snapshot has not
                warn("snapshot passed over", exc, sandbox=sandbox_id)
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
        recovery = _recovery(sandbox.record, "restored", node)
        instance.found_again(sandbox.record, recovery, sandbox.seconds_left)
        self._records.resumed(instance.id)
        self._snapshots.went_back(instance, node, _STOPPED if recovery.lost_executions else None)

    async def forget(self, sandbox_id: str) -> bool:
        """End a suspended sandbox for good; False when there is none of this id."""
        if (task := self._waking.get(sandbox_id)) is not None:
            await asyncio.wait([task])
        if not self._records.forget(sandbox_id):
            return False
        await self._snapshots.forget(sandbox_id)
        return True

    # --- after a restart ------------------------------------------------------------------------------------------

    async def recover(self, machines: Mapping[str, Machine]) -> list[Recovery]:
        """Find again what an earlier process kept. `machines`: those of it that still run, by id; others than those of
        known sandboxes are killed."""
        records, unreadable = await asyncio.to_thread(self._records.load)
        known = {record.sandbox_id for record in records} | unreadable
        store = self._snapshots.store
        await asyncio.to_thread(store.sweep_unfinished)
        await asyncio.to_thread(store.sweep, lambda info: not info.kept and info.sandbox_id not in known)
        nodes, problems = await asyncio.to_thread(self._snapshots.stored_nodes)
        found = []
        for record in records:
            name = record.sandbox_id
            tree = self._snapshots.found_again(record, nodes.get(name, []))
            machine = machines.get(record.machine or "")
            found.append(await self._recover(Suspended.of(record, tree, problems.get(name)), machine))
        left = [m for m in machines.values() if m.id not in {s.machine.id for s in self._starter.instances()}]
        await asyncio.gather(*(machine.kill() for machine in left))
        return found

    async def _recover(self, sandbox: Suspended, machine: Machine | None) -> Recovery:
        record = sandbox.record
        self._records.suspend(sandbox)
        if sandbox.expired:
            await self.forget(record.sandbox_id)
            return _recovery(record, "lost", None)
        if machine is not None:
            try:
                instance = await self._starter.adopt(record, machine)
            except (VmExecutionError, OSError) as exc:
                warn("sandbox not adopted", exc, sandbox=record.sandbox_id)
            else:
                recovery = _recovery(record, "adopted", None)
                instance.found_again(record, recovery, sandbox.seconds_left)
                self._records.resumed(instance.id)
                return recovery
        best = sandbox.best()
        if not best and sandbox.problem is None:
            await self._lose(record)
            return _recovery(record, "lost", None)
        return _recovery(record, "dormant", best[0] if best else None)

    async def _lose(self, record: SandboxRecord) -> None:
        """End a sandbox that has neither a machine nor a snapshot; where its agent has it without naming it, the agent
        is told when it runs code in the next one, and the record stays until then."""
        lineage = record.lineage()
        if not record.own or not lineage.total:
            await self.forget(record.sandbox_id)
            return
        self._records.leave(record.sandbox_id)
        await self._snapshots.forget(record.sandbox_id)
        self._starter.losses.note(record.agent_id, record.sandbox_id, lineage.lost(_STOPPED))


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
