"""The synchronous SDK: `Sandbox`, the twin of `AsyncSandbox`. It runs the same code on an event loop in a thread.

Callbacks are called in the caller's thread. Ctrl-C during a call cancels it in the sandbox as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from emberbox.errors import ForkFailed
from emberbox.models import (
    CommandHistoryEntry,
    CommandResult,
    ContextInfo,
    EntryInfo,
    Execution,
    FileDiff,
    MachineLimits,
    ProcessInfo,
    RollbackResponse,
    SandboxInfo,
    SandboxMetrics,
    SnapshotInfo,
)
from emberbox.sandbox.listeners import OnResult, OnText
from emberbox.sandbox.uploads import Data
from emberbox.sdk.commands import DEFAULT_COMMAND_TIMEOUT, AsyncCommandHandle
from emberbox.sdk.portal import Loop, Relay
from emberbox.sdk.sandbox import DEFAULT_SANDBOX_TIMEOUT, AsyncSandbox

if TYPE_CHECKING:
    from emberbox.config import Settings
    from emberbox.hooks.approval import Approver
    from emberbox.hooks.contract import Hook


class Sandbox:
    """An isolated machine to run code in.

    >>> with Sandbox.create() as sandbox:              # doctest: +SKIP
    ...     sandbox.run_code("x = 41")
    ...     sandbox.run_code("x + 1").text
    '42'

    Attributes:
        files: read, write, list, … (see `Files`).
        commands: run programs (see `Commands`).
    """

    def __init__(self, loop: Loop, sandbox: AsyncSandbox) -> None:
        self._loop = loop
        self._sandbox = sandbox
        self._closed = False
        self.files = Files(loop, sandbox)
        self.commands = Commands(loop, sandbox)

    @classmethod
    def create(
        cls,
        template: str | None = None,
        *,
        timeout: float | None = DEFAULT_SANDBOX_TIMEOUT,
        envs: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        limits: MachineLimits | None = None,
        snapshot: str | None = None,
        agent_id: str | None = None,
        hooks: Iterable[Hook] = (),
        approver: Approver | None = None,
        settings: Settings | None = None,
        base_url: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Start a sandbox. Arguments and errors as of `AsyncSandbox.create`."""
        loop = Loop()
        try:
            work = partial(
                AsyncSandbox.create,
                template,
                timeout=timeout,
                envs=envs,
                metadata=metadata,
                limits=limits,
                snapshot=snapshot,
                agent_id=agent_id,
                hooks=hooks,
                approver=approver,
                settings=settings,
                base_url=base_url,
                token=token,
            )
            return cls(loop, loop.call(work))
        except BaseException:
            loop.close()
            raise

    @classmethod
    def connect(cls, sandbox_id: str, *, base_url: str | None = None, token: str | None = None) -> Self:
        """Another handle on a sandbox of this process (or of the server `base_url`), by its id; a paused one goes on.
        Raises SessionNotFound."""
        loop = Loop()
        try:
            return cls(loop, loop.call(partial(AsyncSandbox.connect, sandbox_id, base_url=base_url, token=token)))
        except BaseException:
            loop.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def sandbox_id(self) -> str:
        return self._sandbox.sandbox_id

    @property
    def backend(self) -> str:
        """Which isolation it runs in, such as `gvisor`."""
        return self._sandbox.backend

    def run_code(
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
        """Run code and return what it did. Arguments and errors as of `AsyncSandbox.run_code`."""
        relay = Relay()
        work = partial(
            self._sandbox.run_code,
            code,
            language,
            context=context,
            on_stdout=relay.wrap(on_stdout),
            on_stderr=relay.wrap(on_stderr),
            on_result=relay.wrap(on_result),
            timeout=timeout,
            envs=envs,
            cwd=cwd,
            args=args,
            stdin=stdin,
            requirements=requirements,
        )
        return self._loop.call(work, relay)

    def create_code_context(
        self, language: str = "python", *, cwd: str | None = None, envs: Mapping[str, str] | None = None
    ) -> ContextInfo:
        """A new interpreter beside the others, with its own variables. Not for rust, which keeps none."""
        return self._loop.call(partial(self._sandbox.create_code_context, language, cwd=cwd, envs=envs))

    def list_code_contexts(self) -> list[ContextInfo]:
        return self._loop.call(self._sandbox.list_code_contexts)

    def restart_code_context(self, context: ContextInfo | str) -> None:
        """Start its interpreter anew: variables are gone, files stay. Running code is killed."""
        self._loop.call(partial(self._sandbox.restart_code_context, context))

    def remove_code_context(self, context: ContextInfo | str) -> None:
        """End its interpreter and whatever it runs."""
        self._loop.call(partial(self._sandbox.remove_code_context, context))

    def interrupt(self, context: ContextInfo | str | None = None) -> int:
        """Interrupt running code as Ctrl-C would (call it from another thread); how many executions it reached."""
        return self._loop.call(partial(self._sandbox.interrupt, context))

    def history(
        self,
        *,
        limit: int = 50,
        failures_only: bool = False,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[CommandHistoryEntry]:
        """What was executed here, newest first. Arguments and errors as of `AsyncSandbox.history`."""
        work = partial(self._sandbox.history, limit=limit, failures_only=failures_only, since=since, until=until)
        if not self._closed:
            return self._loop.call(work)
        loop = Loop()
        try:
            return loop.call(work)
        finally:
            loop.close()

    def snapshot(self, name: str | None = None, *, keep: bool = False, description: str = "") -> SnapshotInfo:
        """Keep the sandbox as it is now: files, variables, running commands. As of `AsyncSandbox.snapshot`."""
        return self._loop.call(partial(self._sandbox.snapshot, name, keep=keep, description=description))

    def list_snapshots(self) -> list[SnapshotInfo]:
        """Snapshots of this sandbox, oldest first; `parent_id` makes them a tree."""
        return self._loop.call(self._sandbox.list_snapshots)

    def delete_snapshot(self, snapshot: SnapshotInfo | str) -> None:
        """Remove a snapshot; the ones taken after it stay."""
        self._loop.call(partial(self._sandbox.delete_snapshot, snapshot))

    def rollback(
        self, to: SnapshotInfo | Execution | str, *, paths: Sequence[str] | None = None, keep_current: bool = False
    ) -> RollbackResponse:
        """Take everything back: files, memory, processes. Arguments and errors as of `AsyncSandbox.rollback`."""
        return self._loop.call(partial(self._sandbox.rollback, to, paths=paths, keep_current=keep_current))

    def diff(
        self, before: SnapshotInfo | Execution | str, after: SnapshotInfo | Execution | str | None = None
    ) -> list[FileDiff]:
        """Files that differ between two points (as of `rollback`; None: now), text files with their lines."""
        return self._loop.call(partial(self._sandbox.diff, before, after))

    def branch(
        self, point: SnapshotInfo | Execution | str, *, timeout: float | None = DEFAULT_SANDBOX_TIMEOUT
    ) -> Sandbox:
        """A new sandbox that goes on from a point of this one (as of `rollback`), which is not touched."""
        child = self._loop.call(partial(self._sandbox.branch, point, timeout=timeout))
        return Sandbox(Loop(), child)

    def fork(self, count: int = 1, *, timeout: float | None = DEFAULT_SANDBOX_TIMEOUT) -> list[Sandbox]:
        """`count` new sandboxes that go on from this moment, each on its own. Errors as of `AsyncSandbox.fork`."""
        try:
            children = self._loop.call(partial(self._sandbox.fork, count, timeout=timeout))
        except ForkFailed as exc:
            exc.children = [Sandbox(Loop(), child) for child in exc.children]
            raise
        return [Sandbox(Loop(), child) for child in children]

    def pause(self) -> None:
        """Stop everything in it: no CPU is used, memory stays. Calls are refused until `resume`."""
        self._loop.call(self._sandbox.pause)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._loop.call(self._sandbox.resume)

    def set_timeout(self, seconds: float | None) -> None:
        """Kill the sandbox this many seconds from now; None: never."""
        self._loop.call(partial(self._sandbox.set_timeout, seconds))

    def get_info(self) -> SandboxInfo:
        return self._loop.call(self._sandbox.get_info)

    def get_metrics(self) -> SandboxMetrics:
        """Memory, CPU, disk and processes of now."""
        return self._loop.call(self._sandbox.get_metrics)

    def is_running(self) -> bool:
        return not self._closed and self._loop.call(self._sandbox.is_running)

    def disconnect(self) -> None:
        """Let go of a sandbox of a server without ending it: `connect` finds it again. One of this process goes on
        until it is killed."""
        if self._closed or not self._sandbox.is_remote:
            return
        self._closed = True
        try:
            self._loop.call(self._sandbox.disconnect)
        finally:
            self._loop.close()

    def kill(self) -> None:
        """End it and everything in it. Harmless when it has ended."""
        if self._closed:
            return
        self._closed = True
        try:
            self._loop.call(self._sandbox.kill)
        finally:
            self._loop.close()


class Files:
    """Files of a sandbox. Relative paths start in the work directory; errors are GuestFileError."""

    def __init__(self, loop: Loop, sandbox: AsyncSandbox) -> None:
        self._loop = loop
        self._files = sandbox.files

    @overload
    def read(self, path: str) -> str: ...
    @overload
    def read(self, path: str, format: Literal["text"]) -> str: ...
    @overload
    def read(self, path: str, format: Literal["bytes"]) -> bytes: ...
    @overload
    def read(self, path: str, format: Literal["stream"]) -> Iterator[bytes]: ...

    def read(
        self,
        path: str,
        format: Literal["text", "bytes", "stream"] = "text",  # noqa: A002 (the field's name for it)
    ) -> str | bytes | Iterator[bytes]:
        """Read a file as `text` (UTF-8, nonsense replaced), `bytes`, or a `stream` of pieces of at most 256 KiB."""
        if format == "stream":
            return self._stream(path)
        if format == "bytes":
            return self._loop.call(partial(self._files.read, path, "bytes"))
        return self._loop.call(partial(self._files.read, path, "text"))

    def _stream(self, path: str) -> Iterator[bytes]:
        async def start() -> AsyncIterator[bytes]:
            return await self._files.read(path, "stream")

        pieces = self._loop.call(start)

        async def next_piece() -> bytes | None:
            return await anext(pieces, None)

        while (piece := self._loop.call(next_piece)) is not None:
            yield piece

    def write(self, path: str, data: Data, *, mode: int | None = None) -> EntryInfo:
        """Write text, bytes, an open file or an iterable of bytes. The file appears when it is whole."""
        return self._loop.call(partial(self._files.write, path, data, mode=mode))

    def list(self, path: str = ".", *, depth: int = 1) -> list[EntryInfo]:
        """Entries of a directory, `depth` levels deep."""
        return self._loop.call(partial(self._files.list, path, depth=depth))

    def exists(self, path: str) -> bool:
        return self._loop.call(partial(self._files.exists, path))

    def get_info(self, path: str) -> EntryInfo:
        return self._loop.call(partial(self._files.get_info, path))

    def make_dir(self, path: str) -> bool:
        """Make a directory and its parents; False if it was there already."""
        return self._loop.call(partial(self._files.make_dir, path))

    def remove(self, path: str) -> None:
        """Remove a file, or a directory with all it holds."""
        self._loop.call(partial(self._files.remove, path))

    def rename(self, path: str, new_path: str) -> EntryInfo:
        return self._loop.call(partial(self._files.rename, path, new_path))


class CommandHandle:
    """A command that runs in the background."""

    def __init__(self, loop: Loop, handle: AsyncCommandHandle) -> None:
        self._loop = loop
        self._handle = handle
        self.pid = handle.pid

    def wait(self) -> CommandResult:
        """Wait for its end."""
        return self._loop.call(self._handle.wait)

    def kill(self) -> bool:
        """Kill it and its children; False if it had ended."""
        return self._loop.call(self._handle.kill)

    def send_stdin(self, data: str | bytes, *, eof: bool = False) -> None:
        """Write to its standard input; `eof` closes it afterwards."""
        self._loop.call(partial(self._handle.send_stdin, data, eof=eof))


class Commands:
    """Programs in a sandbox, run as its user. A string is run by `bash -c`, a list as it is."""

    def __init__(self, loop: Loop, sandbox: AsyncSandbox) -> None:
        self._loop = loop
        self._commands = sandbox.commands

    @overload
    def run(
        self, cmd: str | Sequence[str], *, background: Literal[False] = False, cwd: str | None = None,
        envs: Mapping[str, str] | None = None, timeout: float | None = DEFAULT_COMMAND_TIMEOUT,
        on_stdout: OnText | None = None, on_stderr: OnText | None = None,
    ) -> CommandResult: ...  # fmt: skip
    @overload
    def run(
        self, cmd: str | Sequence[str], *, background: Literal[True], cwd: str | None = None,
        envs: Mapping[str, str] | None = None, timeout: float | None = None,
        on_stdout: OnText | None = None, on_stderr: OnText | None = None,
    ) -> CommandHandle: ...  # fmt: skip

    def run(
        self,
        cmd: str | Sequence[str],
        *,
        background: bool = False,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        timeout: float | EllipsisType | None = ...,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
    ) -> CommandResult | CommandHandle:
        """Run a command. Arguments and errors as of `AsyncCommands.run`; the callbacks of a command in the background
        are called in the loop's thread."""
        options: dict[str, Any] = {"cwd": cwd, "envs": envs, "timeout": timeout}
        if background:

            async def start() -> AsyncCommandHandle:
                return await self._commands.run(
                    cmd, background=True, on_stdout=on_stdout, on_stderr=on_stderr, **options
                )

            return CommandHandle(self._loop, self._loop.call(start))
        relay = Relay()
        wait = partial(
            self._commands.run, cmd, on_stdout=relay.wrap(on_stdout), on_stderr=relay.wrap(on_stderr), **options
        )
        return self._loop.call(wait, relay)

    def list(self) -> list[ProcessInfo]:
        """Commands under way."""
        return self._loop.call(self._commands.list)

    def kill(self, pid: int) -> bool:
        """Kill a command; False if there is none of this pid."""
        return self._loop.call(partial(self._commands.kill, pid))

    def send_stdin(self, pid: int, data: str | bytes, *, eof: bool = False) -> None:
        """Write to a background command's standard input."""
        self._loop.call(partial(self._commands.send_stdin, pid, data, eof=eof))
