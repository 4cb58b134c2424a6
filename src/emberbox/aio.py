"""The asynchronous SDK: `AsyncSandbox`, one isolated machine to run code in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self, overload

from emberbox.config import Settings
from emberbox.engine import Engine, ExecuteRequest
from emberbox.errors import ExecutionFailed, ForkFailed, SessionNotFound, ValidationFailed
from emberbox.models import (
    CommandHistoryEntry,
    CommandResult,
    ContextInfo,
    EntryInfo,
    Execution,
    FileDiff,
    HistoryQueryRequest,
    MachineLimits,
    ProcessInfo,
    RollbackResponse,
    SandboxInfo,
    SandboxMetrics,
    SnapshotInfo,
)
from emberbox.sandbox.files import Data
from emberbox.sandbox.session import Session
from emberbox.sandbox.work import Listeners, OnResult, OnText, RunOptions

DEFAULT_SANDBOX_TIMEOUT = 300.0
"""Seconds after which a sandbox is killed unless `set_timeout` says otherwise."""
DEFAULT_COMMAND_TIMEOUT = 60.0


@dataclass(slots=True)
class _Share:
    """An engine that belongs to the sandboxes which use it; it goes with the last of them."""

    engine: Engine
    users: int = 0

    async def release(self) -> None:
        self.users -= 1
        if self.users == 0:
            loop = asyncio.get_running_loop()
            if _engines.get(loop) is self:
                del _engines[loop]
            await self.engine.close()


_engines: dict[asyncio.AbstractEventLoop, _Share] = {}
"""One engine per event loop, for all sandboxes that name none."""


def _common_share() -> _Share:
    for loop in [loop for loop in _engines if loop.is_closed()]:
        _engines.pop(loop).engine.abandon()  # its sandboxes were not killed, and nothing else would
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
            engine: use this one; else one is shared by all sandboxes of this event loop.
            settings: make an engine of this sandbox's own with these settings.

        Raises:
            VmNotAvailable: no back end is usable, or the machine did not start (`emberbox doctor` explains).
            ImageError: the template's image could not be built.
        """
        if engine is not None and settings is not None:
            raise ValidationFailed("Give either `engine` or `settings`, not both.", remediation="Drop one of them.")
        share = None
        if engine is None:
            share = _common_share() if settings is None else _Share(Engine(settings))
            share.users += 1
            engine = share.engine
        try:
            session = await engine.create_sandbox(
                template, limits=limits, envs=envs, metadata=metadata, timeout=timeout
            )
        except BaseException:
            if share is not None:
                await asyncio.shield(asyncio.ensure_future(share.release()))
            raise
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
            self._share.users += 1
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
            share, self._share = self._share, None
            if share is not None:
                await asyncio.shield(asyncio.ensure_future(share.release()))


def _id_of(point: SnapshotInfo | Execution | str) -> str:
    if isinstance(point, str):
        return point
    return point.execution_id if isinstance(point, Execution) else point.snapshot_id


class AsyncFiles:
    """Files of a sandbox. Relative paths start in the work directory; errors are GuestFileError."""

    def __init__(self, session: Session) -> None:
        self._files = session.files

    @overload
    async def read(self, path: str) -> str: ...
    @overload
    async def read(self, path: str, format: Literal["text"]) -> str: ...
    @overload
    async def read(self, path: str, format: Literal["bytes"]) -> bytes: ...
    @overload
    async def read(self, path: str, format: Literal["stream"]) -> AsyncIterator[bytes]: ...

    async def read(
        self,
        path: str,
        format: Literal["text", "bytes", "stream"] = "text",  # noqa: A002 (the field's name for it)
    ) -> str | bytes | AsyncIterator[bytes]:
        """Read a file as `text` (UTF-8, nonsense replaced), `bytes`, or a `stream` of pieces of at most 256 KiB."""
        if format == "stream":
            return self._files.read_stream(path)
        data = await self._files.read_bytes(path)
        return data if format == "bytes" else data.decode("utf-8", "replace")

    async def write(self, path: str, data: Data, *, mode: int | None = None) -> EntryInfo:
        """Write text, bytes, an open file or an iterable of bytes. The file appears when it is whole."""
        return await self._files.write(path, data, mode=mode)

    async def list(self, path: str = ".", *, depth: int = 1) -> list[EntryInfo]:
        """Entries of a directory, `depth` levels deep."""
        return await self._files.list(path, depth=depth)

    async def exists(self, path: str) -> bool:
        return await self._files.exists(path)

    async def get_info(self, path: str) -> EntryInfo:
        return await self._files.get_info(path)

    async def make_dir(self, path: str) -> bool:
        """Make a directory and its parents; False if it was there already."""
        return await self._files.make_dir(path)

    async def remove(self, path: str) -> None:
        """Remove a file, or a directory with all it holds."""
        await self._files.remove(path)

    async def rename(self, path: str, new_path: str) -> EntryInfo:
        return await self._files.rename(path, new_path)


