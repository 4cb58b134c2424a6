"""Sandboxes of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import ClassVar, Self

from emberbox._text import check_agent
from emberbox.config import Settings
from emberbox.engine import Engine, ExecuteRequest
from emberbox.errors import ForkFailed, SessionNotFound, ValidationFailed
from emberbox.hooks.approval import Approver
from emberbox.hooks.contract import Hook
from emberbox.models import (
    CommandHistoryEntry,
    CommandResult,
    ContextInfo,
    Execution,
    FileDiff,
    HistoryQueryRequest,
    ProcessInfo,
    RollbackResponse,
    SandboxInfo,
    SandboxMetrics,
    SnapshotInfo,
)
from emberbox.sandbox.background import BackgroundCommand, BackgroundCommands
from emberbox.sandbox.files import GuestFiles
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import Listeners, RunOptions
from emberbox.sdk.backends.base import CreateOptions
from emberbox.sdk.commands import AsyncCommands
from emberbox.sdk.files import AsyncFiles


class _Share:
    """An engine that belongs to the sandboxes which use it; it goes with the last of them. By event loop, those in use
    are where `connect` looks."""

    in_use: ClassVar[dict[asyncio.AbstractEventLoop, list[_Share]]] = {}

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._users: set[object] = set()
        """Ids of sandboxes, and a token for each that is being made."""

    def take(self, user: object) -> None:
        """The engine stays until the user releases it."""
        others = self.in_use.setdefault(asyncio.get_running_loop(), [])
        if self not in others:
            others.append(self)
        self._users.add(user)

    async def release(self, user: object) -> None:
        """Harmless when the user has done so."""
        if user not in self._users:
            return
        self._users.remove(user)
        if self._users:
            return
        loop = asyncio.get_running_loop()
        self.in_use[loop].remove(self)
        if not self.in_use[loop]:
            del self.in_use[loop]
        if _engines.get(loop) is self:
            del _engines[loop]
        await self.engine.close()


_engines: dict[asyncio.AbstractEventLoop, _Share] = {}
"""One engine per event loop, for all sandboxes that name none."""


def _common_share() -> _Share:
    for loop in [loop for loop in _engines if loop.is_closed()]:
        _engines.pop(loop).engine.abandon()  # its sandboxes were not killed, and nothing else would
        _Share.in_use.pop(loop, None)
    return _engines.setdefault(asyncio.get_running_loop(), _Share(Engine()))


class LocalFiles(GuestFiles, AsyncFiles):
    """Files of a sandbox of this process."""

    _read_stream = GuestFiles.read_stream
    _read_bytes = GuestFiles.read_bytes


class LocalCommands(AsyncCommands):
    """Programs in a sandbox of this process."""

    def __init__(self, session: SandboxInstance) -> None:
        self._session = session
        self._background = BackgroundCommands(session)

    async def _run(
        self, argv: Sequence[str], cwd: str | None, envs: Mapping[str, str], timeout: float | None, listeners: Listeners
    ) -> CommandResult:
        return await self._session.runner.exec(argv, cwd=cwd, env=envs, timeout=timeout, listeners=listeners)

    async def _start(
        self, argv: Sequence[str], cwd: str | None, envs: Mapping[str, str], timeout: float | None, listeners: Listeners
    ) -> BackgroundCommand:
        return await self._background.start(argv, cwd, envs, timeout, listeners)

    async def list(self) -> list[ProcessInfo]:
        """List the commands under way."""
        return await self._session.processes.list()

    async def kill(self, pid: int) -> bool:
        """Kill a command; False if there is none of this pid."""
        return await self._session.processes.kill(pid)

    async def send_stdin(self, pid: int, data: str | bytes, *, eof: bool = False) -> None:
        """Write to a background command's standard input."""
        await self._background.send_stdin(pid, data, eof=eof)


