"""Sandboxes that go on from a snapshot of another one: branches, forks, copies to read in, and those from the store."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass

from emberbox.errors import SnapshotFailed, VmExecutionError, VmNotAvailable
from emberbox.machines.contract import Snapshot
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.lineage import SnapshotPoint
from emberbox.sandbox.options import SandboxOptions
from emberbox.sandbox.snapshots.scratch import SnapshotScratch
from emberbox.sandbox.snapshots.service import SnapshotService
from emberbox.sandbox.snapshots.tree import Node
from emberbox.sandbox.starter import NewSandbox, Starter

_FORKS_AT_ONCE = 4
"""Copies that start at the same time; more would only wait for the same processors."""
_READING_SECONDS = 600.0


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


class SandboxCopies:
    """Copies the sandboxes of one engine.

    Args:
        starter: starts the copies.
        snapshots: what they go on from.
        scratch: where the snapshot of a fork is while its copies start.
    """

    def __init__(self, starter: Starter, snapshots: SnapshotService, scratch: SnapshotScratch) -> None:
        self._starter = starter
        self._snapshots = snapshots
        self._scratch = scratch
        self._forking = asyncio.Semaphore(_FORKS_AT_ONCE)
        self._cleaning: set[asyncio.Task[object]] = set()

    async def branch(self, instance: SandboxInstance, node: Node, options: CopyOptions) -> SandboxInstance:
        """Start a sandbox that goes on from a snapshot; the old one is not touched."""
        with self._snapshots.tree(instance).use(node) as snapshot:
            return await self._copy(instance, snapshot, node.moment, options)

    async def fork(
        self, instance: SandboxInstance, count: int, options: CopyOptions
    ) -> list[SandboxInstance | VmExecutionError]:
        """Start `count` sandboxes that go on from this moment; for each the sandbox, or why there is none."""
        # not in the tree: the copies do not depend on whether the sandbox lives on
        directory = self._scratch.path() / f"fork-{secrets.token_hex(6)}"
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
        return await self._starter.start(NewSandbox.copy_of(snapshot, wanted, options.timeout, counted=counted))

    @contextlib.asynccontextmanager
    async def reading(self, instance: SandboxInstance, node: Node) -> AsyncIterator[SandboxInstance]:
        """Start a short-lived copy of a snapshot, to read files of it."""
        with self._snapshots.tree(instance).use(node) as snapshot:
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
        """Start a sandbox that goes on from a kept snapshot.

        Raises:
            SnapshotNotFound, SnapshotFailed: there is none, or it is of no use here.
        """
        record = await asyncio.to_thread(self._snapshots.store.record, snapshot_id)
        node = await asyncio.to_thread(self._snapshots.store.node, record)
        wanted = SandboxOptions(
            envs={**record.envs, **(envs or {})},
            metadata=record.metadata if metadata is None else metadata,
            agent_id=agent_id,
            durable=durable,
            idle_seconds=idle_seconds,
            origin=node.moment,
        )
        try:
            return await self._starter.start(NewSandbox.copy_of(node.snapshot, wanted, timeout))
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
