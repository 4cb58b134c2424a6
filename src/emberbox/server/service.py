"""What every entry of the server shares: whose machines are whose, what runs, who follows it, who is asked."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from prometheus_client.core import GaugeMetricFamily

from emberbox.config import Settings
from emberbox.engine import Engine, ExecuteRequest
from emberbox.errors import (
    Conflict,
    ExecutionCancelled,
    Forbidden,
    SessionNotFound,
    SnapshotNotFound,
    Unauthorized,
    ValidationFailed,
    VmExecutionError,
    VmNotAvailable,
)
from emberbox.hooks.approval import ApprovalDesk
from emberbox.host.pressure import MemoryReader
from emberbox.images.template import Template
from emberbox.models import ApprovalRequest, Execution, HistoryQueryRequest, HistoryQueryResponse, SnapshotInfo
from emberbox.models.base import RESERVED
from emberbox.models.server import ServerConfig
from emberbox.models.service import VmInstance, VmStatus
from emberbox.sandbox.background import BackgroundCommands
from emberbox.sandbox.copies import CopyOptions
from emberbox.sandbox.durability.registry import SandboxRecord
from emberbox.sandbox.instance import SandboxInstance, SandboxState
from emberbox.sandbox.listeners import Listeners
from emberbox.server import templates
from emberbox.server.approvals import ApprovalSubscribers
from emberbox.server.auth import Authenticator, ConcurrencyLimiter, Principal
from emberbox.server.idempotency import IdempotencyStore
from emberbox.server.memory import IncomingBudget, UnreadAnswers
from emberbox.server.metrics import Metrics, gauge
from emberbox.server.subscribers import OutputSubscribers
from emberbox.server.tracing import span

T = TypeVar("T")
PROBE = RESERVED + "probe"
"""The agent of the machine that /ready asks; nobody sees it."""
_PAGES = 4
"""Of the history that are read at once."""
NAME_KEY = RESERVED + "name"
SESSION_KEY = RESERVED + "session"
_STATUS: dict[SandboxState, VmStatus] = {
    SandboxState.STARTING: "provisioning",
    SandboxState.PAUSED: "paused",
    SandboxState.RESTORING: "provisioning",
    SandboxState.CLOSED: "stopped",
}


BEGAN: ContextVar[list[bool] | None] = ContextVar("BEGAN", default=None)
"""Of the request that is being served: filled when any code of it begins to run."""


@dataclass(eq=False, slots=True)
class Running:
    """An execution under way."""

    task: asyncio.Task[Execution]
    agent_id: str
    vm_id: str
    execution_id: str | None = None
    began: float = field(default_factory=time.monotonic)


class Service:
    """The state of one server.

    Args:
        settings: in force.
        engine: whose machines it serves; its approver is the `desk`.
        desk: where questions to people wait.
        asking: tells who is attached of them.
        metrics: counts.
        authenticator: knows whether a caller still counts.
        incoming: bounds what is received.
        unread: bounds what waits for readers.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        desk: ApprovalDesk,
        asking: ApprovalSubscribers,
        metrics: Metrics,
        authenticator: Authenticator,
        incoming: IncomingBudget,
        unread: UnreadAnswers,
    ) -> None:
        self.incoming = incoming
        self.unread = unread
        self.settings = settings
        self.config: ServerConfig = settings.server
        self.engine = engine
        self.desk = desk
        self.asking = asking
        self.authenticator = authenticator
        self.metrics = metrics
        self.executions = ConcurrencyLimiter("executions")
        self.streams = ConcurrencyLimiter("streams and sockets")
        self.followers = OutputSubscribers()
        self.started = time.monotonic()
        self.draining = False
        self.server_id = secrets.token_hex(8)
        self.keys = IdempotencyStore(
            settings.state_dir / "server" / "keys.db", self.server_id, self.config.idempotency_hours * 3600
        )
        self._running: set[Running] = set()
        self._waiting = 0
        self._pages = asyncio.Semaphore(_PAGES)
        self._naming: set[tuple[str, str]] = set()
        self._keyed: dict[tuple[str, str], asyncio.Task[Any]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._memory = MemoryReader()
        metrics.watch(self._gauges)

    # --- whose is what --------------------------------------------------------------------------------------------

    async def history(self, wanted: HistoryQueryRequest) -> HistoryQueryResponse:
        """A page of the history; a few are read at once, since each may be as long as `max_page_bytes`."""
        async with self._pages:
            return await self.engine.history.query(wanted, self.config.max_page_bytes)

    async def session(self, principal: Principal, vm_id: str) -> SandboxInstance:
        """A machine of the caller's; one that was suspended is woken.

        Raises:
            SessionNotFound: there is none, or it is somebody else's: the caller cannot tell which.
        """
        await self.visible(principal, vm_id)
        return await self.engine.get_sandbox(vm_id)

    async def visible(self, principal: Principal, vm_id: str) -> str:
        """Whose a machine is, if the caller may know of it; raises SessionNotFound as of `session`."""
        agent_id = await self.engine.agent_of(vm_id)
        if agent_id is None or not principal.sees(agent_id):
            raise SessionNotFound(
                f"There is no sandbox {vm_id!r:.80}.", remediation="GET /api/vms lists what there is."
            )
        return agent_id

    async def template(self, name: str | None) -> Template | None:
        """A template that a caller names: of those that the operator has made available, never a path.

        Raises:
            ValidationFailed: there is none of this name.
            ImageError: the operator's file is wrong; the log says how.
        """
        return None if name is None else await asyncio.to_thread(templates.named, name, self.settings)

    async def kept_snapshot(self, principal: Principal, snapshot_id: str) -> None:
        """Raises SnapshotNotFound where there is no such kept snapshot, or it is another agent's: it holds memory,
        files and environment."""
        store = self.engine.kept_snapshots()
        try:
            record = await asyncio.to_thread(store.record, snapshot_id)
        except SnapshotNotFound:
            record = None
        imported = record is not None and record.imported and principal.agents is not None
        if record is None or imported or not principal.sees(record.info.agent_id):
            raise SnapshotNotFound(
                f"There is no kept snapshot {snapshot_id!r:.80}.",
                remediation="Name one of this agent's machines' kept ones.",
            )

    async def lease(self, principal: Principal, agent_id: str | None, vm_id: str | None) -> SandboxInstance:
        """The machine for an execution: the one that is named, or the agent's own, made where there is none."""
        with self.waiting():
            if vm_id is None:
                return await self.engine.lease(principal.agent(agent_id), most=principal.limits)
            session = await self.session(principal, vm_id)
            if agent_id is not None and session.agent_id != principal.agent(agent_id):
                raise SessionNotFound(f"Agent {agent_id!r:.80} has no sandbox {vm_id!r:.80}.")
            return session

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Something waits for a machine meanwhile."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def copying(self, session: SandboxInstance, timeout: float | None = None, *, durable: bool = True) -> CopyOptions:
        """What a copy of a machine is other than that: it has not its name."""
        words = {key: value for key, value in session.metadata.items() if not key.startswith(RESERVED)}
        return CopyOptions(timeout, words, durable, self.settings.session_idle_seconds)

    @property
    def waiting_now(self) -> int:
        """How much waits for a machine."""
        return self._waiting

    @contextlib.contextmanager
    def naming(self, agent_id: str, name: str) -> Iterator[None]:
        """A session of this name begins meanwhile; raises Conflict where one does already."""
        place = (agent_id, name)
        if place in self._naming:
            raise Conflict(f"A session {name!r} of agent {agent_id!r:.80} is just beginning.")
        self._naming.add(place)
        try:
            yield
        finally:
            self._naming.discard(place)

    async def instances(self, principal: Principal) -> list[VmInstance]:
        """All machines of the caller's, oldest first."""
        live = [self.instance(one) for one in await self.engine.list_sandboxes() if principal.sees(one.agent_id)]
        suspended = [_suspended(one) for one in await self.engine.list_suspended() if principal.sees(one.agent_id)]
        known = {vm.id for vm in live}
        return sorted([*live, *(vm for vm in suspended if vm.id not in known)], key=lambda vm: vm.created_at)

    async def instance_of(self, principal: Principal, vm_id: str) -> VmInstance:
        """One machine of the caller's, without waking it; raises SessionNotFound."""
        await self.visible(principal, vm_id)
        for one in await self.engine.list_sandboxes():
            if one.id == vm_id:
                return self.instance(one)
        for record in await self.engine.list_suspended():
            if record.sandbox_id == vm_id:
                return _suspended(record)
        raise SessionNotFound(f"There is no sandbox {vm_id!r:.80}.")

    def instance(self, session: SandboxInstance) -> VmInstance:
        """A machine as the API shows it."""
        idle = asyncio.get_running_loop().time() - session.last_used
        return VmInstance(
            id=session.id,
            name=session.metadata.get(NAME_KEY) or session.metadata.get(SESSION_KEY) or session.id,
            vm_type=session.image.name,
            status=self.status(session),
            created_at=session.started_at,
            last_activity=datetime.now(UTC) - timedelta(seconds=max(0.0, idle)),
            agent_id=session.agent_id,
            backend=session.machine.backend,
        )

    @staticmethod
    def status(session: SandboxInstance) -> VmStatus:
        """`running` while code runs in it, `ready` while it waits."""
        return _STATUS.get(session.state, "running" if session.runner.busy else "ready")

    async def end(self, vm_id: str) -> None:
        """End a machine for good."""
        await self.engine.kill_sandbox(vm_id)
        self.followers.closed(vm_id)

    def commands(self, session: SandboxInstance) -> BackgroundCommands:
        """The commands that were started in a machine through this server."""
        commands: BackgroundCommands = session.attachments.setdefault("commands", BackgroundCommands(session))
        return commands

    # --- executions -----------------------------------------------------------------------------------------------

    async def execute(self, principal: Principal, request: ExecuteRequest, listeners: Listeners) -> Execution:
        """Run one piece of code for a caller.

        Raises:
            Forbidden, TooManyRequests, VmNotAvailable: the caller may not, has too much under way, or the server stops.
            VmExecutionError: as of `Engine.execute`.
        """
        principal.require("execute")
        session = request.sandbox
        with self.accepted(principal), span("execute", language=request.language, vm_id=session.id) as current:
            entered = replace(request, on_begin=lambda execution_id: self._begins(running, execution_id), on_run=_runs)
            followed = self.followers.listeners(session.id, listeners)
            task = asyncio.ensure_future(self.engine.execute(entered, followed))
            running = Running(task, request.agent_id or session.agent_id, session.id)
            self._running.add(running)
            try:
                execution = await _result_of(task)
            finally:
                self._running.discard(running)
                self.followers.ended(session.id, running.execution_id, task)
            current.set_attribute("emberbox.execution_id", execution.execution_id)
            current.set_attribute("emberbox.exit_code", execution.exit_code)
            return execution

    def _begins(self, running: Running, execution_id: str) -> None:
        running.execution_id = execution_id
        self.followers.begins(running.vm_id, execution_id)

    def admit(self, principal: Principal) -> None:
        """One more message of a socket.

        Raises:
            Unauthorized: the token counts no more.
            TooManyRequests: there are too many.
        """
        if not self.authenticator.counts(principal):
            raise Unauthorized("The token was revoked, has expired, or is another one now.")
        self.authenticator.take(principal)

    def check_open(self) -> None:
        """Raises VmNotAvailable where the server takes nothing new."""
        if self.draining:
            raise stopping()

    @contextlib.contextmanager
    def accepted(self, principal: Principal) -> Iterator[None]:
        """Work is done for a caller meanwhile: it has a place, and a stop of the server waits for it."""
        self.check_open()
        with self.executions.one(principal.id, principal.max_executions):
            yield

    async def cancellable(self, principal: Principal, key: str, work: Coroutine[Any, Any, T]) -> T:
        """Do the work of a request with a key, until it is done or `cancel` stops it, in whatever state it is.

        Raises:
            ExecutionCancelled: it was stopped.
        """
        task = asyncio.ensure_future(work)
        self._keyed[principal.id, key] = task
        try:
            return await _result_of(task)
        finally:
            del self._keyed[principal.id, key]

    def cancel(self, principal: Principal, execution_id: str | None, key: str | None) -> bool:
        """Stop an execution: of the caller's agents by its id, or of the caller itself by its key; False where none
        such is under way (any more)."""
        principal.require("execute")
        if (execution_id is None) == (key is None):
            raise ValidationFailed("Name either execution_id or idempotency_key.", remediation="One of them.")
        if key is not None:
            keyed = self._keyed.get((principal.id, key))
            return keyed is not None and keyed.cancel()
        for running in self._running:
            if running.execution_id == execution_id and principal.sees(running.agent_id):
                running.task.cancel()
                return True
        return False

    @property
    def running(self) -> int:
        """How many executions are under way."""
        return len(self._running)

    async def run_detached(self, work: Coroutine[Any, Any, T]) -> T:
        """Do a piece of work to its end, also when the task that waits for it is cancelled."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return await asyncio.shield(task)

    # --- undo -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def undoing(self, principal: Principal, operation: str) -> AsyncIterator[None]:
        """A snapshot or a rollback is done meanwhile, and counted."""
        principal.require("execute")
        with self.accepted(principal), span(operation):
            try:
                yield
            except VmExecutionError:
                self.metrics.snapshot(operation, succeeded=False)
                raise
            self.metrics.snapshot(operation, succeeded=True)

    async def snapshots(self, session: SandboxInstance) -> list[SnapshotInfo]:
        """Of a machine, oldest first."""
        return await self.engine.checkpoints.snapshots(session)

    # --- people ---------------------------------------------------------------------------------------------------

    def questions(self, principal: Principal) -> list[ApprovalRequest]:
        """Questions that wait, about the caller's agents."""
        return [one for one in self.desk.pending() if principal.sees(one.agent_id)]

    def may_answer(self, principal: Principal, approval_id: str) -> None:
        """Raise where the caller may not answer this question. One that runs code may not approve it as well, unless
        its token says so."""
        principal.require("approve")
        if all(one.approval_id != approval_id for one in self.questions(principal)):
            raise SessionNotFound(
                f"No question {approval_id!r:.80} waits for an answer.",
                remediation="It may have expired or been answered; GET /api/approvals shows what waits.",
            )

    # --- life -----------------------------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> int:
        """Take nothing more, and wait for what is under way; how much of it was cut short."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.executions.empty()
        left = list(self._running)
        for running in left:
            running.task.cancel()
        if left:
            await asyncio.wait([running.task for running in left], timeout=10)
        return len(left)

    async def close(self) -> None:
        """Stop for good."""
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(list(self._background), timeout=10)
        self.followers.close()
        await self.keys.close()

    def _gauges(self) -> Iterator[GaugeMetricFamily]:
        pool = self.engine.pool_status()
        sessions = self.engine.live_sandboxes()
        yield gauge("emberbox_executions_running", "Executions under way.", [({}, self.running)])
        yield gauge("emberbox_executions_waiting", "Executions that wait for a machine.", [({}, self._waiting)])
        yield gauge("emberbox_approvals_waiting", "Questions that wait for a person.", [({}, len(self.desk.pending()))])
        yield gauge("emberbox_streams", "Open streams and sockets.", [({}, self.streams.total)])
        yield gauge("emberbox_sandboxes_max", "Sandboxes that there may be.", [({}, self.settings.max_sandboxes)])
        yield gauge("emberbox_incoming_bytes", "Of long requests that are under way.", [({}, self.incoming.total)])
        yield gauge("emberbox_unread_bytes", "Of long answers that are not read yet.", [({}, self.unread.total)])
        by_state: dict[str, int] = {state.value: 0 for state in SandboxState}
        for session in sessions:
            by_state[session.state.value] += 1
        yield gauge("emberbox_sandboxes", "Sandboxes.", [({"state": name}, n) for name, n in by_state.items()])
        count, size = self.engine.snapshot_figures()
        yield gauge("emberbox_snapshots", "Snapshots of live sandboxes.", [({}, count)])
        yield gauge("emberbox_snapshot_bytes", "Bytes of these.", [({}, size)])
        left = self._memory.available_bytes()
        if left is not None:
            yield gauge("emberbox_memory_available_bytes", "Memory that the host has left for us.", [({}, left)])
        needed = self.settings.min_free_memory_mb << 20
        yield gauge("emberbox_memory_needed_bytes", "Below it no sandbox starts (min_free_memory_mb).", [({}, needed)])
        for name, text, read in _POOL:
            by_template: Counter[str] = Counter()  # kinds of one template with different limits are one figure
            for kind in pool:
                by_template[kind.template] += read(kind)
            yield gauge(name, text, [({"template": template}, count) for template, count in by_template.items()])


_POOL: tuple[tuple[str, str, Callable[..., int]], ...] = (
    ("emberbox_pool_ready", "Machines that wait to be leased.", lambda kind: kind.ready),
    ("emberbox_pool_starting", "Machines on their way to the pool.", lambda kind: kind.starting),
    ("emberbox_pool_target", "Machines that the pool shall have.", lambda kind: kind.high),
)


def stopping() -> VmNotAvailable:
    """What a client is told that came too late, or whose work took longer than the server waits when it stops."""
    return VmNotAvailable("The server is stopping.", remediation="Try again when it has started again.")


def _runs() -> None:
    began = BEGAN.get()
    if began is not None:
        began.append(True)


async def _result_of(task: asyncio.Task[T]) -> T:
    """Wait for work that others may cancel: for who waits that is an error. To be cancelled here ends the work."""
    try:
        return await task
    except asyncio.CancelledError as exc:
        own = asyncio.current_task()
        if task.cancelled() and not (own is not None and own.cancelling()):
            raise ExecutionCancelled("The execution was stopped by a request, or with the server.") from exc
        task.cancel()
        await asyncio.wait([task])
        raise


def _suspended(record: SandboxRecord) -> VmInstance:
    return VmInstance(
        id=record.sandbox_id,
        name=record.metadata.get(NAME_KEY) or record.metadata.get(SESSION_KEY) or record.sandbox_id,
        vm_type=record.template.name,
        status="paused",
        created_at=record.started_at,
        last_activity=record.started_at,
        agent_id=record.agent_id,
        backend="",
    )


def checked_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """A caller's own words; raises Forbidden where they look like the server's."""
    for key in metadata:
        if key.startswith(RESERVED):
            raise Forbidden(f"Metadata may not begin with {RESERVED!r}: {key!r:.80}.", remediation="Use another word.")
    return metadata
