"""The asynchronous SDK: `AsyncSandbox`, one isolated machine to run code in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from emberbox import models
from emberbox.errors import ForkFailed, SessionNotFound, ValidationFailed, VmNotAvailable
from emberbox.sandbox.listeners import Listeners, OnResult, OnText, RunOptions
from emberbox.sdk.backends.base import Backend, CreateOptions
from emberbox.sdk.commands import AsyncCommands
from emberbox.sdk.files import AsyncFiles

if TYPE_CHECKING:  # who uses one kind of sandbox imports nothing of the other
    from emberbox.config import Settings
    from emberbox.engine import Engine
    from emberbox.hooks.approval import Approver
    from emberbox.hooks.contract import Hook
    from emberbox.sdk.backends.local import LocalBackend

DEFAULT_SANDBOX_TIMEOUT = 300.0
"""Seconds after which a sandbox is killed unless `set_timeout` says otherwise."""


def _local() -> type[LocalBackend]:
    """Sandboxes of this process; raises VmNotAvailable where only the client is installed."""
    try:
        from emberbox.sdk.backends.local import LocalBackend
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "emberbox":
            raise
        raise VmNotAvailable(
            f"Sandboxes of this process need more than the client that is installed: there is no {exc.name}.",
            remediation="pip install 'emberbox[engine]', or give the `base_url` of a server.",
        ) from exc
    return LocalBackend


class AsyncSandbox:
    """An isolated machine to run code in. Make one with `await AsyncSandbox.create()`; use it as an async context
    manager, or `await sandbox.kill()` it.

    >>> async with await AsyncSandbox.create() as sandbox:              # doctest: +SKIP
    ...     await sandbox.run_code("x = 41")
    ...     execution = await sandbox.run_code("x + 1")
    ...     execution.text
    '42'

    Attributes:
        files: read, write, list, … (see `AsyncFiles`).
        commands: run programs (see `AsyncCommands`).
    """

    files: AsyncFiles
    commands: AsyncCommands

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.files = backend.files
        self.commands = backend.commands
        self._contexts: dict[str, models.ContextInfo] = {}
        """Those that were made or listed here, so that a context's name tells its language without a question."""

    @classmethod
    async def create(
        cls,
        template: str | None = None,
        *,
        timeout: float | None = DEFAULT_SANDBOX_TIMEOUT,
        envs: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        limits: models.MachineLimits | None = None,
        snapshot: str | None = None,
        agent_id: str | None = None,
        hooks: Iterable[Hook] = (),
        approver: Approver | None = None,
        engine: Engine | None = None,
        settings: Settings | None = None,
        base_url: str | None = None,
        token: str | None = None,
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
            agent_id: for whom it is, in history and policy; `local`, or the token's agent, unless given.
            hooks: policy around each execution, after the hooks that the settings name; makes an engine of its own.
            approver: asks a person where a hook or a rule wants it; makes an engine of its own.
            engine: use this one; else all sandboxes of this event loop share one.
            settings: make an engine of this sandbox's own with these settings.
            base_url: make it on the server of this address (`emberbox serve`), which has its own settings and hooks.
            token: of that server; the variable EMBERBOX_TOKEN unless given.

        Raises:
            VmNotAvailable: no back end is usable, or the machine did not start (`emberbox doctor` explains).
            ApiError, VmConnectionError: the server refuses, or cannot be reached.
            ImageError: the template's image could not be built.
            SnapshotNotFound, SnapshotFailed: there is no such snapshot, or it cannot be used here.
        """
        options = CreateOptions(template, timeout, envs, metadata, limits, snapshot, agent_id)
        hooks = tuple(hooks)
        if base_url is not None:
            if hooks or approver is not None or engine is not None or settings is not None:
                raise ValidationFailed(
                    "A sandbox on a server has the hooks, the approver and the settings of that.",
                    remediation="Leave out `hooks`, `approver`, `engine` and `settings`, or leave out `base_url`.",
                )
            from emberbox.sdk.backends.remote import RemoteBackend

            return cls(await RemoteBackend.create(base_url, token, options))
        local = _local().create(options, hooks=hooks, approver=approver, engine=engine, settings=settings)
        return cls(await local)

    @classmethod
    async def connect(
        cls, sandbox_id: str, *, engine: Engine | None = None, base_url: str | None = None, token: str | None = None
    ) -> Self:
        """Another handle on a sandbox that lives, by its id. One that was paused, or suspended by a durable engine,
        goes on.

        Args:
            sandbox_id: of the sandbox.
            engine: look only there; else among all sandboxes of this event loop.
            base_url, token: look on this server.

        Raises:
            SessionNotFound: there is none.
        """
        if base_url is not None:
            from emberbox.sdk.backends.remote import RemoteBackend

            return cls(await RemoteBackend.connect(base_url, token, sandbox_id))
        return cls(await _local().connect(sandbox_id, engine))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    @property
    def sandbox_id(self) -> str:
        return self._backend.id

    @property
    def backend(self) -> str:
        """Which isolation it runs in, such as `gvisor`."""
        return self._backend.isolation

    # --- code -----------------------------------------------------------------------------------------------------

    async def run_code(
        self,
        code: str,
        language: str | None = None,
        *,
        context: models.ContextInfo | str | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnResult | None = None,
        timeout: float | None = None,
        envs: Mapping[str, str] | None = None,
        cwd: str | None = None,
        args: Sequence[str] = (),
        stdin: str | bytes = b"",
        requirements: Sequence[str] = (),
    ) -> models.Execution:
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
        listeners = Listeners(on_stdout, on_stderr, on_result)
        return await self._backend.run_code(language, code, options, requirements, listeners)

    async def _language_of(
        self, language: str | None, context: models.ContextInfo | str | None
    ) -> tuple[str, str | None]:
        if context is None:
            return language or "python", None
        if isinstance(context, str):
            if context not in self._contexts:
                await self.list_code_contexts()
            if context not in self._contexts:
                raise SessionNotFound(
                    f"Sandbox {self.sandbox_id} has no context {context!r:.80}.",
                    remediation="Make one with create_code_context().",
                )
            context = self._contexts[context]
        if language is not None and self._backend.runnable_language(language) != context.language:
            raise ValidationFailed(
                f"Context {context.id} is for {context.language}, not {language}.",
                remediation="Leave `language` out, or use another context.",
            )
        return context.language, context.id

    async def create_code_context(
        self, language: str = "python", *, cwd: str | None = None, envs: Mapping[str, str] | None = None
    ) -> models.ContextInfo:
        """A new interpreter beside the others, with its own variables. Not for rust, which keeps none."""
        made = await self._backend.create_context(language, cwd, envs or {})
        self._contexts[made.id] = made
        return made

    async def list_code_contexts(self) -> list[models.ContextInfo]:
        found = await self._backend.list_contexts()
        self._contexts = {context.id: context for context in found}
        return found

    async def restart_code_context(self, context: models.ContextInfo | str) -> None:
        """Start its interpreter anew: variables are gone, files stay. Running code is killed."""
        await self._backend.restart_context(context if isinstance(context, str) else context.id)

    async def remove_code_context(self, context: models.ContextInfo | str) -> None:
        """End its interpreter and whatever it runs."""
        name = context if isinstance(context, str) else context.id
        self._contexts.pop(name, None)
        await self._backend.remove_context(name)

    async def interrupt(self, context: models.ContextInfo | str | None = None) -> int:
        """Interrupt running code as Ctrl-C would, in one context or in all. Call it from another task than the one that
        waits for the code. Return how many executions it reached."""
        return await self._backend.interrupt(context.id if isinstance(context, models.ContextInfo) else context)

    async def history(
        self,
        *,
        limit: int = 50,
        failures_only: bool = False,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[models.CommandHistoryEntry]:
        """What was executed here, newest first, refusals included; also after `kill`.

        Args:
            limit: at most so many (the settings' `max_history_entries` are kept).
            failures_only: only what failed or was refused.
            since, until: only what began in this time, ends included; without a zone it is local time.

        Raises:
            HistoryError: recording is switched off, or the history cannot be read.
        """
        return await self._backend.history(limit, failures_only=failures_only, since=since, until=until)

    # --- undo -----------------------------------------------------------------------------------------------------

    async def snapshot(
        self, name: str | None = None, *, keep: bool = False, description: str = ""
    ) -> models.SnapshotInfo:
        """Keep the sandbox as it is now: files, variables, running commands. It goes on; snapshots end with it.

        Args:
            name: a word for it, which `rollback` and the others take as well as its id.
            keep: a copy stays when the sandbox and this process have ended: `create(snapshot=…)` goes on from it.
            description: what it is for, to be shown in lists; at most 2,000 characters on a server.

        Raises:
            SnapshotFailed: code is running, there are too many, or the disk is full.
        """
        return await self._backend.snapshot(name, keep=keep, description=description)

    async def list_snapshots(self) -> list[models.SnapshotInfo]:
        """Snapshots of this sandbox, oldest first; `parent_id` makes them a tree."""
        return await self._backend.list_snapshots()

    async def delete_snapshot(self, snapshot: models.SnapshotInfo | str) -> None:
        """Remove a snapshot; the ones taken after it stay."""
        await self._backend.delete_snapshot(_id_of(snapshot))

    async def rollback(
        self,
        to: models.SnapshotInfo | models.Execution | str,
        *,
        paths: Sequence[str] | None = None,
        keep_current: bool = False,
    ) -> models.RollbackResponse:
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
        return await self._backend.rollback(_id_of(to), paths=paths, keep_current=keep_current)

    async def diff(
        self,
        before: models.SnapshotInfo | models.Execution | str,
        after: models.SnapshotInfo | models.Execution | str | None = None,
    ) -> list[models.FileDiff]:
        """Files that differ between two points (as of `rollback`; None: now), text files with their lines."""
        return await self._backend.diff(_id_of(before), None if after is None else _id_of(after))

    async def branch(
        self, point: models.SnapshotInfo | models.Execution | str, *, timeout: float | None = DEFAULT_SANDBOX_TIMEOUT
    ) -> AsyncSandbox:
        """A new sandbox that goes on from a point of this one (as of `rollback`), which is not touched."""
        return AsyncSandbox(await self._backend.branch(_id_of(point), timeout))

    async def fork(self, count: int = 1, *, timeout: float | None = DEFAULT_SANDBOX_TIMEOUT) -> list[AsyncSandbox]:
        """`count` new sandboxes that go on from this moment, each on its own. Random numbers differ in each.

        Raises:
            SnapshotFailed: code is running in the sandbox.
            ForkFailed: some did not start; its `children` are the sandboxes that did.
        """
        try:
            return [AsyncSandbox(child) for child in await self._backend.fork(count, timeout)]
        except ForkFailed as exc:
            exc.children = [AsyncSandbox(child) for child in exc.children]
            raise

    async def pause(self) -> None:
        """Stop everything in it: no CPU is used, memory stays. Calls are refused until `resume`."""
        await self._backend.pause()

    async def resume(self) -> None:
        """Let it go on after `pause`."""
        await self._backend.resume()

    # --- life -----------------------------------------------------------------------------------------------------

    async def set_timeout(self, seconds: float | None) -> None:
        """Kill the sandbox this many seconds from now; None: never."""
        await self._backend.set_timeout(seconds)

    async def get_info(self) -> models.SandboxInfo:
        return await self._backend.info()

    async def get_metrics(self) -> models.SandboxMetrics:
        """Memory, CPU, disk and processes of now."""
        return await self._backend.metrics()

    async def is_running(self) -> bool:
        return await self._backend.is_running()

    async def kill(self) -> None:
        """End it and everything in it. Harmless when it has ended."""
        await self._backend.kill()

    @property
    def is_remote(self) -> bool:
        """It is one of a server."""
        return self._backend.remote

    async def disconnect(self) -> None:
        """Let go of a sandbox of a server without ending it: `connect` finds it again. One of this process goes on
        until it is killed."""
        await self._backend.disconnect()


def _id_of(point: models.SnapshotInfo | models.Execution | str) -> str:
    if isinstance(point, str):
        return point
    return point.execution_id if isinstance(point, models.Execution) else point.snapshot_id