class LocalBackend:
    """A sandbox of this process, or of an engine of this process."""

    remote = False

    def __init__(self, session: SandboxInstance, engine: Engine, share: _Share | None = None) -> None:
        self.session = session
        self.id = session.id
        self.files = LocalFiles(session)
        self.commands = LocalCommands(session)
        self._engine = engine
        self._share = share

    @classmethod
    async def create(
        cls,
        options: CreateOptions,
        *,
        hooks: Iterable[Hook],
        approver: Approver | None,
        engine: Engine | None,
        settings: Settings | None,
    ) -> Self:
        """Start one; see `AsyncSandbox.create`."""
        agent_id = options.agent_id or "local"
        check_agent(agent_id)
        hooks = tuple(hooks)
        own = settings is not None or hooks != () or approver is not None
        if engine is not None and own:
            raise ValidationFailed(
                "Give either `engine`, or `settings`, `hooks` and `approver`: an engine has its own.",
                remediation="Drop one of them.",
            )
        share, making = None, object()
        if engine is None:
            share = _Share(Engine(settings, hooks=hooks, approver=approver)) if own else _common_share()
            engine = share.engine
            share.take(making)
        try:
            session = await engine.create_sandbox(
                options.template,
                limits=options.limits,
                envs=options.envs,
                metadata=options.metadata,
                timeout=options.timeout,
                snapshot=options.snapshot,
                agent_id=agent_id,
            )
            if share is not None:
                share.take(session.id)
        finally:
            if share is not None:
                await asyncio.shield(asyncio.ensure_future(share.release(making)))
        return cls(session, engine, share)

    @classmethod
    async def connect(cls, sandbox_id: str, engine: Engine | None) -> Self:
        """Another handle on one that lives; see `AsyncSandbox.connect`."""
        shares = [] if engine is not None else _Share.in_use.get(asyncio.get_running_loop(), [])
        share = next((share for share in shares if share.engine.has_sandbox(sandbox_id)), None)
        if share is not None:
            engine = share.engine
        if engine is None:
            raise SessionNotFound(
                f"There is no sandbox {sandbox_id!r:.80} here.",
                remediation="A sandbox ends with the process that made it, unless its engine is durable: name that.",
            )
        session = await engine.get_sandbox(sandbox_id)
        await session.resume()
        return cls(session, engine, share)

    @property
    def isolation(self) -> str:
        return self.session.machine.backend

    # --- code -----------------------------------------------------------------------------------------------------

    def runnable_language(self, name: str) -> str:
        return self._engine.runnable_language(name, self.session)

    async def run_code(
        self, language: str, code: str, options: RunOptions, requirements: Sequence[str], listeners: Listeners
    ) -> Execution:
        request = ExecuteRequest(self.session, language, code, options, requirements)
        return await self._engine.execute(request, listeners)

    async def create_context(self, language: str, cwd: str | None, envs: Mapping[str, str]) -> ContextInfo:
        name = self._engine.runnable_language(language, self.session)
        return await self.session.contexts.create(name, cwd, envs)

    async def list_contexts(self) -> list[ContextInfo]:
        return await self.session.contexts.list()

    async def restart_context(self, context_id: str) -> None:
        await self.session.contexts.restart(context_id)

    async def remove_context(self, context_id: str) -> None:
        await self.session.contexts.remove(context_id)

    async def interrupt(self, context_id: str | None) -> int:
        return await self.session.runner.interrupt(context_id)

    async def history(
        self, limit: int, *, failures_only: bool, since: datetime | None, until: datetime | None
    ) -> list[CommandHistoryEntry]:
        wanted = HistoryQueryRequest(
            vm_id=self.id, limit=limit, failures_only=failures_only, start_date=since, end_date=until
        )
        return (await self._engine.history.query(wanted)).history

    # --- undo -----------------------------------------------------------------------------------------------------

    async def snapshot(self, name: str | None, *, keep: bool, description: str) -> SnapshotInfo:
        return await self._engine.checkpoints.snapshot(self.session, name, keep=keep, description=description)

    async def list_snapshots(self) -> list[SnapshotInfo]:
        return await self._engine.checkpoints.snapshots(self.session)

    async def delete_snapshot(self, snapshot: str) -> None:
        await self._engine.checkpoints.delete(self.session, snapshot)

    async def rollback(self, to: str, *, paths: Sequence[str] | None, keep_current: bool) -> RollbackResponse:
        return await self._engine.checkpoints.rollback(self.session, to, paths=paths, keep_current=keep_current)

    async def diff(self, before: str, after: str | None) -> list[FileDiff]:
        return await self._engine.checkpoints.diff(self.session, before, after)

    async def branch(self, point: str, timeout: float | None) -> LocalBackend:
        return self._beside(await self._engine.checkpoints.branch(self.session, point, timeout=timeout))

    async def fork(self, count: int, timeout: float | None) -> list[LocalBackend]:
        try:
            sessions = await self._engine.checkpoints.fork(self.session, count, timeout=timeout)
        except ForkFailed as exc:
            exc.children = [self._beside(session) for session in exc.children]
            raise
        return [self._beside(session) for session in sessions]

    def _beside(self, session: SandboxInstance) -> LocalBackend:
        """A sandbox beside this one, which keeps the engine alive as well."""
        if self._share is not None:
            self._share.take(session.id)
        return LocalBackend(session, self._engine, self._share)

    # --- life -----------------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        await self.session.pause()

    async def resume(self) -> None:
        await self.session.resume()

    async def set_timeout(self, seconds: float | None) -> None:
        self.session.set_timeout(seconds)

    async def info(self) -> SandboxInfo:
        return self.session.info()

    async def metrics(self) -> SandboxMetrics:
        return await self.session.metrics()

    async def is_running(self) -> bool:
        return self.session.state.value == "running"

    async def kill(self) -> None:
        try:
            await self.session.kill()
        finally:
            if self._share is not None:
                await asyncio.shield(asyncio.ensure_future(self._share.release(self.id)))

    async def disconnect(self) -> None:
        """There is no connection: it goes on in this process."""
