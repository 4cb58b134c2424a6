"""Makes sandboxes, knows which exist, copies them and takes them back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from collections.abc import Coroutine, Mapping
from pathlib import Path

from emberbox.errors import (
    ExecutionTimeout,
    SessionNotFound,
    SnapshotFailed,
    VmConnectionError,
    VmExecutionError,
    VmNotAvailable,
)
from emberbox.host.rundir import RunDir, dead_owners, make_run_dir
from emberbox.images.store import Image
from emberbox.machines.base import Machine, MachineFactory, Snapshot
from emberbox.models import MachineLimits, SnapshotInfo
from emberbox.sandbox.session import Session
from emberbox.sandbox.snapshots import SnapshotTree
from emberbox.sandbox.templates import TemplateSnapshots

_FORKS_AT_ONCE = 4
"""Copies that start at the same time; more would only wait for the same processors."""


class SandboxManager:
    """All sandboxes of one engine.

    Args:
        factory: makes the machines.
        boot_timeout: seconds that a start may take.
        snapshot_base: folder in which this manager keeps snapshots, in a directory of its own; those of templates
            are shared with other processes of this user.
        max_snapshots: how many one sandbox may have.
    """

    def __init__(
        self, factory: MachineFactory, boot_timeout: float, snapshot_base: Path, max_snapshots: int = 50
    ) -> None:
        self._factory = factory
        self._boot_timeout = boot_timeout
        self._snapshot_base = snapshot_base
        self._snapshot_dir: RunDir | None = None
        self._templates = TemplateSnapshots(snapshot_base / "templates", factory.identity)
        self._max_snapshots = max_snapshots
        self._sessions: dict[str, Session] = {}
        self._trees: dict[str, SnapshotTree] = {}
        self._images: dict[str, contextlib.ExitStack] = {}
        self._forking = asyncio.Semaphore(_FORKS_AT_ONCE)

    async def create(
        self,
        image: Image,
        limits: MachineLimits,
        *,
        envs: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Session:
        """Start a machine and wait until its agent is ready: forked from the template's snapshot, or booted where there
        is none yet. A failed or cancelled start leaves nothing behind."""
        with contextlib.ExitStack() as holding:
            holding.enter_context(image.in_use())
            session = await self._forked(image, limits, envs or {}, metadata or {}, timeout)
            if session is None:
                machine = await self._factory.boot(image, limits)
                session = self._session(machine, image, limits, envs or {}, metadata or {})
                await self._started(session, self._boot(session), timeout)
            self._images[session.id] = holding.pop_all()
        return session

    async def _forked(
        self,
        image: Image,
        limits: MachineLimits,
        envs: Mapping[str, str],
        metadata: Mapping[str, str],
        timeout: float | None,
    ) -> Session | None:
        snapshot = self._templates.find(image, limits)
        if snapshot is None:
            return None
        try:
            machine = await self._factory.fork(snapshot)
            session = self._session(machine, image, limits, envs, metadata)
            await self._started(session, session.start_copy(self._boot_timeout), timeout)
        except (VmNotAvailable, ExecutionTimeout) as exc:
            # the reason for the caller, if there is one beyond this snapshot, is that of the boot that follows; what
            # may pass (a busy host) is no reason to take the snapshot from others
            if not exc.retryable:
                await asyncio.to_thread(self._templates.discard, snapshot)
            return None
        return session

    async def _boot(self, session: Session) -> None:
        """Start a booted session, and write it down for those after it. An environment of one sandbox's own must not
        reach the others, so it comes afterwards."""
        await session.start(self._boot_timeout)
        try:
            snapshot = await session.checkpoint(self._templates.place(session.image, session.limits))
            await asyncio.to_thread(self._templates.keep, snapshot)
        except VmConnectionError as exc:
            raise await session.died_early() from exc
        except (OSError, SnapshotFailed) as exc:
            import structlog

            log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox")
            log.warning("template snapshot not taken", template=session.image.name, reason=str(exc))
        await session.add_environment()

    def get(self, sandbox_id: str) -> Session:
        """A live sandbox by its id."""
        try:
            return self._sessions[sandbox_id]
        except KeyError:
            raise SessionNotFound(f"There is no sandbox {sandbox_id!r:.80}.") from None

    def sessions(self) -> list[Session]:
        return list(self._sessions.values())

    # --- undo -----------------------------------------------------------------------------------------------------

    async def snapshot(self, session: Session, name: str | None = None) -> SnapshotInfo:
        """Keep the sandbox as it is now; raises SnapshotFailed."""
        tree = self._tree(session)
        return tree.add(await session.checkpoint(tree.new_directory()), name)

    def snapshots(self, session: Session) -> list[SnapshotInfo]:
        """What there is, oldest first."""
        return self._tree(session).infos()

    def delete_snapshot(self, session: Session, snapshot_id: str) -> None:
        """Remove one; raises SnapshotNotFound."""
        self._tree(session).remove(snapshot_id)

    async def rollback(self, session: Session, snapshot_id: str) -> None:
        """Take the sandbox back: files, memory and processes. Raises SnapshotNotFound, RollbackFailed."""
        tree = self._tree(session)
        with tree.use(snapshot_id) as snapshot:
            await session.replace_machine(snapshot, self._factory.fork)
        tree.went_back_to(snapshot_id)

    async def branch(self, session: Session, snapshot_id: str, timeout: float | None) -> Session:
        """A new sandbox that goes on from a snapshot; the old one is not touched."""
        with self._tree(session).use(snapshot_id) as snapshot:
            return await self._copy(session, snapshot, timeout)

    async def fork(self, session: Session, count: int, timeout: float | None) -> list[Session | VmExecutionError]:
        """`count` new sandboxes that go on from this moment; for each the sandbox, or why there is none."""
        # not in the tree: the copies do not depend on whether the sandbox lives on
        directory = self._own_folder() / f"fork-{secrets.token_hex(6)}"
        snapshot = await session.checkpoint(directory)
        try:
            return await self._copies(session, snapshot, count, timeout)
        finally:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def _copies(
        self, session: Session, snapshot: Snapshot, count: int, timeout: float | None
    ) -> list[Session | VmExecutionError]:
        async def one() -> Session | VmExecutionError:
            async with self._forking:
                try:
                    return await self._copy(session, snapshot, timeout)
                except VmExecutionError as exc:
                    return exc

        tasks = [asyncio.ensure_future(one()) for _ in range(count)]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            for done in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(done, Session):
                    await asyncio.shield(asyncio.ensure_future(done.kill()))
            raise

    async def _copy(self, origin: Session, snapshot: Snapshot, timeout: float | None) -> Session:
        with contextlib.ExitStack() as holding:
            holding.enter_context(snapshot.image.in_use())
            machine = await self._factory.fork(snapshot)
            session = self._session(machine, snapshot.image, snapshot.limits, origin.envs, origin.metadata)
            await self._started(session, session.start_copy(self._boot_timeout), timeout)
            self._images[session.id] = holding.pop_all()
        return session

    # --- life -----------------------------------------------------------------------------------------------------

    def _session(
        self,
        machine: Machine,
        image: Image,
        limits: MachineLimits,
        envs: Mapping[str, str],
        metadata: Mapping[str, str],
    ) -> Session:
        return Session(machine, image, limits, envs=envs, metadata=metadata, on_closed=self._closed)

    async def _started(self, session: Session, start: Coroutine[object, object, None], timeout: float | None) -> None:
        try:
            await start
            session.set_timeout(timeout)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(session.kill()))
            raise
        self._sessions[session.id] = session

    def _tree(self, session: Session) -> SnapshotTree:
        self.get(session.id)
        tree = self._trees.get(session.id)
        if tree is None:
            folder = self._own_folder() / session.id
            tree = self._trees[session.id] = SnapshotTree(session.id, folder, self._max_snapshots)
        return tree

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
        """Kill them all, and remove their snapshots."""
        await asyncio.gather(*(session.kill() for session in self.sessions()))
        if self._snapshot_dir is not None:
            await asyncio.to_thread(self._snapshot_dir.release)
            self._snapshot_dir = None

    def _closed(self, sandbox_id: str) -> None:
        self._sessions.pop(sandbox_id, None)
        tree = self._trees.pop(sandbox_id, None)
        if tree is not None:
            tree.clear()
        holding = self._images.pop(sandbox_id, None)
        if holding is not None:
            holding.close()
