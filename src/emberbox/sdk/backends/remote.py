"""Sandboxes of a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Self
from urllib.parse import quote

from emberbox._text import check_path, encoded
from emberbox.errors import SessionNotFound, ValidationFailed, VmConnectionError
from emberbox.models import (
    CommandHistoryEntry,
    CommandResult,
    ContextInfo,
    EntryInfo,
    Execution,
    FileDiff,
    ProcessInfo,
    RollbackRequest,
    RollbackResponse,
    SandboxInfo,
    SandboxMetrics,
    SnapshotInfo,
)
from emberbox.models.base import name_to_json
from emberbox.models.service import (
    CommandRequest,
    ContextCreateRequest,
    ContextList,
    DiffRequest,
    DiffResponse,
    EntryList,
    ForkRequest,
    ForkResponse,
    InterruptRequest,
    InterruptResponse,
    KeepRequest,
    KillResponse,
    MadeDir,
    PathRequest,
    PointRequest,
    ProcessList,
    RenameRequest,
    RunCodeRequest,
    SnapshotList,
    StdinRequest,
    TimeoutRequest,
    VmCreateRequest,
    VmInstance,
)
from emberbox.sandbox.listeners import Listeners, RunOptions
from emberbox.sandbox.uploads import MOST_AT_ONCE, Data, pieces_of, too_large
from emberbox.sdk.backends.base import CreateOptions
from emberbox.sdk.commands import AsyncCommands
from emberbox.sdk.deadlines import EXECUTION_SECONDS
from emberbox.sdk.files import AsyncFiles
from emberbox.sdk.transport import HttpServer, base64_of, followed, made, parsed


class RemoteFiles(AsyncFiles):
    """Files of a sandbox behind a server."""

    def __init__(self, server: HttpServer, path: str) -> None:
        self._server = server
        self._path = path + "/files"

    async def _read_stream(self, path: str) -> AsyncIterator[bytes]:
        async with self._server.download(self._path, path=_in_query(path)) as pieces:
            async for piece in pieces:
                yield piece

    async def _read_bytes(self, path: str) -> bytes:
        pieces: list[bytes] = []
        size = 0
        async for piece in self._read_stream(path):
            size += len(piece)
            if size > MOST_AT_ONCE:
                raise too_large(path)
            pieces.append(piece)
        return b"".join(pieces)

    async def write(self, path: str, data: Data, *, mode: int | None = None) -> EntryInfo:
        """Write text, bytes, an open file or an iterable of bytes. The file appears when it is whole."""
        body: bytes | AsyncIterator[bytes]
        if isinstance(data, str):
            body = encoded("data", data)
        else:
            body = bytes(data) if isinstance(data, bytes | bytearray | memoryview) else pieces_of(data, _UPLOAD_PIECE)
        answer = await self._server.request(
            "PUT", self._path, params={"path": _in_query(path), "mode": mode}, content=body
        )
        return parsed(EntryInfo, answer)

    async def list(self, path: str = ".", *, depth: int = 1) -> list[EntryInfo]:
        """List the entries of a directory, `depth` levels deep."""
        return (await self._server.get(EntryList, f"{self._path}/list", path=_in_query(path), depth=depth)).entries

    async def get_info(self, path: str) -> EntryInfo:
        """Describe one file or directory (of a symbolic link: the link itself)."""
        return await self._server.get(EntryInfo, f"{self._path}/info", path=_in_query(path))

    async def make_dir(self, path: str) -> bool:
        """Make a directory and its parents; False if it was there already."""
        return (await self._server.post(MadeDir, f"{self._path}/mkdir", PathRequest(path=check_path(path)))).created

    async def remove(self, path: str) -> None:
        """Remove a file, or a directory with all it holds."""
        await self._server.request("DELETE", self._path, params={"path": _in_query(path)})

    async def rename(self, path: str, new_path: str) -> EntryInfo:
        """Rename or move; an existing file of the new name is replaced."""
        request = RenameRequest(path=check_path(path), new_path=check_path(new_path))
        return await self._server.post(EntryInfo, f"{self._path}/rename", request)


class RemoteCommand:
    """A command in the background of a sandbox behind a server. What it prints comes by a stream of its own."""

    def __init__(self, commands: RemoteCommands, pid: int, end: asyncio.Task[CommandResult]) -> None:
        self._commands = commands
        self._end = end
        self.pid = pid

    async def wait(self) -> CommandResult:
        """Wait for its end."""
        return await asyncio.shield(self._end)

    async def kill(self) -> bool:
        """Kill it; False if it had ended."""
        return not self._end.done() and await self._commands.kill(self.pid)

    async def send_stdin(self, data: str | bytes, *, eof: bool = False) -> None:
        """Write to its standard input."""
        await self._commands.send_stdin(self.pid, data, eof=eof)


class RemoteCommands(AsyncCommands):
    """Programs of a sandbox behind a server."""

    def __init__(self, server: HttpServer, path: str) -> None:
        self._server = server
        self._path = path + "/commands"
        self._following: set[asyncio.Task[CommandResult]] = set()

    async def _run(
        self, argv: Sequence[str], cwd: str | None, envs: Mapping[str, str], timeout: float | None, listeners: Listeners
    ) -> CommandResult:
        request = CommandRequest(cmd=list(argv), cwd=cwd, envs=dict(envs), timeout_seconds=timeout)
        async with self._server.events(self._path, request) as events:
            return await followed(CommandResult, events, listeners)

    async def _start(
        self, argv: Sequence[str], cwd: str | None, envs: Mapping[str, str], timeout: float | None, listeners: Listeners
    ) -> RemoteCommand:
        request = CommandRequest(cmd=list(argv), cwd=cwd, envs=dict(envs), timeout_seconds=timeout, background=True)
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._follow(request, listeners, started))
        self._following.add(task)
        task.add_done_callback(self._following.discard)
        both: list[asyncio.Future[Any]] = [started, task]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            task.cancel()
            raise
        if not started.done():
            started.cancel()
            await task  # raises why it did not start
            raise VmConnectionError("The server did not say that the command began.")
        return RemoteCommand(self, started.result(), task)

    async def _follow(
        self, request: CommandRequest, listeners: Listeners, started: asyncio.Future[int]
    ) -> CommandResult:
        async with self._server.events(self._path, request) as events:
            return await followed(CommandResult, events, listeners, started)

    async def list(self) -> list[ProcessInfo]:
        """List the commands under way."""
        return (await self._server.get(ProcessList, self._path)).processes

    async def kill(self, pid: int) -> bool:
        """Kill a command; False if there is none of this pid."""
        return parsed(KillResponse, await self._server.request("DELETE", f"{self._path}/{int(pid)}")).killed

    async def send_stdin(self, pid: int, data: str | bytes, *, eof: bool = False) -> None:
        """Write to a background command's standard input."""
        data = encoded("data", data) if isinstance(data, str) else data
        pieces = [data[at : at + _STDIN_PIECE] for at in range(0, len(data), _STDIN_PIECE)] or [b""]
        for number, piece in enumerate(pieces, 1):
            body = StdinRequest(data=base64_of(piece), eof=eof and number == len(pieces))
            await self._server.request("POST", f"{self._path}/{int(pid)}/stdin", json=body, seconds=EXECUTION_SECONDS)

    async def leave(self) -> None:
        """Follow no command any more."""
        for task in list(self._following):
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)


