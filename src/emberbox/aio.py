"""The asynchronous SDK: `AsyncSandbox`, one isolated machine to run code in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import ClassVar, Self

from emberbox.config import Settings
from emberbox.engine import Engine, ExecuteRequest
from emberbox.errors import ForkFailed, SessionNotFound, ValidationFailed
from emberbox.hooks.approval import Approver
from emberbox.hooks.contract import Hook
from emberbox.inside import AsyncCommands, AsyncFiles
from emberbox.models import (
    CommandHistoryEntry,
    ContextInfo,
    Execution,
    FileDiff,
    HistoryQueryRequest,
    MachineLimits,
    RollbackResponse,
    SandboxInfo,
    SandboxMetrics,
    SnapshotInfo,
)
from emberbox.sandbox.session import Session
from emberbox.sandbox.work import Listeners, OnResult, OnText, RunOptions

DEFAULT_SANDBOX_TIMEOUT = 300.0
"""Seconds after which a sandbox is killed unless `set_timeout` says otherwise."""


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


class AsyncSandbox:
    """An isolated machine. Make one with `await AsyncSandbox.create()`; use it as an async context manager, or
    `await sandbox.kill()` it.

    Attributes:
        files: read, write, list, … (see `AsyncFiles`).
        commands: run programs (see `AsyncCommands`).
    """

    def __init__(self, session: Session, engine: Engine, share: _Share | None) -> None:
        self._session = session
        self._engine = engine
        self._share = share
        self.files = AsyncFiles(session)
        self.commands = AsyncCommands(session)

    @classmethod
    async def create(
        cls,
        template: str | None = None,
        *,
        timeout: float | None = DEFAULT_SANDBOX_TIMEOUT,
        envs: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        limits: MachineLimits | None = None,
        snapshot: str | None = None,
        hooks: Iterable[Hook] = (),
        approver: Approver | None = None,
        engine: Engine | None = None,
        settings: Settings | None = None,
    ) -> Self:
        """Start a sandbox.

        Args:
            template: name of a template, or path of its TOML file; `default` unless the settings say otherwise.
            timeout: seconds after which it is killed; None: never.
            envs: environment of everything that runs in it.
            metadata: words of your own, returned by `get_info`.
            limits: memory, CPU, processes, disk; the template's own unless given.
            snapshot: id of a kept snapshot (`snapshot(keep=True)`) to go on from: files, variables and processes are as
                they were then. Not together with `template` or `limits`, which are the snapshot's. What `envs` adds is
                for what starts from now on.
            hooks: policy around each execution, after the hooks that the settings name; makes an engine of its own.
            approver: asks a person where a hook or a rule wants it; makes an engine of its own.
            engine: use this one; else one is shared by all sandboxes of this event loop.
            settings: make an engine of this sandbox's own with these settings.

        Raises:
            VmNotAvailable: no back end is usable, or the machine did not start (`emberbox doctor` explains).
            ImageError: the template's image could not be built.
            SnapshotNotFound, SnapshotFailed: there is no such snapshot, or it cannot be used here.
        """
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
                template, limits=limits, envs=envs, metadata=metadata, timeout=timeout, snapshot=snapshot
            )
            if share is not None:
                share.take(session.id)
        finally:
            if share is not None:
                await asyncio.shield(asyncio.ensure_future(share.release(making)))
        return cls(session, engine, share)

    @classmethod
    async def connect(cls, sandbox_id: str, *, engine: Engine | None = None) -> Self:
        """Another handle on a sandbox that lives, by its id. One that was paused, or put aside by a durable engine,
        goes on.

        Args:
            sandbox_id: of the sandbox.
            engine: look only there; else among all sandboxes of this event loop.

        Raises:
            SessionNotFound: there is none.
        """
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    @property
    def sandbox_id(self) -> str:
        return self._session.id

    @property
    def backend(self) -> str:
        """Which isolation it runs in, such as `gvisor`."""
        return self._session.machine.backend

    # --- code -----------------------------------------------------------------------------------------------------

    async def run_code(
        self,
        code: str,
        language: str | None = None,
        *,
        context: ContextInfo | str | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnResult | None = None,
        timeout: float | None = None,
        envs: Mapping[str, str] | None = None,
        cwd: str | None = None,
        args: Sequence[str] = (),
        stdin: str | bytes = b"",
        requirements: Sequence[str] = (),
    ) -> Execution:
        """Run code and return what it did. Code that fails does not raise: look at `Execution.error`.

        Args:
            code: the source.
            language: python (default), javascript, bash or rust, or an alias; that of `context` if one is given.
            context: run in this context (variables stay); else in the language's default context.
            on_stdout, on_stderr, on_result: called as output arrives, plain functions or coroutine functions.
            timeout: seconds; the default is the settings' `execution_timeout_ms` times the language's factor.
            envs: more environment, for this execution only.
            cwd: working directory, for this execution and (in a context) from then on.
            args: program arguments (`sys.argv[1:]`, `process.argv`, `$1`…).
            stdin: what the code can read from standard input.
            requirements: packages that the code needs; an error says which the image lacks.

        Raises:
            ValidationFailed, UnsupportedLanguage: refused before it ran.
            VmNotAvailable: the sandbox is gone.
            SessionNotFound, ExecutionFailed: unknown or busy context.
        """
        language, context_id = await self._language_of(language, context)
        options = RunOptions(
            context=context_id,
            cwd=cwd,
            env=envs or {},
            args=args,
            stdin=stdin.encode() if isinstance(stdin, str) else stdin,
            timeout=timeout,
        )
        request = ExecuteRequest(self._session, language, code, options, requirements)
        return await self._engine.execute(request, Listeners(on_stdout, on_stderr, on_result))

    async def _language_of(self, language: str | None, context: ContextInfo | str | None) -> tuple[str, str | None]:
        if context is None:
            return language or "python", None
        if isinstance(context, str):
            known = {c.id: c for c in await self.list_code_contexts()}
            if context not in known:
                raise SessionNotFound(
                    f"Sandbox {self.sandbox_id} has no context {context!r:.80}.",
                    remediation="Make one with create_code_context().",
                )
            context = known[context]
        if language is not None and self._engine.runnable_language(language, self._session) != context.language:
            raise ValidationFailed(
                f"Context {context.id} is for {context.language}, not {language}.",
                remediation="Leave `language` out, or use another context.",
            )
        return context.language, context.id

    async def create_code_context(
        self, language: str = "python", *, cwd: str | None = None, envs: Mapping[str, str] | None = None
    ) -> ContextInfo:
        """A new interpreter beside the others, with its own variables. Not for rust, which keeps none."""
        name = self._engine.runnable_language(language, self._session)
        return await self._session.contexts.create(name, cwd, envs or {})

    async def list_code_contexts(self) -> list[ContextInfo]:
        return await self._session.contexts.list()

    async def restart_code_context(self, context: ContextInfo | str) -> None:
        """Start its interpreter anew: variables are gone, files stay. Running code is killed."""
        await self._session.contexts.restart(context if isinstance(context, str) else context.id)

    async def remove_code_context(self, context: ContextInfo | str) -> None:
        """End its interpreter and whatever it runs."""
        await self._session.contexts.remove(context if isinstance(context, str) else context.id)

    async def interrupt(self, context: ContextInfo | str | None = None) -> int:
        """Interrupt running code as Ctrl-C would, in one context or in all; how many executions it reached."""
        return await self._session.runner.interrupt(context.id if isinstance(context, ContextInfo) else context)

    async def history(
        self,
        *,
        limit: int = 50,
        failures_only: bool = False,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[CommandHistoryEntry]:
        """What was executed here, newest first, refusals included; also after `kill`.

        Args:
            limit: at most so many (the settings' `max_history_entries` are kept).
            failures_only: only what failed or was refused.
            since, until: only what began in this time, ends included; without a zone it is local time.

        Raises:
            HistoryError: recording is switched off, or the history cannot be read.
        """
        wanted = HistoryQueryRequest(
            vm_id=self.sandbox_id, limit=limit, failures_only=failures_only, start_date=since, end_date=until
        )
        return (await self._engine.history.query(wanted)).history

    # --- undo -----------------------------------------------------------------------------------------------------

    async def snapshot(self, name: str | None = None, *, keep: bool = False) -> SnapshotInfo:
        """Keep the sandbox as it is now: files, variables, running commands. It goes on; snapshots end with it.

        Args:
            name: a word for it, which `rollback` and the others take as well as its id.
            keep: a copy stays when the sandbox and this process have ended: `create(snapshot=…)` goes on from it.

        Raises:
            SnapshotFailed: code is running, there are too many, or the disk is full.
        """
        return await self._engine.undo.snapshot(self._session, name, keep=keep)

    async def list_snapshots(self) -> list[SnapshotInfo]:
        """Snapshots of this sandbox, oldest first; `parent_id` makes them a tree."""
        return await self._engine.undo.snapshots(self._session)

    async def delete_snapshot(self, snapshot: SnapshotInfo | str) -> None:
        """Remove a snapshot; the ones taken after it stay."""
        await self._engine.undo.delete(self._session, _id_of(snapshot))

    async def rollback(
        self, to: SnapshotInfo | Execution | str, *, paths: Sequence[str] | None = None, keep_current: bool = False
    ) -> RollbackResponse:
        """Take everything back: files, memory, processes. What runs now is killed.

        Args:
            to: a snapshot (or its id, or its name), an execution (or its id: the state before it), or
                "last-success": the newest state that there is a snapshot of after a success.
            paths: take back only these files and folders; memory and processes stay.
            keep_current: take a snapshot of now before; its id is in the answer.

        Raises:
            SnapshotNotFound: there is no snapshot of that state.
            RollbackFailed: nothing could be started from it; the sandbox is as it was.
        """
        return await self._engine.undo.rollback(self._session, _id_of(to), paths=paths, keep_current=keep_current)

    async def diff(
        self, before: SnapshotInfo | Execution | str, after: SnapshotInfo | Execution | str | None = None
    ) -> list[FileDiff]:
        """Files that differ between two points (as of `rollback`; None: now), text files with their lines."""
        return await self._engine.undo.diff(self._session, _id_of(before), None if after is None else _id_of(after))

    async def branch(
        self, point: SnapshotInfo | Execution | str, *, timeout: float | None = DEFAULT_SANDBOX_TIMEOUT
    ) -> AsyncSandbox:
        """A new sandbox that goes on from a point of this one (as of `rollback`), which is not touched."""
        return self._beside(await self._engine.undo.branch(self._session, _id_of(point), timeout=timeout))

    async def fork(self, count: int = 1, *, timeout: float | None = DEFAULT_SANDBOX_TIMEOUT) -> list[AsyncSandbox]:
        """`count` new sandboxes that go on from this moment, each on its own. Random numbers differ in each.

        Raises:
            SnapshotFailed: code is running in the sandbox.
            ForkFailed: some did not start; its `children` are the sandboxes that did.
        """
        try:
            sessions = await self._engine.undo.fork(self._session, count, timeout=timeout)
        except ForkFailed as exc:
            exc.children = [self._beside(session) for session in exc.children]
            raise
        return [self._beside(session) for session in sessions]

    def _beside(self, session: Session) -> AsyncSandbox:
        """A sandbox beside this one, which keeps the engine alive as well."""
        if self._share is not None:
            self._share.take(session.id)
        return AsyncSandbox(session, self._engine, self._share)

    async def pause(self) -> None:
        """Stop everything in it: no CPU is used, memory stays. Calls are refused until `resume`."""
        await self._session.pause()

    async def resume(self) -> None:
        """Let it go on after `pause`."""
        await self._session.resume()

    # --- life -----------------------------------------------------------------------------------------------------

    def set_timeout(self, seconds: float | None) -> None:
        """Kill the sandbox this many seconds from now; None: never."""
        self._session.set_timeout(seconds)

    def get_info(self) -> SandboxInfo:
        return self._session.info()

    async def get_metrics(self) -> SandboxMetrics:
        """Memory, CPU, disk and processes of now."""
        return await self._session.metrics()

    def is_running(self) -> bool:
        return self._session.state.value == "running"

    async def kill(self) -> None:
        """End it and everything in it. Harmless when it has ended."""
        try:
            await self._session.kill()
        finally:
            if self._share is not None:
                await asyncio.shield(asyncio.ensure_future(self._share.release(self.sandbox_id)))


def _id_of(point: SnapshotInfo | Execution | str) -> str:
    if isinstance(point, str):
        return point
    return point.execution_id if isinstance(point, Execution) else point.snapshot_id
