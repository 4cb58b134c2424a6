"""One sandbox in use: a machine, its agent, and what may be asked of them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from emberbox.errors import (
    ExecutionFailed,
    ExecutionTimeout,
    RollbackFailed,
    SessionNotFound,
    SnapshotFailed,
    ValidationFailed,
    VmConnectionError,
    VmNotAvailable,
)
from emberbox.guest.protocol import PROTOCOL_VERSION, Header, ProtocolError
from emberbox.images.store import Image
from emberbox.machines.base import Death, Machine, MachineStats, Snapshot
from emberbox.machines.channel import Channel, Stream
from emberbox.models import (
    CommandResult,
    ContextInfo,
    Execution,
    Language,
    MachineLimits,
    ProcessInfo,
    Result,
    SandboxInfo,
    SandboxMetrics,
    TerminationReason,
)
from emberbox.sandbox.files import GuestFiles
from emberbox.sandbox.outcome import ExecutionCollector, OutputCollector

OnText = Callable[[str], object]
OnResult = Callable[[Result], object]

GUEST_HOME = "/home/user"
GUEST_PATH = "/home/user/.local/bin:/usr/local/bin:/usr/bin:/bin"
_UID = 1000
_CALL_TIMEOUT = 15.0
_GRACE_SECONDS = 10.0
"""Beyond a time-out that the guest enforces, the host waits this long for its answer; then it kills the machine."""
_ADDRESS_SPACE_SHARE = 0.85
"""Of the machine's memory that one process may map: a large allocation then fails in the program that made it, with an
error of its own, before the kernel has to kill the machine."""
_STDIN_CHUNK = 1 << 18
_MAX_CODE_BYTES = 4 << 20
_RESULTS_FACTOR = 8
"""Rich results (figures, tables) may be this many times larger than a stream's cap."""


