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
from emberbox.machines.base import Death, Machine, MachineFactory, Snapshot
from emberbox.models import MachineLimits, TerminationReason
from emberbox.sandbox.copies import Bounds, Copies
from emberbox.sandbox.keeper import Keeper
from emberbox.sandbox.ledger import Ledger, SandboxRecord
from emberbox.sandbox.options import SandboxOptions
from emberbox.sandbox.pool import MachinePool, PoolOptions
from emberbox.sandbox.pool_state import Rules
from emberbox.sandbox.session import Session, SessionState
from emberbox.sandbox.snapshots import Node
from emberbox.sandbox.store import SnapshotStore
from emberbox.sandbox.templates import TemplateSnapshots

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
        ledger: where sandboxes are written down that outlive this process; None: none does.
        outlive_seconds: how long the machines of those run on when it dies.

    Attributes:
        copies: snapshots, rollback, branch, fork.
        keeper: of the sandboxes that outlive this process.
        pool: machines made ahead, and places for sandboxes.
    """

    def __init__(
        self,
        factory: MachineFactory,
        boot_timeout: float,
        snapshot_base: Path,
        store: SnapshotStore,
        bounds: Bounds | None = None,
        pool: PoolOptions | None = None,
        ledger: Ledger | None = None,
        outlive_seconds: float = 0,
    ) -> None:
        self._boot_timeout = boot_timeout
        self._outlive_seconds = outlive_seconds
        self._per_agent = None if bounds is None else bounds.agent_sandboxes
        self._snapshot_base = snapshot_base
        self._snapshot_dir: RunDir | None = None
        self._templates = TemplateSnapshots(snapshot_base / "templates", factory.backend, factory.identity)
        self._sessions: dict[str, Session] = {}
        self._images: dict[str, contextlib.ExitStack] = {}
        self.pool = MachinePool(factory, self._templates, pool or PoolOptions(Rules()))
        self.copies = Copies(
            self.pool.fork, self._start_copy, self._own_folder, store, bounds or Bounds(), self._dormant_bytes
        )
        self.keeper = None if ledger is None else Keeper(self, ledger)
        self._places: Counter[str] = Counter()
        """How many sandboxes each agent has or is being given, the dormant ones apart."""

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
    ) -> Session:
        """A machine of the warm pool, or one that is started until its agent is ready: forked from the template's
        snapshot, or booted where there is none yet. A failed or cancelled start leaves nothing behind.

        `own`: it is the one that the agent gets without naming one. `idle_seconds`: it ends, or is put aside, when it
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
            session = await self._leased(image, limits, options, timeout)
            if session is None:
                session = await self._forked(image, limits, options, timeout)
            if session is None:
                machine = await self.pool.boot(image, limits)
                session = self._session(machine, image, limits, options)
                await self._started(session, self._boot(session), timeout)
            await self._opened(session, holding)
        self.pool.created(image, limits)
        return session

    async def _opened(self, session: Session, holding: contextlib.ExitStack) -> None:
        """It has started: what it holds is held until it ends, and it is written down if it is to outlive us."""
        self._images[session.id] = holding.pop_all()
        if session.durable and self.keeper is not None:
            try:
                await session.machine.outlive(self._outlive_seconds)
                self.keeper.opened(session)
            except BaseException:
                await asyncio.shield(asyncio.ensure_future(session.kill()))
                raise

    def changed(self, session: Session) -> None:
        """What is to be found again after a restart has changed."""
        if self.keeper is not None:
            self.keeper.changed(session)

    async def reopen(self, record: SandboxRecord, node: Node) -> Session:
        """A sandbox that was put aside goes on from a snapshot (see `Keeper`)."""
        return await self._start_copy(node.snapshot, _options_of(record), None)

    async def take_over(self, record: SandboxRecord, machine: Machine) -> Session:
        """A sandbox goes on with a machine that an earlier process left (see `Keeper`)."""
        with contextlib.ExitStack() as holding:
            holding.callback(self._share(record.agent_id, ask=False))
            image = self.copies.store.images.reopen(record.image, record.built_at, record.guest, record.template)
            holding.enter_context(image.in_use())
            session = self._session(machine, image, record.limits, _options_of(record))
            await self._started(session, session.start_adopted(_ADOPTION_SECONDS), None)
            await self._opened(session, holding)
        return session

    async def warm(self, image: Image, limits: MachineLimits, count: int | None = None) -> None:
        """Fill the pool of these sandboxes; raises what `MachinePool.warm` raises."""
        if self._templates.find(image, limits) is None:
            session = await self.create(image, limits)  # it takes the snapshot
            await session.kill()
        await self.pool.warm(image, limits, count)

    async def _leased(
        self, image: Image, limits: MachineLimits, options: SandboxOptions, timeout: float | None
    ) -> Session | None:
        machine = await self.pool.lease(image, limits, options.envs)
        if machine is None:
            return None
        session = self._session(machine, image, limits, options)

        async def start() -> None:
            session.start_leased()

        await self._started(session, start(), timeout)
        return session

    async def _forked(
        self, image: Image, limits: MachineLimits, options: SandboxOptions, timeout: float | None
    ) -> Session | None:
        snapshot = self._templates.find(image, limits)
        if snapshot is None:
            return None
        try:
            machine = await self.pool.fork(snapshot, more=False)
            session = self._session(machine, image, limits, options)
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
            snapshot, _ = await session.checkpoint(self._templates.place(session.image, session.limits))
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

    def knows(self, sandbox_id: str) -> bool:
        """Whether `find` would find it."""
        dormant = [] if self.keeper is None else [record.sandbox_id for record in self.keeper.dormant]
        return sandbox_id in self._sessions or sandbox_id in dormant

    async def find(self, sandbox_id: str) -> Session:
        """A sandbox by its id; one that was put aside is woken.

        Raises:
            SessionNotFound: there is none.
        """
        if self.keeper is not None and (sandbox_id not in self._sessions or self.keeper.is_dormant(sandbox_id)):
            return await self.keeper.wake(sandbox_id)
        return self.get(sandbox_id)

    def agent_of(self, sandbox_id: str) -> str | None:
        """Whose a sandbox is; None where there is none of this id."""
        if sandbox_id in self._sessions:
            return self._sessions[sandbox_id].agent_id
        dormant = [] if self.keeper is None else self.keeper.dormant
        return next((record.agent_id for record in dormant if record.sandbox_id == sandbox_id), None)

    def own(self, agent_id: str) -> str | None:
        """The id of the sandbox that an agent gets without naming one."""
        for session in self._sessions.values():
            if session.own and session.agent_id == agent_id and session.state is not SessionState.CLOSED:
                return session.id
        dormant = [] if self.keeper is None else self.keeper.dormant
        return next((record.sandbox_id for record in dormant if record.own and record.agent_id == agent_id), None)

    def _share(self, agent_id: str, *, ask: bool = True) -> Callable[[], None]:
        """Give an agent one more sandbox; what is returned takes it back. `ask`: whether it may have one more."""
        mine = self._places[agent_id]
        if self.keeper is not None:
            mine += self.keeper.asleep(agent_id)
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

    def _dormant_bytes(self, agent_id: str) -> int:
        return 0 if self.keeper is None else self.keeper.snapshot_bytes(agent_id)

    async def forget_expired(self) -> None:
        """End what has no machine and no time any more."""
        if self.keeper is not None:
            await self.keeper.forget_expired()

    async def end(self, session: Session) -> None:
        """Nobody uses it: put it aside, or kill it."""
        if session.durable and self.keeper is not None:
            await self.keeper.put_aside(session)
        else:
            unused = "" if session.idle_seconds is None else f" for {session.idle_seconds:g} s"
            await session.kill(Death(TerminationReason.KILLED, f"nobody used it{unused}"))

    def sessions(self) -> list[Session]:
        return list(self._sessions.values())

    async def _start_copy(
        self, snapshot: Snapshot, options: SandboxOptions, timeout: float | None, *, counted: bool = True
    ) -> Session:
        """A sandbox that goes on from a snapshot (see `Starter`)."""
        with contextlib.ExitStack() as holding:
            if counted:
                holding.callback(self._share(options.agent_id, ask=options.sandbox_id is None))
                holding.callback(await self.pool.admit(snapshot.image, snapshot.limits))
            holding.enter_context(snapshot.image.in_use())
            machine = await self.pool.fork(snapshot)
            options = replace(options, durable=options.durable and counted)
            session = self._session(machine, snapshot.image, snapshot.limits, options)
            await self._started(session, session.start_copy(self._boot_timeout), timeout)
            await self._opened(session, holding)
        return session

    # --- life -----------------------------------------------------------------------------------------------------

    def _session(self, machine: Machine, image: Image, limits: MachineLimits, options: SandboxOptions) -> Session:
        return Session(
            machine,
            image,
            limits,
            replace(options, durable=options.durable and self.keeper is not None),
            on_closed=self._closed,
            revive=self.copies.revive,
            on_changed=self.changed,
            outlive_seconds=self._outlive_seconds,
        )

    async def _started(self, session: Session, start: Coroutine[object, object, None], timeout: float | None) -> None:
        try:
            await start
            session.set_timeout(timeout)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(session.kill()))
            raise
        self._sessions[session.id] = session

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
        """Put those aside that are to outlive us; kill the others, and remove their snapshots."""
        if self.keeper is not None:
            await self.keeper.put_all_aside()
        await asyncio.gather(self.pool.close(), *(session.kill() for session in self.sessions()))
        if self._snapshot_dir is not None:
            await asyncio.to_thread(self._snapshot_dir.release)
            self._snapshot_dir = None

    def _closed(self, sandbox_id: str) -> None:
        self._sessions.pop(sandbox_id, None)
        self.copies.closed(sandbox_id, for_good=self.keeper is None or self.keeper.closed(sandbox_id))
        holding = self._images.pop(sandbox_id, None)
        if holding is not None:
            holding.close()


def _options_of(record: SandboxRecord) -> SandboxOptions:
    return SandboxOptions(record.envs, record.metadata, record.agent_id, record.sandbox_id)
