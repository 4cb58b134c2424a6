"""The snapshots of an engine's sandboxes: taken, removed, gone back to. No sandbox is made here (see `copies`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from emberbox.errors import RollbackFailed, SnapshotFailed, SnapshotNotFound, VmExecutionError
from emberbox.machines.contract import Death, Machine
from emberbox.models import SnapshotKind
from emberbox.sandbox.durability.registry import SandboxRecord
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.log import warn
from emberbox.sandbox.pool.pool import MachinePool
from emberbox.sandbox.snapshots.scratch import SnapshotScratch
from emberbox.sandbox.snapshots.store import SnapshotStore
from emberbox.sandbox.snapshots.tree import Node, SnapshotTree

_PAUSES = (0.05, 0.5, 2.0)
"""Seconds between attempts to give a sandbox a machine in place of one that died: what killed that may pass."""


@dataclass(frozen=True, slots=True)
class SnapshotQuota:
    """How many snapshots there may be, and how many sandboxes of one agent."""

    per_sandbox: int = 50
    agent_bytes: int | None = None
    """Of all snapshots of an agent's sandboxes."""
    agent_sandboxes: int | None = None
    """Sandboxes of one agent."""


class SnapshotService:
    """The snapshots of all sandboxes, also of those that are suspended.

    Args:
        pool: forks the machine that a sandbox goes back with.
        scratch: where snapshots go that end with this process.
        store: of the snapshots that outlive it.
        quota: how many snapshots there may be.
    """

    def __init__(
        self, pool: MachinePool, scratch: SnapshotScratch, store: SnapshotStore, quota: SnapshotQuota | None = None
    ) -> None:
        self.store = store
        self._pool = pool
        self._scratch = scratch
        self._quota = quota or SnapshotQuota()
        self._trees: dict[str, SnapshotTree] = {}
        """Of sandboxes that are in use, and of those that are suspended."""

    # --- whose they are -------------------------------------------------------------------------------------------

    def tree(self, instance: SandboxInstance) -> SnapshotTree:
        """Find the snapshots of a sandbox. One that has ended has none, and what a suspended one has it has again when
        it is woken, as another instance."""
        if instance.suspended:
            return self._new_tree(instance)
        tree = self._trees.get(instance.id)
        if tree is None:
            tree = self._new_tree(instance)
            if instance.is_open:
                self._trees[instance.id] = tree
        return tree

    def _new_tree(self, instance: SandboxInstance) -> SnapshotTree:
        folder = self.store.folder if instance.durable else self._scratch.path() / instance.id
        most = self._quota.per_sandbox
        return SnapshotTree(instance.id, instance.agent_id, folder, most, durable=instance.durable)

    def found_again(self, record: SandboxRecord, nodes: Sequence[Node]) -> SnapshotTree:
        """Take in a sandbox that an earlier process kept, with those of its snapshots that can be used."""
        most = self._quota.per_sandbox
        tree = SnapshotTree(record.sandbox_id, record.agent_id, self.store.folder, most, durable=True)
        tree.take_back(nodes, record.head)
        self._trees[record.sandbox_id] = tree
        return tree

    def closed(self, sandbox_id: str) -> None:
        """Remove the snapshots of a sandbox that has ended for good, but those that are to be kept."""
        tree = self._trees.pop(sandbox_id, None)
        if tree is not None:
            tree.clear()

    async def forget(self, sandbox_id: str) -> None:
        """Remove the snapshots of a suspended sandbox that has ended for good, but those that are to be kept."""
        await asyncio.to_thread(self._erase, sandbox_id, self._trees.pop(sandbox_id, None))

    def _erase(self, sandbox_id: str, tree: SnapshotTree | None) -> None:
        if tree is not None:
            tree.clear()
        self.store.sweep(lambda info: info.sandbox_id == sandbox_id and not info.kept)  # those that cannot be used

    def stored_nodes(self) -> tuple[dict[str, list[Node]], dict[str, VmExecutionError]]:
        """The snapshots of the store that can be used, by sandbox, oldest first, and why others cannot. Blocks."""
        found: dict[str, list[Node]] = {}
        problems: dict[str, VmExecutionError] = {}
        for record in self.store.records():
            if record.imported:
                continue
            try:
                found.setdefault(record.info.sandbox_id, []).append(self.store.node(record))
            except SnapshotFailed as exc:
                problems[record.info.sandbox_id] = exc
        return found, problems

    # --- snapshots ------------------------------------------------------------------------------------------------

    async def snapshot(
        self,
        instance: SandboxInstance,
        name: str | None = None,
        *,
        kind: SnapshotKind = "manual",
        keep: bool = False,
        description: str = "",
    ) -> Node:
        """Keep the sandbox as it is now.

        `keep`: a copy of the snapshot outlives the sandbox and this process.

        Raises:
            SnapshotFailed: code is running, there are too many, or the disk refused.
            VmNotAvailable: the sandbox is gone.
        """
        tree = self.tree(instance)
        if kind != "shutdown":  # it takes the place of what the machine is
            await self._check_quota(instance.agent_id)
        directory = tree.new_directory(kind)
        snapshot, moment = await instance.checkpoint(directory)
        node = tree.add(snapshot, name, kind, moment)
        node.info.description = description
        try:
            with tree.use(node):
                if instance.durable:
                    node.info.kept = keep
                    await asyncio.to_thread(self.store.seal, node, instance.envs, instance.metadata)
                elif keep:
                    await asyncio.to_thread(self.store.keep, node, instance.envs, instance.metadata)
            instance.changed()
        except BaseException:
            with contextlib.suppress(SnapshotNotFound):
                tree.remove(node.info.snapshot_id)
            raise
        return node

    def agent_bytes(self, agent_id: str) -> int:
        """Sum up the snapshots of an agent's sandboxes, also of those that are suspended."""
        return sum(tree.size_bytes for tree in self._trees.values() if tree.agent_id == agent_id)

    async def _check_quota(self, agent_id: str) -> None:
        most = self._quota.agent_bytes
        if most is None:
            return
        mine = [tree for tree in self._trees.values() if tree.agent_id == agent_id]
        counted = {info.snapshot_id for tree in mine for info in tree.infos()}
        # those that are kept outlive their sandboxes
        used = self.agent_bytes(agent_id) + await asyncio.to_thread(self.store.bytes_of, agent_id, counted)
        if used >= most:
            raise SnapshotFailed(
                f"The snapshots of agent {agent_id!r:.80} take {used >> 20} MiB; the limit is {most >> 20} MiB.",
                remediation="Delete some with delete_snapshot(), or raise max_snapshot_mb_per_agent in the settings.",
                retryable=False,
            )

    def delete(self, instance: SandboxInstance, wanted: str) -> None:
        """Remove a snapshot by id or name; raises SnapshotNotFound."""
        tree = self.tree(instance)
        info = tree.find(wanted).info
        tree.remove(info.snapshot_id)
        if info.kept and not tree.durable:
            self.store.remove(info.snapshot_id)
        instance.changed()

    # --- rollback and revival -------------------------------------------------------------------------------------

    async def rollback(
        self, instance: SandboxInstance, node: Node, beside: Awaitable[object] | None = None
    ) -> list[str]:
        """Take the sandbox back: files, memory and processes. The executions that this undid, oldest first.

        `beside`: see `SandboxInstance.replace_machine`.

        Raises:
            RollbackFailed: nothing could be started from it; the sandbox is as it was.
        """
        with self.tree(instance).use(node) as snapshot:
            await instance.replace_machine(snapshot, self._pool, beside=beside)
            return self.went_back(instance, node)

    async def revive(self, instance: SandboxInstance, death: Death) -> bool:
        """Give a sandbox whose machine died the last snapshot of it that can be used; False if there is none, or no
        machine comes up now."""
        tree = self._trees.get(instance.id)
        dead = instance.machine
        node = None if tree is None else tree.current()
        while tree is not None and node is not None:
            try:
                await self._revive_from(instance, tree, node, death, dead)
            except RollbackFailed as exc:
                if exc.retryable and instance.durable:  # it is suspended, and loses nothing more by waiting
                    return False
                node = tree.parent(node)
                continue
            except VmExecutionError:
                return False  # it was killed meanwhile
            return True
        return False

    async def _revive_from(
        self, instance: SandboxInstance, tree: SnapshotTree, node: Node, death: Death, dead: Machine
    ) -> None:
        for pause in (*_PAUSES, None):
            try:
                with tree.use(node) as snapshot:
                    if await instance.replace_machine(snapshot, self._pool, dead=dead):
                        self.went_back(instance, node, death)
            except RollbackFailed as exc:
                warn("sandbox not restored", exc, sandbox=instance.id, snapshot=node.info.snapshot_id)
                if pause is None or not exc.retryable:
                    raise
                await asyncio.sleep(pause)
            else:
                return

    def went_back(self, instance: SandboxInstance, node: Node, death: Death | None = None) -> list[str]:
        """Note that a sandbox goes on from a snapshot; `death`: because its machine died. The executions that this
        undid."""
        self.tree(instance).went_back_to(node.info.snapshot_id)  # before the sandbox is written down as it is now
        if death is None:
            undone = instance.went_back_to(node.moment)
        else:
            undone = instance.restored(node.moment, node.info.snapshot_id, death)
        node.revisited(instance.lineage.moment)
        return undone