class SessionState(StrEnum):
    STARTING = "starting"
    READY = "running"
    PAUSED = "paused"
    CLOSED = "killed"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run one piece of code; see `Sandbox.run_code`."""

    context: str | None = None
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    args: Sequence[str] = ()
    stdin: bytes = b""
    timeout: float | None = None
    output_bytes: int | None = None
    execution_id: str | None = None


@dataclass(frozen=True, slots=True)
class Listeners:
    """Callbacks of a running execution; each may be a coroutine function."""

    on_stdout: OnText | None = None
    on_stderr: OnText | None = None
    on_result: OnResult | None = None

    async def text(self, stream: str, text: str) -> None:
        await _call(self.on_stdout if stream == "stdout" else self.on_stderr, text)

    async def result(self, result: Result) -> None:
        await _call(self.on_result, result)


async def _call(listener: Callable[[Any], object] | None, value: object) -> None:
    if listener is not None:
        outcome = listener(value)
        if inspect.isawaitable(outcome):
            await outcome


class Session:
    """A sandbox. Made by `SandboxManager.create`."""

    def __init__(
        self,
        machine: Machine,
        image: Image,
        limits: MachineLimits,
        *,
        envs: Mapping[str, str],
        metadata: Mapping[str, str],
        on_closed: Callable[[str], None],
    ) -> None:
        self.id = f"sb-{secrets.token_hex(6)}"
        self.machine = machine
        self.image = image
        self.limits = limits
        self.envs = dict(envs)
        self.metadata = dict(metadata)
        self.state = SessionState.STARTING
        self.started_at = datetime.now(UTC)
        self.end_at: datetime | None = None
        self.files = GuestFiles(self)
        self._on_closed = on_closed
        self._expiry: asyncio.TimerHandle | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self._death: Death | None = None
        self._running: dict[int, str | None] = {}
        self._changing = asyncio.Lock()
        """Held while the machine is copied, replaced, stopped or let go on."""

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self, deadline: float) -> None:
        """Wait for the agent and configure it.

        Raises:
            ExecutionTimeout: no hello within `deadline` seconds.
            VmNotAvailable: the machine died, or its agent speaks another protocol.
        """
        try:
            async with asyncio.timeout(deadline):
                hello = await asyncio.shield(self.machine.channel.hello)
                if hello.get("protocol") != PROTOCOL_VERSION:
                    raise VmNotAvailable("The guest agent speaks another protocol version.", remediation=_REBUILD)
                await self.machine.channel.call("configure", timeout=deadline, **self._configuration())
                if self.image.manifest.has_skeleton:
                    await self._copy_skeleton()
        except TimeoutError as exc:
            raise ExecutionTimeout(
                f"The agent of {self.id} did not answer within {deadline:g} s.", retryable=True
            ) from exc
        except VmConnectionError as exc:
            raise await self.died_early() from exc
        self._ready()

    async def died_early(self) -> VmNotAvailable:
        """The error for a machine whose channel ended before it was ready."""
        death = await self.machine.wait()
        return VmNotAvailable(f"Sandbox {self.id} died while it started: {death.message}.", retryable=True)

    async def start_copy(self, deadline: float) -> None:
        """Wake the agent of a machine that was forked from a snapshot.

        Raises:
            VmNotAvailable, ExecutionTimeout: it does not go on.
        """
        await self._wake_copy(self.machine, deadline, self.envs)
        self._ready()

    async def add_environment(self) -> None:
        """Give a machine that was booted what a copy gets when it wakes: this sandbox's own environment."""
        await self._wake_copy(self.machine, _CALL_TIMEOUT, self.envs)

    @staticmethod
    async def _wake_copy(machine: Machine, deadline: float, envs: Mapping[str, str] | None = None) -> None:
        try:
            await machine.channel.call("wake", timeout=deadline, fork=True, env=dict(envs or {}))
        except VmConnectionError as exc:
            death = await machine.wait()
            raise VmNotAvailable(f"A copy of a sandbox died at its start: {death.message}.", retryable=True) from exc

    def _ready(self) -> None:
        self.state = SessionState.READY
        self._spawn(self._watch(self.machine))

    def _configuration(self) -> dict[str, Any]:
        template, limits = self.image.template, self.limits
        return {
            "uid": _UID,
            "gid": _UID,
            "home": GUEST_HOME,
            "workdir": template.workdir,
            "hostname": "emberbox",
            "env": {"PATH": GUEST_PATH, "MPLBACKEND": "Agg", **template.env},
            "languages": template.languages,
            "warm": template.warm,
            "warmup": template.warmup,
            "nproc": limits.processes,
            "nofile": limits.open_files,
            "address_space": int((limits.memory_mb << 20) * _ADDRESS_SPACE_SHARE),
            "python_path": [],
        }

    async def _copy_skeleton(self) -> None:
        copied = await self.exec(["cp", "-R", "/opt/emberbox/skel/.", GUEST_HOME], timeout=60)
        if copied.exit_code != 0:
            raise VmNotAvailable(f"Cannot copy the template's files: {copied.stderr[:500]}", remediation=_REBUILD)

    async def _watch(self, machine: Machine) -> None:
        death = await machine.wait()
        if machine is self.machine:  # and not one that a rollback has replaced
            self._death = death
            self._closed()

    def set_timeout(self, seconds: float | None) -> None:
        """Kill the sandbox after this many seconds from now; None: never."""
        if seconds is not None and seconds <= 0:
            raise ValidationFailed(f"A sandbox's timeout must be positive, not {seconds:g}.", remediation="Use kill().")
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = self.end_at = None
        if seconds is not None:
            self.end_at = datetime.now(UTC) + timedelta(seconds=seconds)
            death = Death(TerminationReason.TIMEOUT, f"the sandbox's own time of {seconds:g} s was over")
            self._expiry = asyncio.get_running_loop().call_later(seconds, lambda: self._spawn(self.kill(death)))

    async def kill(self, death: Death | None = None) -> None:
        """End it; harmless when it has ended."""
        self._death = await self.machine.kill(death)
        self._closed()

    def _closed(self) -> None:
        if self.state is not SessionState.CLOSED:
            self.state = SessionState.CLOSED
            if self._expiry is not None:
                self._expiry.cancel()
            self._on_closed(self.id)

    def _spawn(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def open_channel(self) -> Channel:
        """The channel of a live sandbox."""
        if self.state is SessionState.PAUSED:
            raise ExecutionFailed(f"Sandbox {self.id} is paused.", remediation="Call resume() first.", retryable=True)
        if self.state is SessionState.CLOSED or self.machine.channel.closed is not None:
            why = f": {self._death.message}" if self._death else ""
            raise VmNotAvailable(f"Sandbox {self.id} is gone{why}.", remediation="Create a new one.", retryable=True)
        return self.machine.channel

    # --- undo -----------------------------------------------------------------------------------------------------

    async def checkpoint(self, directory: Path) -> Snapshot:
        """Write the machine into `directory`, between executions. Commands in the background go on.

        A caller who is cancelled waits for the end of it: the agent must not be left quiet.

        Raises:
            SnapshotFailed: code is running, or the machine or the disk refused.
        """
        work = asyncio.ensure_future(self._checkpoint(directory))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            raise

    async def _checkpoint(self, directory: Path) -> Snapshot:
        async with self._changing:
            channel = self.open_channel()
            with channel.held():
                try:
                    await channel.call("quiesce", timeout=_CALL_TIMEOUT, urgent=True)
                except ExecutionFailed as exc:
                    raise SnapshotFailed(f"Sandbox {self.id} cannot be copied now: {exc.message}.") from exc
                last = channel.last_request
                try:
                    size = await self.machine.checkpoint(directory)
                finally:
                    if channel.closed is None:
                        await channel.call("wake", timeout=_CALL_TIMEOUT, urgent=True, fork=False)
        return Snapshot(directory, self.image, self.limits, last, size)

    async def replace_machine(self, snapshot: Snapshot, fork: Callable[[Snapshot], Awaitable[Machine]]) -> None:
        """Go on from a snapshot: a fork of it takes the machine's place, then the old one is killed.

        Raises:
            RollbackFailed: no fork came up; the sandbox is as it was.
        """
        async with self._changing:
            try:
                machine = await fork(snapshot)
                try:
                    await self._wake_copy(machine, _CALL_TIMEOUT)
                except BaseException:
                    await asyncio.shield(asyncio.ensure_future(machine.kill()))
                    raise
            except (VmNotAvailable, ExecutionTimeout) as exc:
                raise RollbackFailed(
                    f"Sandbox {self.id} could not be rolled back: {exc.message}", remediation=exc.remediation
                ) from exc
            old, self.machine = self.machine, machine
            self._ready()
            await asyncio.shield(
                asyncio.ensure_future(old.kill(Death(TerminationReason.KILLED, "the sandbox was rolled back")))
            )

    async def pause(self) -> None:
        """Stop everything in it; it keeps its memory and uses no CPU. Harmless when it is paused."""
        async with self._changing:
            if self.state is not SessionState.PAUSED:
                self.open_channel()
                self.state = SessionState.PAUSED
                await self.machine.pause()

    async def resume(self) -> None:
        """Let it go on. Harmless when it runs."""
        async with self._changing:
            if self.state is SessionState.PAUSED:
                await self.machine.resume()
                self.state = SessionState.READY

    # --- code -----------------------------------------------------------------------------------------------------

    async def run_code(self, language: Language, code: str, options: RunOptions, listeners: Listeners) -> Execution:
        """Run code in a context and collect what comes.

        Raises:
            VmNotAvailable: the sandbox was gone before the code began.
            SessionNotFound, ExecutionFailed: unknown or busy context, working directory that is not there.
        """
        channel, machine = self.open_channel(), self.machine
        source = code.encode("utf-8", "replace")
        if len(source) + len(options.stdin) > _MAX_CODE_BYTES:
            raise ValidationFailed(
                f"Code and standard input of {len(source) + len(options.stdin)} bytes are too long at once.",
                remediation=f"Write large input to a file with files.write; the limit is {_MAX_CODE_BYTES} bytes.",
            )
        output = options.output_bytes or self.limits.output_bytes
        collector = ExecutionCollector(
            output_limit=output,
            results_limit=output * _RESULTS_FACTOR,
            execution_id=options.execution_id or f"ex-{secrets.token_hex(8)}",
            sandbox_id=self.id,
            backend=machine.backend,
            language=language,
        )
        fields = {
            "language": language,
            "context": options.context,
            "cwd": options.cwd,
            "env": dict(options.env),
            "args": list(options.args),
            "timeout": options.timeout,
            "stdin_size": len(options.stdin),
            "stdout_limit": output,
            "stderr_limit": output,
            "results_limit": output * _RESULTS_FACTOR,
        }
        before = machine.stats(reset_peak=True)
        try:
            async with self._request(channel, "run_code", source + options.stdin, options.timeout, fields) as stream:
                async for header, payload in stream:
                    if header["ev"] == "done":
                        await _flush(collector, listeners)
                        return _finished(machine, collector.execution(header), before)
                    await _take(collector, header, payload, listeners)
                    self._running[stream.number] = collector.context
        except VmConnectionError:
            death = await self._cause_of_death(machine)
            await _flush(collector, listeners)
            return collector.dead(death.reason, death.message)
        raise ExecutionFailed("The machine's answer had no end.")

    async def exec(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        listeners: Listeners | None = None,
        stdin: bool = False,
        on_start: Callable[[int, int], None] | None = None,
    ) -> CommandResult:
        """Run a program. `on_start` gets the request's number (for `signal` and `send_stdin`) and the pid."""
        channel, machine, listeners = self.open_channel(), self.machine, listeners or Listeners()
        collector = OutputCollector(output_limit=self.limits.output_bytes)
        fields = {
            "argv": list(argv),
            "cwd": cwd,
            "env": dict(env or {}),
            "stdin": stdin,
            "timeout": timeout,
            "stdout_limit": self.limits.output_bytes,
            "stderr_limit": self.limits.output_bytes,
        }
        try:
            async with self._request(channel, "exec", b"", timeout, fields) as stream:
                async for header, payload in stream:
                    if header["ev"] == "done":
                        await _flush(collector, listeners)
                        return collector.command_result(header)
                    if header["ev"] == "started" and on_start is not None:
                        pid = header.get("pid")
                        on_start(stream.number, pid if isinstance(pid, int) else 0)
                    elif (output := collector.output(header, payload)) is not None:
                        await listeners.text(*output)
        except VmConnectionError:
            death = await self._cause_of_death(machine)
            await _flush(collector, listeners)
            return collector.dead_command(death.reason, death.message)
        raise ExecutionFailed("The machine's answer had no end.")

    @contextlib.asynccontextmanager
    async def _request(
        self, channel: Channel, op: str, payload: bytes, timeout: float | None, fields: dict[str, Any]
    ) -> AsyncIterator[Stream]:
        """A request for work: bounded by the host's own deadline; when the caller leaves early, the work is killed."""
        deadline = None if timeout is None else timeout + _GRACE_SECONDS
        async with channel.request(op, payload, **fields) as stream:
            scope = asyncio.timeout(deadline)
            try:
                async with scope:
                    yield stream
            except TimeoutError as exc:
                if not scope.expired():
                    raise  # a listener's own
                death = Death(TerminationReason.TIMEOUT, f"the sandbox did not stop its code after {timeout:g} s")
                self._spawn(self.kill(death))
                raise VmConnectionError(death.message) from exc
            except ProtocolError as exc:
                death = Death(TerminationReason.KILLED, f"the sandbox broke the protocol: {exc}")
                self._spawn(self.kill(death))
                raise VmConnectionError(death.message) from exc
            finally:
                self._running.pop(stream.number, None)
                if not stream.ended and channel.closed is None:
                    self._spawn(self._quietly(self.signal(stream.number, signal.SIGKILL)))

    @staticmethod
    async def _quietly(work: Awaitable[object]) -> None:
        with contextlib.suppress(ExecutionFailed, SessionNotFound, VmConnectionError, VmNotAvailable, ExecutionTimeout):
            await work

    @staticmethod
    async def _cause_of_death(machine: Machine) -> Death:
        try:
            async with asyncio.timeout(_CALL_TIMEOUT):
                return await machine.wait()
        except TimeoutError:
            return Death(TerminationReason.CRASHED, "the channel to the sandbox broke")

    async def signal(self, request: int, number: int) -> None:
        """Signal what a run_code or exec request is running."""
        await self._call("signal", target=request, signal=int(number))

    async def send_stdin(self, request: int, data: bytes, *, eof: bool = False) -> None:
        """Feed a command; returns when its pipe has taken everything."""
        for start in range(0, len(data), _STDIN_CHUNK):
            chunk = data[start : start + _STDIN_CHUNK]
            await self.open_channel().call("stdin", chunk, timeout=3600, target=request, eof=False)
        if eof:
            await self._call("stdin", target=request, eof=True)

    async def interrupt(self, context: str | None = None) -> int:
        """Interrupt what runs in a context (None: in all); how many were interrupted."""
        targets = [number for number, used in self._running.items() if context in (None, used)]
        for number in targets:
            await self._quietly(self.signal(number, signal.SIGINT))
        return len(targets)

    # --- contexts, processes, figures -----------------------------------------------------------------------------

    async def _call(self, op: str, **fields: Any) -> Header:
        header, _ = await self.open_channel().call(op, timeout=_CALL_TIMEOUT, **fields)
        return header

    async def create_context(self, language: Language, cwd: str | None, env: Mapping[str, str]) -> ContextInfo:
        header = await self._call("context_create", language=language, cwd=cwd, env=dict(env))
        return ContextInfo(id=str(header.get("context")), language=language, cwd=cwd or self.image.template.workdir)

    async def list_contexts(self) -> list[ContextInfo]:
        rows = _rows(await self._call("context_list"), "contexts")
        with _nonsense():
            return [
                ContextInfo(id=row["context"], language=row["language"], cwd=row.get("cwd") or "", busy=row["busy"])
                for row in rows
            ]

    async def restart_context(self, context: str) -> None:
        await self._call("context_restart", context=context)

    async def remove_context(self, context: str) -> None:
        await self._call("context_remove", context=context)

    async def processes(self) -> list[ProcessInfo]:
        """Commands under way."""
        rows = _rows(await self._call("processes"), "processes")
        with _nonsense():
            return [
                ProcessInfo(
                    pid=row["pid"], argv=row["argv"], cwd=row.get("cwd") or "", running_ms=row["started_ms_ago"]
                )
                for row in rows
            ]

    async def kill_process(self, pid: int) -> bool:
        """Kill a command by its pid; False if it is not (any more) one of ours."""
        rows = _rows(await self._call("processes"), "processes")
        with _nonsense():
            targets = [int(row["target"]) for row in rows if row["pid"] == pid]
        for target in targets:
            with contextlib.suppress(SessionNotFound):
                await self.signal(target, signal.SIGKILL)
                return True
        return False

    async def metrics(self) -> SandboxMetrics:
        inside = await self._call("metrics")
        outside = self.machine.stats()
        with _nonsense():
            return SandboxMetrics(
                memory_bytes=outside.memory_bytes,
                memory_peak_bytes=outside.memory_peak_bytes,
                memory_limit_bytes=self.limits.memory_mb << 20,
                cpu_seconds=outside.cpu_seconds,
                disk_used_bytes=inside["disk_used"],
                disk_total_bytes=inside["disk_total"],
                processes=inside["processes"],
            )

    def info(self) -> SandboxInfo:
        return SandboxInfo(
            sandbox_id=self.id,
            template=self.image.name,
            backend=self.machine.backend,
            state=self.state.value,
            started_at=self.started_at,
            end_at=self.end_at,
            limits=self.limits,
            metadata=self.metadata,
        )


def _finished(machine: Machine, execution: Execution, before: MachineStats) -> Execution:
    """Add what only the host knows: the peak of memory, and whether its memory cap was what killed the code."""
    after = machine.stats()
    if after.memory_peak_bytes is not None:
        execution.memory_peak_mb = round(after.memory_peak_bytes / (1 << 20), 2)
    if after.oom_kills > before.oom_kills and not execution.succeeded:
        execution.termination_reason = TerminationReason.MEMORY
    return execution


@contextlib.contextmanager
def _nonsense() -> Iterator[None]:
    """An answer whose fields are not what the protocol says is an error of the machine, not of Emberbox."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ExecutionFailed("The machine's answer makes no sense.", remediation="Create a new sandbox.") from exc


def _rows(header: Header, key: str) -> list[dict[str, Any]]:
    rows = header.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ExecutionFailed("The machine's answer makes no sense.", remediation="Create a new sandbox.")
    return rows


_REBUILD = "Build the image again: `emberbox image build NAME --force`."


async def _take(collector: ExecutionCollector, header: Header, payload: bytes, listeners: Listeners) -> None:
    if (output := collector.output(header, payload)) is not None:
        await listeners.text(*output)
    elif (result := collector.result(header, payload)) is not None:
        await listeners.result(result)
    elif header["ev"] == "started" and isinstance(header.get("context"), str):
        collector.context = header["context"][:100]


async def _flush(collector: OutputCollector, listeners: Listeners) -> None:
    for name, text in collector.flush():
        await listeners.text(name, text)