def _in_query(path: str) -> str:
    """A path as the server takes it in a query."""
    return name_to_json(check_path(path))


_STDIN_PIECE = 1 << 20
_UPLOAD_PIECE = 256 << 10


class RemoteBackend:
    """A sandbox behind a server."""

    remote = True

    def __init__(self, server: HttpServer, vm_id: str, isolation: str, family: deque[str]) -> None:
        self._server = server
        self._path = f"/api/vms/{quote(vm_id, safe='')}"
        self._family = family
        """Sandboxes that share the connections; the last one that is killed closes them."""
        family.append(vm_id)
        self.id = vm_id
        self.isolation = isolation
        self.files = RemoteFiles(server, self._path)
        self.commands = RemoteCommands(server, self._path)

    @classmethod
    async def create(cls, base_url: str, token: str | None, options: CreateOptions) -> Self:
        """Start one; see `AsyncSandbox.create`."""
        timeout = options.timeout
        if timeout is not None and timeout <= 0:
            raise ValidationFailed(f"A sandbox's timeout must be positive, not {timeout:g}.", remediation="Use kill().")
        request = made(
            VmCreateRequest,
            vm_type=options.template,
            agent_id=options.agent_id,
            envs=dict(options.envs or {}),
            metadata=dict(options.metadata or {}),
            limits=options.limits,
            timeout_seconds=timeout,
            snapshot_id=options.snapshot,
        )
        server = HttpServer(base_url, token)
        try:
            vm = await server.post(VmInstance, "/api/vms", request, seconds=EXECUTION_SECONDS)
        except BaseException:
            await server.aclose()
            raise
        return cls(server, vm.id, vm.backend, deque())

    @classmethod
    async def connect(cls, base_url: str, token: str | None, sandbox_id: str) -> Self:
        """Another handle on one that lives; see `AsyncSandbox.connect`."""
        server = HttpServer(base_url, token)
        try:
            sandbox = cls(server, sandbox_id, "", deque())
            await sandbox.resume()
            sandbox.isolation = (await sandbox.info()).backend
        except BaseException:
            await server.aclose()
            raise
        return sandbox

    # --- code -----------------------------------------------------------------------------------------------------

    def runnable_language(self, name: str) -> str:
        from emberbox.languages import get_language

        return get_language(name).config.name

    async def run_code(
        self, language: str, code: str, options: RunOptions, requirements: Sequence[str], listeners: Listeners
    ) -> Execution:
        if options.timeout is not None and options.timeout <= 0:
            raise ValidationFailed(f"A timeout of {options.timeout:g} s is not possible.", remediation="Give another.")
        request = RunCodeRequest(
            code=code,
            language=language,
            context_id=options.context,
            cwd=options.cwd,
            envs=dict(options.env),
            args=list(options.args),
            stdin=base64_of(options.stdin),
            timeout_seconds=options.timeout,
            requirements=list(requirements),
        )
        if listeners == Listeners():
            seconds = EXECUTION_SECONDS if options.timeout is None else options.timeout + EXECUTION_SECONDS
            return await self._server.post(Execution, f"{self._path}/run", request, seconds=seconds)
        async with self._server.events(f"{self._path}/run?stream=true", request) as events:
            return await followed(Execution, events, listeners)

    async def create_context(self, language: str, cwd: str | None, envs: Mapping[str, str]) -> ContextInfo:
        request = ContextCreateRequest(language=language, cwd=cwd, envs=dict(envs))
        return await self._server.post(ContextInfo, f"{self._path}/contexts", request)

    async def list_contexts(self) -> list[ContextInfo]:
        return (await self._server.get(ContextList, f"{self._path}/contexts")).contexts

    async def restart_context(self, context_id: str) -> None:
        await self._server.request("POST", f"{self._path}/contexts/{quote(context_id, safe='')}/restart")

    async def remove_context(self, context_id: str) -> None:
        await self._server.request("DELETE", f"{self._path}/contexts/{quote(context_id, safe='')}")

    async def interrupt(self, context_id: str | None) -> int:
        request = InterruptRequest(context_id=context_id)
        return (await self._server.post(InterruptResponse, f"{self._path}/interrupt", request)).reached

    async def history(
        self, limit: int, *, failures_only: bool, since: datetime | None, until: datetime | None
    ) -> list[CommandHistoryEntry]:
        answer = await self._server.history(
            f"{self._path}/history",
            limit,
            failures_only=failures_only,
            start_date=None if since is None else since.astimezone().isoformat(),
            end_date=None if until is None else until.astimezone().isoformat(),
        )
        return answer.history

    # --- undo -----------------------------------------------------------------------------------------------------

    async def snapshot(self, name: str | None, *, keep: bool, description: str) -> SnapshotInfo:
        request = KeepRequest(name=name, keep=keep, description=description)
        return await self._server.post(SnapshotInfo, f"{self._path}/checkpoint", request, seconds=EXECUTION_SECONDS)

    async def list_snapshots(self) -> list[SnapshotInfo]:
        return (await self._server.get(SnapshotList, f"{self._path}/snapshots")).snapshots

    async def delete_snapshot(self, snapshot: str) -> None:
        await self._server.request("DELETE", f"{self._path}/snapshots/{quote(snapshot, safe='')}")

    async def rollback(self, to: str, *, paths: Sequence[str] | None, keep_current: bool) -> RollbackResponse:
        if isinstance(paths, str) or (paths is not None and not paths):
            raise ValidationFailed("paths must be a list of at least one path.", remediation="Leave it out for all.")
        named = None if paths is None else [check_path(path) for path in paths]
        request = RollbackRequest(target=to, paths=named, create_pre_rollback_snapshot=keep_current)
        return await self._server.post(RollbackResponse, f"{self._path}/rollback", request, seconds=EXECUTION_SECONDS)

    async def diff(self, before: str, after: str | None) -> list[FileDiff]:
        request = DiffRequest(before=before, after=after)
        answer = await self._server.post(DiffResponse, f"{self._path}/diff", request, seconds=EXECUTION_SECONDS)
        return answer.files

    async def branch(self, point: str, timeout: float | None) -> RemoteBackend:
        request = PointRequest(point=point, timeout_seconds=timeout)
        vm = await self._server.post(VmInstance, f"{self._path}/branch", _explicit(request), seconds=EXECUTION_SECONDS)
        return self._beside(vm)

    async def fork(self, count: int, timeout: float | None) -> list[RemoteBackend]:
        if count < 1:
            raise ValidationFailed(f"count must be at least 1, not {count}.", remediation="Leave it out for one fork.")
        request = ForkRequest(count=count, timeout_seconds=timeout)
        answer = self._server.post(ForkResponse, f"{self._path}/fork", _explicit(request), seconds=EXECUTION_SECONDS)
        made = await answer
        return [self._beside(vm) for vm in made.vms]

    def _beside(self, vm: VmInstance) -> RemoteBackend:
        return RemoteBackend(self._server, vm.id, vm.backend, self._family)

    # --- life -----------------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        await self._server.request("POST", f"{self._path}/pause")

    async def resume(self) -> None:
        await self._server.request("POST", f"{self._path}/resume")

    async def set_timeout(self, seconds: float | None) -> None:
        await self._server.request("POST", f"{self._path}/timeout", json=_explicit(TimeoutRequest(seconds=seconds)))

    async def info(self) -> SandboxInfo:
        return await self._server.get(SandboxInfo, f"{self._path}/info")

    async def metrics(self) -> SandboxMetrics:
        return await self._server.get(SandboxMetrics, f"{self._path}/metrics")

    async def is_running(self) -> bool:
        with contextlib.suppress(SessionNotFound):
            return (await self.info()).state == "running"
        return False

    async def kill(self) -> None:
        if self.id not in self._family:
            return
        try:
            with contextlib.suppress(SessionNotFound):
                await self._server.request("DELETE", self._path)
        finally:
            await self._leave(self._server.finish)  # what ran in it is answered now: that it was killed

    async def disconnect(self) -> None:
        """Let go of it; the last one that shares the connections closes them."""
        await self._leave(self._server.aclose)

    async def _leave(self, close: Callable[[], Awaitable[None]]) -> None:
        if self.id in self._family:
            await self.commands.leave()
            self._family.remove(self.id)
            if not self._family:
                await close()


def _explicit(model: Any) -> Any:
    """Where null is not the default, it has to be said."""
    return model.model_dump(mode="json")
