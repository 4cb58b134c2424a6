"""Copies of sandboxes: snapshots, rollback, branch, fork, and what becomes of a sandbox whose machine died."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from emberbox.errors import RollbackFailed, SnapshotFailed, SnapshotNotFound, VmExecutionError, VmNotAvailable
from emberbox.machines.contract import Death, Machine, Snapshot
from emberbox.models import SnapshotKind
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.lineage import SnapshotPoint
from emberbox.sandbox.options import SandboxOptions
from emberbox.sandbox.snapshots.store import SnapshotStore
from emberbox.sandbox.snapshots.tree import Node, SnapshotTree, erase

_FORKS_AT_ONCE = 4
"""Copies that start at the same time; more would only wait for the same processors."""
_READING_SECONDS = 600.0


class Starter(Protocol):
    """Finds a place for a sandbox, forks its machine and wakes it; nothing is left when it fails.

    `counted`: it counts as a sandbox, and waits until there may be one more; others do not outlive this process.
    """

    async def __call__(
        self, snapshot: Snapshot, options: SandboxOptions, timeout: float | None, *, counted: bool = True
    ) -> SandboxInstance: ...


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """What a copy is other than its origin.

    Args:
        timeout: seconds after which it is killed; None: never.
        metadata: its words; None: those of the origin.
        durable: it outlives this process where others do.
        idle_seconds: it ends, or is suspended, when it is not used for so long; None: it does not.
    """

    timeout: float | None = None
    metadata: Mapping[str, str] | None = None
    durable: bool = True
    idle_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class SnapshotQuota:
    """How many snapshots there may be, and how many sandboxes of one agent."""

    per_sandbox: int = 50
    agent_bytes: int | None = None
    """Of all snapshots of an agent's sandboxes."""
    agent_sandboxes: int | None = None
    """Sandboxes of one agent."""


