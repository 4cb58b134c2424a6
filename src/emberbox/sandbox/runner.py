"""What runs in a sandbox: code and commands, from the request to its last event."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from emberbox._text import check_environment
from emberbox.errors import (
    ExecutionFailed,
    ExecutionTimeout,
    SessionNotFound,
    ValidationFailed,
    VmConnectionError,
    VmNotAvailable,
)
from emberbox.guest.protocol import Header, ProtocolError
from emberbox.machines.channel import Channel
from emberbox.machines.contract import Death, Machine
from emberbox.models import CommandResult, Execution, Language, MachineLimits, TerminationReason
from emberbox.sandbox.lineage import Lineage
from emberbox.sandbox.listeners import Listeners, RunOptions
from emberbox.sandbox.outcome import ExecutionCollector, OutputCollector
from emberbox.sandbox.work import ANSWER_SECONDS, OverdueError, Work, finished, flush, nonsense, take

_GONE = (ExecutionFailed, SessionNotFound, VmConnectionError, VmNotAvailable, ExecutionTimeout)
"""What a signal may meet: what it was for has ended."""
_GRACE_SECONDS = 10.0
"""Beyond a time-out that the guest enforces, the host waits this long for its answer; then it kills the machine."""
_STOP_SECONDS = 5.0
"""What is killed ends in milliseconds."""
_STDIN_CHUNK = 1 << 18
_MAX_CODE_BYTES = 4 << 20
_SIGINT = int(signal.SIGINT)
_RESULTS_FACTOR = 8
"""Rich results (figures, tables) may be this many times larger than a stream's cap."""


class Owner(Protocol):
    """What a runner needs of its sandbox."""

    id: str

    @property
    def lineage(self) -> Lineage: ...
    @property
    def machine(self) -> Machine: ...
    @property
    def limits(self) -> MachineLimits: ...
    def open_channel(self) -> Channel: ...
    def touched(self) -> None: ...
    def spawn(self, work: Awaitable[object]) -> object: ...
    async def settled(self) -> None: ...
    async def call(self, op: str, **fields: Any) -> Header: ...


