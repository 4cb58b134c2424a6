"""The synchronous twins of `emberbox.sdk.commands`, `emberbox.sdk.files`, `emberbox.sdk.sandbox`.

Generated from these by tools/generate_sync.py, and not to be edited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast, overload

from emberbox import models
from emberbox.errors import ForkFailed
from emberbox.sandbox.listeners import OnResult, OnText
from emberbox.sandbox.uploads import Data
from emberbox.sdk.commands import DEFAULT_COMMAND_TIMEOUT, AsyncCommandHandle, AsyncCommands
from emberbox.sdk.files import AsyncFiles
from emberbox.sdk.portal import CallbackRelay, PortalThread, Twin
from emberbox.sdk.sandbox import DEFAULT_SANDBOX_TIMEOUT, AsyncSandbox

if TYPE_CHECKING:
    from emberbox.config import Settings
    from emberbox.hooks.approval import Approver
    from emberbox.hooks.contract import Hook


class CommandHandle(Twin[AsyncCommandHandle]):
    """A command that runs in the background."""

    def __init__(self, portal: PortalThread, original: AsyncCommandHandle) -> None:
        super().__init__(portal, original)
        self.pid = original.pid

    def wait(self) -> models.CommandResult:
        """Wait for its end. Being cancelled here leaves the command running."""
        return self._portal.call(lambda: self._original.wait())

    def kill(self) -> bool:
        """Kill it and its children; False if it had ended."""
        return self._portal.call(lambda: self._original.kill())

    def send_stdin(self, data: str | bytes, *, eof: bool = False) -> None:
        """Write to its standard input; `eof` closes it afterwards."""
        self._portal.call(lambda: self._original.send_stdin(data, eof=eof))


class Commands(Twin[AsyncCommands]):
    """Programs in a sandbox, run as its user. A string is run by `bash -c`, a list as it is."""

    @overload
    def run(
        self,
        cmd: str | Sequence[str],
        *,
        background: Literal[False] = False,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        timeout: float | None = DEFAULT_COMMAND_TIMEOUT,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
    ) -> models.CommandResult: ...

    @overload
    def run(
        self,
        cmd: str | Sequence[str],
        *,
        background: Literal[True],
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        timeout: float | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
    ) -> CommandHandle: ...

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
    ) -> models.CommandResult | CommandHandle:
        """Run a command. A failing one does not raise: look at `exit_code`.

        Args:
            cmd: for bash, or a list of arguments.
            background: return a handle at once; only then can it be sent standard input.
            timeout: seconds; None: none (the sandbox's own time bounds it). If it is left out: 60, and none in the
                background.
            on_stdout, on_stderr: called as output arrives; those of a command in the background in the event loop's
                thread.

        Raises:
            VmNotAvailable: the sandbox is gone.
            ExecutionFailed: no such program or working directory.
        """
        relay = CallbackRelay(direct=background)
        result: models.CommandResult | AsyncCommandHandle = self._portal.call(
            lambda: cast(Any, self._original).run(
                cmd,
                background=background,
                cwd=cwd,
                envs=envs,
                timeout=timeout,
                on_stdout=relay.wrap(on_stdout),
                on_stderr=relay.wrap(on_stderr),
            ),
            relay,
        )
        return CommandHandle(self._portal, result) if isinstance(result, AsyncCommandHandle) else result

    def list(self) -> list[models.ProcessInfo]:
        """List the commands under way."""
        return self._portal.call(lambda: self._original.list())

    def kill(self, pid: int) -> bool:
        """Kill a command; False if there is none of this pid."""
        return self._portal.call(lambda: self._original.kill(pid))

    def send_stdin(self, pid: int, data: str | bytes, *, eof: bool = False) -> None:
        """Write to a background command's standard input."""
        self._portal.call(lambda: self._original.send_stdin(pid, data, eof=eof))


class Files(Twin[AsyncFiles]):
    """Files of a sandbox. Relative paths start in the work directory; errors are GuestFileError."""

    @overload
    def read(self, path: str) -> str: ...

    @overload
    def read(self, path: str, format: Literal["text"]) -> str: ...

    @overload
    def read(self, path: str, format: Literal["bytes"]) -> bytes: ...

    @overload
    def read(self, path: str, format: Literal["stream"]) -> Iterator[bytes]: ...

    def read(self, path: str, format: Literal["text", "bytes", "stream"] = "text") -> str | bytes | Iterator[bytes]:
        """Read a file as `text` (UTF-8, nonsense replaced), `bytes`, or a `stream` of pieces of at most 256 KiB."""
        result: str | bytes | AsyncIterator[bytes] = self._portal.call(
            lambda: cast(Any, self._original).read(path, format)
        )
        return self._portal.pieces(result) if isinstance(result, AsyncIterator) else result

    def write(self, path: str, data: Data, *, mode: int | None = None) -> models.EntryInfo:
        """Write text, bytes, an open file or an iterable of bytes. The file appears when it is whole."""
        return self._portal.call(lambda: self._original.write(path, data, mode=mode))

    def list(self, path: str = ".", *, depth: int = 1) -> list[models.EntryInfo]:
        """List the entries of a directory, `depth` levels deep."""
        return self._portal.call(lambda: self._original.list(path, depth=depth))

    def exists(self, path: str) -> bool:
        """Tell whether something has this name."""
        return self._portal.call(lambda: self._original.exists(path))

    def get_info(self, path: str) -> models.EntryInfo:
        """Describe one file or directory (of a symbolic link: the link itself)."""
        return self._portal.call(lambda: self._original.get_info(path))

    def make_dir(self, path: str) -> bool:
        """Make a directory and its parents; False if it was there already."""
        return self._portal.call(lambda: self._original.make_dir(path))

    def remove(self, path: str) -> None:
        """Remove a file, or a directory with all it holds."""
        self._portal.call(lambda: self._original.remove(path))

    def rename(self, path: str, new_path: str) -> models.EntryInfo:
        """Rename or move; an existing file of the new name is replaced."""
        return self._portal.call(lambda: self._original.rename(path, new_path))


class Sandbox(Twin[AsyncSandbox]):
    """An isolated machine to run code in. Make one with `Sandbox.create()`; use it as a context
    manager, or `sandbox.kill()` it.

    >>> with Sandbox.create() as sandbox:              # doctest: +SKIP
    ...     sandbox.run_code("x = 41")
    ...     execution = sandbox.run_code("x + 1")
    ...     execution.text
    '42'

    Attributes:
        files: read, write, list, … (see `Files`).
        commands: run programs (see `Commands`).
    """

    def __init__(self, portal: PortalThread, original: AsyncSandbox) -> None:
        super().__init__(portal, original)
        self.files = Files(portal, original.files)
        self.commands = Commands(portal, original.commands)

    @classmethod
    def create(
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
            settings: make an engine of this sandbox's own with these settings.
            base_url: make it on the server of this address (`emberbox serve`), which has its own settings and hooks.
            token: of that server; the variable EMBERBOX_TOKEN unless given.

        Raises:
            VmNotAvailable: no back end is usable, or the machine did not start (`emberbox doctor` explains).
            ApiError, VmConnectionError: the server refuses, or cannot be reached.
            ImageError: the template's image could not be built.
            SnapshotNotFound, SnapshotFailed: there is no such snapshot, or it cannot be used here.
        """
        portal = PortalThread()
        return cls(
            portal,
            portal.first(
                lambda: AsyncSandbox.create(
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
            ),
        )

    @classmethod
    def connect(cls, sandbox_id: str, *, base_url: str | None = None, token: str | None = None) -> Self:
        """Another handle on a sandbox that lives, by its id. One that was paused, or suspended by a durable engine,
        goes on.

        Args:
            sandbox_id: of the sandbox.
            base_url, token: look on this server.

        Raises:
            SessionNotFound: there is none.
        """
        portal = PortalThread()
        return cls(portal, portal.first(lambda: AsyncSandbox.connect(sandbox_id, base_url=base_url, token=token)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def sandbox_id(self) -> str:
        return self._original.sandbox_id

    @property
    def backend(self) -> str:
        """Which isolation it runs in, such as `gvisor`."""
        return self._original.backend

    def run_code(
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
            on_stdout, on_stderr, on_result: called as output arrives, in the caller's thread.
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
        relay = CallbackRelay()
        return self._portal.call(
            lambda: self._original.run_code(
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
            ),
            relay,
        )

    def create_code_context(
        self, language: str = "python", *, cwd: str | None = None, envs: Mapping[str, str] | None = None
    ) -> models.ContextInfo:
        """A new interpreter beside the others, with its own variables. Not for rust, which keeps none."""
        return self._portal.call(lambda: self._original.create_code_context(language, cwd=cwd, envs=envs))

    def list_code_contexts(self) -> list[models.ContextInfo]:
        return self._portal.call(lambda: self._original.list_code_contexts())

    def restart_code_context(self, context: models.ContextInfo | str) -> None:
        """Start its interpreter anew: variables are gone, files stay. Running code is killed."""
        self._portal.call(lambda: self._original.restart_code_context(context))

    def remove_code_context(self, context: models.ContextInfo | str) -> None:
        """End its interpreter and whatever it runs."""
        self._portal.call(lambda: self._original.remove_code_context(context))

    def interrupt(self, context: models.ContextInfo | str | None = None) -> int:
        """Interrupt running code as Ctrl-C would, in one context or in all. Call it from another thread than the one that
        waits for the code. Return how many executions it reached."""
        return self._portal.call(lambda: self._original.interrupt(context))

    def history(
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
        return self._portal.call_anew(
            lambda: self._original.history(limit=limit, failures_only=failures_only, since=since, until=until)
        )

    def snapshot(self, name: str | None = None, *, keep: bool = False, description: str = "") -> models.SnapshotInfo:
        """Keep the sandbox as it is now: files, variables, running commands. It goes on; snapshots end with it.

        Args:
            name: a word for it, which `rollback` and the others take as well as its id.
            keep: a copy stays when the sandbox and this process have ended: `create(snapshot=…)` goes on from it.
            description: what it is for, to be shown in lists; at most 2,000 characters on a server.

        Raises:
            SnapshotFailed: code is running, there are too many, or the disk is full.
        """
        return self._portal.call(lambda: self._original.snapshot(name, keep=keep, description=description))

    def list_snapshots(self) -> list[models.SnapshotInfo]:
        """Snapshots of this sandbox, oldest first; `parent_id` makes them a tree."""
        return self._portal.call(lambda: self._original.list_snapshots())

    def delete_snapshot(self, snapshot: models.SnapshotInfo | str) -> None:
        """Remove a snapshot; the ones taken after it stay."""
        self._portal.call(lambda: self._original.delete_snapshot(snapshot))

    def rollback(
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
        return self._portal.call(lambda: self._original.rollback(to, paths=paths, keep_current=keep_current))

    def diff(
        self,
        before: models.SnapshotInfo | models.Execution | str,
        after: models.SnapshotInfo | models.Execution | str | None = None,
    ) -> list[models.FileDiff]:
        """Files that differ between two points (as of `rollback`; None: now), text files with their lines."""
        return self._portal.call(lambda: self._original.diff(before, after))

    def branch(
        self, point: models.SnapshotInfo | models.Execution | str, *, timeout: float | None = DEFAULT_SANDBOX_TIMEOUT
    ) -> Sandbox:
        """A new sandbox that goes on from a point of this one (as of `rollback`), which is not touched."""
        result: AsyncSandbox = self._portal.call(lambda: self._original.branch(point, timeout=timeout))
        return Sandbox(PortalThread(), result)

    def fork(self, count: int = 1, *, timeout: float | None = DEFAULT_SANDBOX_TIMEOUT) -> list[Sandbox]:
        """`count` new sandboxes that go on from this moment, each on its own. Random numbers differ in each.

        Raises:
            SnapshotFailed: code is running in the sandbox.
            ForkFailed: some did not start; its `children` are the sandboxes that did.
        """
        try:
            result: list[AsyncSandbox] = self._portal.call(lambda: self._original.fork(count, timeout=timeout))
            return [Sandbox(PortalThread(), one) for one in result]
        except ForkFailed as exc:
            exc.children = [Sandbox(PortalThread(), child) for child in exc.children]
            raise

    def pause(self) -> None:
        """Stop everything in it: no CPU is used, memory stays. Calls are refused until `resume`."""
        self._portal.call(lambda: self._original.pause())

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._portal.call(lambda: self._original.resume())

    def set_timeout(self, seconds: float | None) -> None:
        """Kill the sandbox this many seconds from now; None: never."""
        self._portal.call(lambda: self._original.set_timeout(seconds))

    def get_info(self) -> models.SandboxInfo:
        return self._portal.call(lambda: self._original.get_info())

    def get_metrics(self) -> models.SandboxMetrics:
        """Memory, CPU, disk and processes of now."""
        return self._portal.call(lambda: self._original.get_metrics())

    def is_running(self) -> bool:
        if self._portal.ended:
            return False
        return self._portal.call(lambda: self._original.is_running())

    def kill(self) -> None:
        """End it and everything in it. Harmless when it has ended."""
        self._portal.finish(lambda: self._original.kill())

    @property
    def is_remote(self) -> bool:
        """It is one of a server."""
        return self._original.is_remote

    def disconnect(self) -> None:
        """Let go of a sandbox of a server without ending it: `connect` finds it again. One of this process goes on
        until it is killed."""
        if not self.is_remote:
            return
        self._portal.finish(lambda: self._original.disconnect())