class SnapshotService:
    """Copies the sandboxes of one engine.

    Args:
        fork: starts a machine from a snapshot, for a sandbox that exists.
        start: starts a sandbox from a snapshot.
        folder: makes (once) and names the folder for snapshots that end with this process.
        store: of the snapshots that outlive it.
        bounds: how many snapshots there may be.
        dormant_bytes: of the snapshots of an agent's sandboxes that have no machine now.
    """

    def __init__(
        self,
        fork: Callable[[Snapshot], Awaitable[Machine]],
        start: Starter,
        folder: Callable[[], Path],
        store: SnapshotStore,
        bounds: SnapshotQuota,
        suspended_bytes: Callable[[str], int],
    ) -> None:
        self._fork = fork
        self._start = start
        self._folder = folder
        self.store = store
        self._bounds = bounds
        self._suspended_bytes = suspended_bytes
        self._trees: dict[str, SnapshotTree] = {}
        self._forking = asyncio.Semaphore(_FORKS_AT_ONCE)
        self._cleaning: set[asyncio.Task[object]] = set()

    def tree(self, instance: SandboxInstance) -> SnapshotTree:
        """The snapshots of a sandbox."""
        tree = self._trees.get(instance.id)
        if tree is None:
            folder = self.store.folder if instance.durable else self._folder() / instance.id
            most = self._bounds.per_sandbox
            tree = SnapshotTree(instance.id, instance.agent_id, folder, most, durable=instance.durable)
            self._trees[instance.id] = tree
        return tree

    def closed(self, sandbox_id: str, *, for_good: bool = True) -> None:
        """A session has ended. For good: so do its snapshots."""
        tree = self._trees.pop(sandbox_id, None)
        if tree is not None and for_good:
            tree.clear()

    def adopt_tree(self, instance: SandboxInstance, nodes: Sequence[Node], head: str | None) -> None:
        """Give a sandbox that was found again the snapshots that it had."""
        self.tree(instance).take_back(nodes, head)

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

    def erase(self, sandbox_id: str, nodes: Sequence[Node]) -> None:
        """Remove the snapshots of a sandbox that is gone, but those that are to be kept. Blocks."""
        for node in nodes:
            if not node.info.kept:
                erase(node)
        self.store.sweep(lambda info: info.sandbox_id == sandbox_id and not info.kept)  # those that cannot be used

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
        """
        tree = self.tree(instance)
        if kind != "shutdown":  # it takes the place of what the machine is
            stored = await asyncio.to_thread(self._stored_bytes, instance.agent_id) if keep else 0
            self._check_quota(instance.agent_id, stored)
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

    def _stored_bytes(self, agent_id: str) -> int:
        """Of what an agent has in the store, where kept snapshots outlive their sandboxes. Blocks."""
        infos = [record.info for record in self.store.records()]
        return sum(info.size_bytes for info in infos if info.agent_id == agent_id)

    def _check_quota(self, agent_id: str, stored: int) -> None:
        most = self._bounds.agent_bytes
        used = sum(tree.size_bytes for tree in self._trees.values() if tree.agent_id == agent_id)
        used = max(stored, used + self._suspended_bytes(agent_id))
        if most is not None and used >= most:
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

    # --- rollback and revival -----------------------------------------------------------------------------------------

    async def rollback(
        self, instance: SandboxInstance, node: Node, beside: Awaitable[object] | None = None
    ) -> list[str]:
        """Take the sandbox back: files, memory and processes. The executions that this undid, oldest first.

        `beside`: see `SandboxInstance.replace_machine`.

        Raises:
            RollbackFailed: nothing could be started from it; the sandbox is as it was.
        """
        tree = self.tree(instance)
        undone: list[str] = []

        def swapped() -> None:
            tree.went_back_to(node.info.snapshot_id)
            undone.extend(instance.went_back_to(node.moment))
            node.moment = instance.lineage.moment

        with tree.use(node) as snapshot:
            await instance.replace_machine(snapshot, self._fork, swapped, beside=beside)
        return undone

    async def revive(self, instance: SandboxInstance, death: Death) -> bool:
        """Give a sandbox whose machine died the last snapshot of it; False if there is none that works."""
        tree = self._trees.get(instance.id)
        dead = instance.machine
        node = None if tree is None else tree.current()
        while tree is not None and node is not None:
            try:
                await self._revive_from(instance, tree, node, death, dead)
            except RollbackFailed as exc:
                _warn(instance.id, node.info.snapshot_id, exc)
                node = tree.parent(node)
                continue
            except VmExecutionError:
                return False  # it was killed meanwhile
            return True
        return False

    async def _revive_from(
        self, instance: SandboxInstance, tree: SnapshotTree, node: Node, death: Death, dead: Machine
    ) -> None:
        def swapped() -> None:
            tree.went_back_to(node.info.snapshot_id)
            instance.restored(node.moment, node.info.snapshot_id, death)
            node.moment = instance.lineage.moment

        with tree.use(node) as snapshot:
            await instance.replace_machine(snapshot, self._fork, swapped, dead=dead)

    async def branch(self, instance: SandboxInstance, node: Node, options: CopyOptions) -> SandboxInstance:
        """A new sandbox that goes on from a snapshot; the old one is not touched."""
        with self.tree(instance).use(node) as snapshot:
            return await self._copy(instance, snapshot, node.moment, options)

    async def fork(
        self, instance: SandboxInstance, count: int, options: CopyOptions
    ) -> list[SandboxInstance | VmExecutionError]:
        """`count` new sandboxes that go on from this moment; for each the sandbox, or why there is none."""
        # not in the tree: the copies do not depend on whether the sandbox lives on
        directory = self._folder() / f"fork-{secrets.token_hex(6)}"
        snapshot, moment = await instance.checkpoint(directory, look=count > 1)
        try:
            return await self._copies(instance, snapshot, moment, count, options)
        finally:
            await self._surely(asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True))

    async def _surely(self, work: Coroutine[object, object, object]) -> None:
        """Do it to its end, even if the caller is cancelled, once or (as some frameworks do) at every await."""
        task = asyncio.create_task(work)
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)
        await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for what is being cleared away."""
        if self._cleaning:
            await asyncio.wait(list(self._cleaning))

    async def _copies(
        self, instance: SandboxInstance, snapshot: Snapshot, moment: SnapshotPoint, count: int, options: CopyOptions
    ) -> list[SandboxInstance | VmExecutionError]:
        async def one() -> SandboxInstance | VmExecutionError:
            async with self._forking:
                try:
                    copy = await self._copy(instance, snapshot, moment, options)
                except VmExecutionError as exc:
                    return exc
                if snapshot.idle:
                    # 2.5 % of a processor each, which the others that are still to start need: 33 s for 100, not 8
                    copy.idle_stopper.begin()
                return copy

        tasks = [asyncio.ensure_future(one()) for _ in range(count)]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            await self._surely(_end_all(tasks))
            raise

    async def _copy(
        self,
        origin: SandboxInstance,
        snapshot: Snapshot,
        moment: SnapshotPoint,
        options: CopyOptions,
        *,
        counted: bool = True,
    ) -> SandboxInstance:
        wanted = SandboxOptions(
            envs=origin.envs,
            metadata=origin.metadata if options.metadata is None else options.metadata,
            agent_id=origin.agent_id,
            durable=options.durable,
            idle_seconds=options.idle_seconds,
            origin=moment,
        )
        return await self._start(snapshot, wanted, options.timeout, counted=counted)

    @contextlib.asynccontextmanager
    async def reading(self, instance: SandboxInstance, node: Node) -> AsyncIterator[SandboxInstance]:
        """A short-lived copy of a snapshot, to read files of it."""
        with self.tree(instance).use(node) as snapshot:
            # part of a rollback, which does not wait
            copy = await self._copy(instance, snapshot, node.moment, CopyOptions(_READING_SECONDS), counted=False)
            try:
                yield copy
            finally:
                await asyncio.shield(asyncio.ensure_future(copy.kill()))

    async def from_store(
        self,
        snapshot_id: str,
        *,
        envs: Mapping[str, str] | None,
        metadata: Mapping[str, str] | None,
        timeout: float | None,
        agent_id: str,
        durable: bool = True,
        idle_seconds: float | None = None,
    ) -> SandboxInstance:
        """A sandbox that goes on from a kept snapshot.

        Raises:
            SnapshotNotFound, SnapshotFailed: there is none, or it is of no use here.
        """
        record = await asyncio.to_thread(self.store.record, snapshot_id)
        node = await asyncio.to_thread(self.store.node, record)
        wanted = SandboxOptions(
            envs={**record.envs, **(envs or {})},
            metadata=record.metadata if metadata is None else metadata,
            agent_id=agent_id,
            durable=durable,
            idle_seconds=idle_seconds,
            origin=node.moment,
        )
        try:
            return await self._start(node.snapshot, wanted, timeout)
        except VmNotAvailable as exc:
            if exc.retryable:
                raise
            raise SnapshotFailed(
                f"Snapshot {snapshot_id} cannot be used: {exc.message}",
                remediation="Delete it with `emberbox snapshot delete`; import it again, if it was imported.",
                retryable=False,
            ) from exc


async def _end_all(tasks: Sequence[asyncio.Future[SandboxInstance | VmExecutionError]]) -> None:
    """Stop making copies, and kill those that are there."""
    for task in tasks:
        task.cancel()
    for done in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(done, SandboxInstance):
            await done.kill()


def _warn(sandbox_id: str, snapshot_id: str, why: Exception) -> None:
    import structlog

    log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox")
    log.warning("sandbox not restored", sandbox=sandbox_id, snapshot=snapshot_id, reason=str(why))
