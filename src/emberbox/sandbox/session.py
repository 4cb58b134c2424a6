"""One sandbox in use: a machine, its agent, and what may be asked of them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
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
from emberbox.machines.base import Death, Machine, Snapshot
from emberbox.machines.channel import Channel
from emberbox.models import (
    CommandResult,
    ContextInfo,
    Execution,
    Language,
    MachineLimits,
    ProcessInfo,
    SandboxInfo,
    SandboxMetrics,
    TerminationReason,
)
from emberbox.sandbox.configuration import GUEST_HOME, configuration
from emberbox.sandbox.files import GuestFiles
from emberbox.sandbox.outcome import ExecutionCollector, OutputCollector
from emberbox.sandbox.work import (
    Listeners,
    OverdueError,
    RunOptions,
    Work,
    finished,
    flush,
    nonsense,
    rows_of,
    take,
)

_CALL_TIMEOUT = 15.0
_GRACE_SECONDS = 10.0
"""Beyond a time-out that the guest enforces, the host waits this long for its answer; then it kills the machine."""
_STDIN_CHUNK = 1 << 18
_MAX_CODE_BYTES = 4 << 20
_RESULTS_FACTOR = 8
"""Rich results (figures, tables) may be this many times larger than a stream's cap."""
_REBUILD = "Build the image again: `emberbox image build NAME --force`."


class SessionState(StrEnum):
    STARTING = "starting"
    READY = "running"
    PAUSED = "paused"
    CLOSED = "killed"


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
        self._bounded = 0
        """Requests under way that have a time-out."""
        self._closing = False
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
                await self.machine.channel.call("configure", timeout=deadline, **configuration(self.image, self.limits))
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
        self._closing = True
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
        self._check_alive()
        if self.machine.channel.closed is not None:
            raise self._gone()
        return self.machine.channel

    def _check_alive(self) -> None:
        if self._closing or self.state is SessionState.CLOSED:
            raise self._gone()

    def _gone(self) -> VmNotAvailable:
        why = f": {self._death.message}" if self._death else ""
        return VmNotAvailable(f"Sandbox {self.id} is gone{why}.", remediation="Create a new one.", retryable=True)

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
            channel, machine = self.open_channel(), self.machine
            with channel.held():
                try:
                    await channel.call("quiesce", timeout=_CALL_TIMEOUT, urgent=True)
                    last = channel.last_request
                    size = await machine.checkpoint(directory)
                except (ExecutionFailed, ExecutionTimeout) as exc:
                    raise SnapshotFailed(f"Sandbox {self.id} cannot be copied now: {exc.message}") from exc
                finally:
                    await self._wake_again(machine)
        return Snapshot(directory, self.image, self.limits, last, size)

    async def _wake_again(self, machine: Machine) -> None:
        """After a checkpoint, or the attempt: the agent serves requests in order, so that this undoes a late quiesce. A
        machine that cannot be woken would be quiet for ever."""
        if machine.channel.closed is None:
            try:
                await machine.channel.call("wake", timeout=_CALL_TIMEOUT, urgent=True, fork=False)
            except (ExecutionFailed, ExecutionTimeout):
                await machine.kill(Death(TerminationReason.CRASHED, "the sandbox did not go on after a snapshot"))

    async def replace_machine(self, snapshot: Snapshot, fork: Callable[[Snapshot], Awaitable[Machine]]) -> None:
        """Go on from a snapshot: a fork of it takes the machine's place, then the old one is killed.

        Raises:
            RollbackFailed: no fork came up; the sandbox is as it was.
        """
        async with self._changing:
            self._check_alive()
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
            if self._closing or self.state is SessionState.CLOSED:  # killed, expired or dead meanwhile
                await asyncio.shield(asyncio.ensure_future(machine.kill()))
            self._check_alive()
            old, self.machine = self.machine, machine
            self._ready()
            await asyncio.shield(
                asyncio.ensure_future(old.kill(Death(TerminationReason.KILLED, "the sandbox was rolled back")))
            )

    async def pause(self) -> None:
        """Stop everything in it; it keeps its memory and uses no CPU. Harmless when it is paused.

        Raises:
            ExecutionFailed: code is running, or a command with a time-out.
        """
        async with self._changing:
            if self.state is not SessionState.PAUSED:
                self.open_channel()
                if self._bounded:
                    raise ExecutionFailed(
                        f"Something with a time-out is running in sandbox {self.id}; its time would run out.",
                        remediation="Wait for it or interrupt it, then pause.",
                        retryable=True,
                    )
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
                        await flush(collector, listeners)
                        return finished(machine, collector.execution(header), before)
                    await take(collector, header, payload, listeners)
                    self._running[stream.number] = collector.context
        except VmConnectionError:
            death = await self._cause_of_death(machine)
            await flush(collector, listeners)
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
                        await flush(collector, listeners)
                        return collector.command_result(header)
                    if header["ev"] == "started" and on_start is not None:
                        pid = header.get("pid")
                        on_start(stream.number, pid if isinstance(pid, int) else 0)
                    elif (output := collector.output(header, payload)) is not None:
                        await listeners.text(*output)
        except VmConnectionError:
            death = await self._cause_of_death(machine)
            await flush(collector, listeners)
            return collector.dead_command(death.reason, death.message)
        raise ExecutionFailed("The machine's answer had no end.")

    @contextlib.asynccontextmanager
    async def _request(
        self, channel: Channel, op: str, payload: bytes, timeout: float | None, fields: dict[str, Any]
    ) -> AsyncIterator[Work]:
        """A request for work: bounded by the host's own deadline; when the caller leaves early, the work is killed."""
        async with channel.request(op, payload, **fields) as stream:
            self._bounded += timeout is not None
            try:
                yield Work(stream, None if timeout is None else timeout + _GRACE_SECONDS)
            except OverdueError as exc:
                death = Death(TerminationReason.TIMEOUT, f"the sandbox did not stop its code after {timeout:g} s")
                self._spawn(self.kill(death))
                raise VmConnectionError(death.message) from exc
            except ProtocolError as exc:
                death = Death(TerminationReason.KILLED, f"the sandbox broke the protocol: {exc}")
                self._spawn(self.kill(death))
                raise VmConnectionError(death.message) from exc
            finally:
                self._bounded -= timeout is not None
                self._running.pop(stream.number, None)
                if not stream.ended and channel.closed is None:
                    # on the channel of the request: after a rollback the number may be another's
                    stop = channel.call("signal", timeout=_CALL_TIMEOUT, target=stream.number, signal=signal.SIGKILL)
                    self._spawn(self._quietly(stop))

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
        rows = rows_of(await self._call("context_list"), "contexts")
        with nonsense():
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
        rows = rows_of(await self._call("processes"), "processes")
        with nonsense():
            return [
                ProcessInfo(
                    pid=row["pid"], argv=row["argv"], cwd=row.get("cwd") or "", running_ms=row["started_ms_ago"]
                )
                for row in rows
            ]

    async def kill_process(self, pid: int) -> bool:
        """Kill a command by its pid; False if it is not (any more) one of ours."""
        rows = rows_of(await self._call("processes"), "processes")
        with nonsense():
            targets = [int(row["target"]) for row in rows if row["pid"] == pid]
        for target in targets:
            with contextlib.suppress(SessionNotFound):
                await self.signal(target, signal.SIGKILL)
                return True
        return False

    async def metrics(self) -> SandboxMetrics:
        inside = await self._call("metrics")
        outside = self.machine.stats()
        with nonsense():
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