class Runner:
    """`runner` of a sandbox.

    Attributes:
        bounded: how many requests with a time-out are under way.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._requests = 0
        self._stopping: set[tuple[Channel, int]] = set()
        """Requests whose caller has left, and which are being killed."""
        self.bounded = 0

    @property
    def busy(self) -> bool:
        """Something runs in it for us, commands in the background included."""
        return self._requests > 0

    async def run_code(self, language: Language, code: str, options: RunOptions, listeners: Listeners) -> Execution:
        """Run code in a context and collect what comes.

        Raises:
            VmNotAvailable: the sandbox was gone before the code began.
            SessionNotFound, ExecutionFailed: unknown or busy context, working directory that is not there.
        """
        await self._owner.settled()
        await self._stopped()
        channel, machine = self._owner.open_channel(), self._owner.machine
        self._owner.touched()
        source = code.encode("utf-8", "replace")
        if len(source) + len(options.stdin) > _MAX_CODE_BYTES:
            raise ValidationFailed(
                f"Code and standard input of {len(source) + len(options.stdin)} bytes are too long at once.",
                remediation=f"Write large input to a file with files.write; the limit is {_MAX_CODE_BYTES} bytes.",
            )
        output = options.output_bytes or self._owner.limits.output_bytes
        collector = ExecutionCollector(
            output_limit=output,
            results_limit=output * _RESULTS_FACTOR,
            execution_id=options.execution_id or f"ex-{secrets.token_hex(8)}",
            sandbox_id=self._owner.id,
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
            "track": options.track_files,
        }
        mark = machine.mark()
        try:
            async with self._request(channel, "run_code", source + options.stdin, options.timeout, fields) as stream:
                async for header, payload in stream:
                    if header["ev"] == "done":
                        await flush(collector, listeners)
                        return finished(machine, collector.execution(header), mark)
                    await take(collector, header, payload, listeners)
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
        check_environment(env)
        await self._owner.settled()
        self._owner.touched()
        channel, machine, listeners = self._owner.open_channel(), self._owner.machine, listeners or Listeners()
        collector = OutputCollector(output_limit=self._owner.limits.output_bytes)
        fields = {
            "argv": list(argv),
            "cwd": cwd,
            "env": dict(env or {}),
            "stdin": stdin,
            "timeout": timeout,
            "stdout_limit": self._owner.limits.output_bytes,
            "stderr_limit": self._owner.limits.output_bytes,
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
            await self._owner.settled()
            restoration = self._owner.lineage.restoration
            snapshot_id = None if restoration is None else restoration.snapshot_id
            gone_back = f"; the sandbox goes on from {snapshot_id}" if snapshot_id else ""
            return collector.dead_command(death.reason, death.message + gone_back)
        raise ExecutionFailed("The machine's answer had no end.")

    @contextlib.asynccontextmanager
    async def _request(
        self, channel: Channel, op: str, payload: bytes, timeout: float | None, fields: dict[str, Any]
    ) -> AsyncIterator[Work]:
        """A request for work: bounded by the host's own deadline; when the caller leaves early, the work is killed."""
        async with channel.request(op, payload, **fields) as stream:
            self.bounded += timeout is not None
            self._requests += 1
            try:
                yield Work(stream, None if timeout is None else timeout + _GRACE_SECONDS)
            except OverdueError as exc:
                death = Death(TerminationReason.TIMEOUT, f"the sandbox did not stop its code after {timeout:g} s")
                self._owner.spawn(self._owner.machine.kill(death))
                raise VmConnectionError(death.message) from exc
            except ProtocolError as exc:
                death = Death(TerminationReason.KILLED, f"the sandbox broke the protocol: {exc}")
                self._owner.spawn(self._owner.machine.kill(death))
                raise VmConnectionError(death.message) from exc
            finally:
                self.bounded -= timeout is not None
                self._requests -= 1
                if not stream.ended and channel.closed is None:
                    # on the channel of the request: after a rollback the number may be another's
                    self._stopping.add((channel, stream.number))
                    stop = channel.call("signal", timeout=ANSWER_SECONDS, target=stream.number, signal=signal.SIGKILL)
                    self._owner.spawn(self._quietly(stop))

    async def _stopped(self) -> None:
        """What was cancelled has ended: its context can be used again. Where that takes too long, the guest says so."""
        stopping, self._stopping = self._stopping, set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                for channel, number in stopping:
                    await channel.answered(number)

    @staticmethod
    async def _quietly(work: Awaitable[object]) -> None:
        with contextlib.suppress(*_GONE):
            await work

    @staticmethod
    async def _cause_of_death(machine: Machine) -> Death:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await machine.wait()
        except TimeoutError:
            return Death(TerminationReason.CRASHED, "the channel to the sandbox broke")

    async def signal(self, request: int, number: int) -> None:
        """Signal what a run_code or exec request is running."""
        await self._owner.call("signal", target=request, signal=int(number))

    async def send_stdin(self, request: int, data: bytes, *, eof: bool = False) -> None:
        """Feed a command; returns when its pipe has taken everything."""
        starts = range(0, max(len(data), int(eof)), _STDIN_CHUNK)
        for start in starts:
            # the end comes with the last of it: a program that has read all it wants may be gone by the next request
            last = eof and start == starts[-1]
            chunk = data[start : start + _STDIN_CHUNK]
            await self._owner.open_channel().call("stdin", chunk, timeout=3600, target=request, eof=last)

    async def interrupt(self, context: str | None = None, *, number: int = _SIGINT) -> int:
        """Interrupt what runs in a context (None: in all), or send it another signal; how many it reached. The agent
        knows best what runs: it may have been asked by a process before this one."""
        reached = 0
        with contextlib.suppress(*_GONE):
            header = await self._owner.call("signal", target=0, context=context, signal=int(number))
            with nonsense():
                reached = int(header["count"])
        return reached