class AsyncCommandHandle:
    """A command that runs in the background."""

    def __init__(self, session: Session, task: asyncio.Task[CommandResult], request: int, pid: int) -> None:
        self._session = session
        self._task = task
        self._request = request
        self.pid = pid

    async def wait(self) -> CommandResult:
        """Wait for its end. Being cancelled here leaves the command running."""
        return await asyncio.shield(self._task)

    async def kill(self) -> bool:
        """Kill it and its children; False if it had ended."""
        return not self._task.done() and await self._session.processes.kill(self.pid)

    async def send_stdin(self, data: str | bytes, *, eof: bool = False) -> None:
        """Write to its standard input; `eof` closes it afterwards."""
        await self._session.runner.send_stdin(self._request, data.encode() if isinstance(data, str) else data, eof=eof)


class AsyncCommands:
    """Programs in a sandbox, run as its user. A string is run by `bash -c`, a list as it is."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._handles: dict[int, AsyncCommandHandle] = {}

    @overload
    async def run(
        self, cmd: str | Sequence[str], *, background: Literal[False] = False, cwd: str | None = None,
        envs: Mapping[str, str] | None = None, timeout: float | None = DEFAULT_COMMAND_TIMEOUT,
        on_stdout: OnText | None = None, on_stderr: OnText | None = None,
    ) -> CommandResult: ...  # fmt: skip
    @overload
    async def run(
        self, cmd: str | Sequence[str], *, background: Literal[True], cwd: str | None = None,
        envs: Mapping[str, str] | None = None, timeout: float | None = None,
        on_stdout: OnText | None = None, on_stderr: OnText | None = None,
    ) -> AsyncCommandHandle: ...  # fmt: skip

    async def run(
        self,
        cmd: str | Sequence[str],
        *,
        background: bool = False,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        timeout: float | None = DEFAULT_COMMAND_TIMEOUT,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
    ) -> CommandResult | AsyncCommandHandle:
        """Run a command. A failing one does not raise: look at `exit_code`.

        Args:
            cmd: for bash, or a list of arguments.
            background: return a handle at once; only then can it be sent standard input.
            timeout: seconds; None: none (the sandbox's own time bounds it).

        Raises:
            VmNotAvailable: the sandbox is gone.
            ExecutionFailed: no such program or working directory.
        """
        if timeout is not None and timeout <= 0:
            raise ValidationFailed(f"A timeout of {timeout:g} s is not possible.", remediation="Use None for no limit.")
        argv = ["/bin/bash", "-c", cmd] if isinstance(cmd, str) else list(cmd)
        listeners = Listeners(on_stdout, on_stderr)
        if not background:
            return await self._session.runner.exec(argv, cwd=cwd, env=envs, timeout=timeout, listeners=listeners)
        started: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        work = self._session.runner.exec(
            argv, cwd=cwd, env=envs, timeout=timeout, listeners=listeners, stdin=True,
            on_start=lambda request, pid: None if started.done() else started.set_result((request, pid)),
        )  # fmt: skip
        task = asyncio.ensure_future(work)
        both: list[asyncio.Future[Any]] = [started, task]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            task.cancel()  # which kills the command
            raise
        if not started.done():
            started.cancel()
            done = await task  # raises why it did not start
            raise ExecutionFailed(f"{argv[0]} ended with {done.exit_code} before it began: {done.error or ''}")
        request, pid = started.result()
        handle = AsyncCommandHandle(self._session, task, request, pid)
        self._handles[pid] = handle
        task.add_done_callback(lambda _: self._handles.pop(pid, None))
        return handle

    async def list(self) -> list[ProcessInfo]:
        """Commands under way."""
        return await self._session.processes.list()

    async def kill(self, pid: int) -> bool:
        """Kill a command; False if there is none of this pid."""
        return await self._session.processes.kill(pid)

    async def send_stdin(self, pid: int, data: str | bytes, *, eof: bool = False) -> None:
        """Write to a background command's standard input."""
        handle = self._handles.get(pid)
        if handle is None:
            raise SessionNotFound(f"There is no background command {pid}.", remediation="commands.list() shows them.")
        await handle.send_stdin(data, eof=eof)
