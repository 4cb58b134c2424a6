"""What is under way for the host: a `run_code` in a kernel, or a program of its own (`exec`)."""

from __future__ import annotations

import signal

from . import outcome
from .memory import shared_files
from .processes import NEARLY_ALL, Held, crowded, exit_code, out_of_memory_kills, thread_count, thread_goes_on
from .streams import Capture

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

    from .agent import Agent
    from .contexts import Context
    from .kernel_process import KernelProcess
    from .protocol import Header

GRACE = 1.0
NOT_STARTED = 126
KILLED = 137
HUNG_UP = 128 + signal.SIGHUP


class Execution:
    """What the two kinds have in common: output, time, signals, and how it all ends."""

    def __init__(self, agent: Agent, ident: int, stdout_limit: int, stderr_limit: int) -> None:
        self.agent = agent
        self.ident = ident
        self.began = agent.loop.time()
        self.stdout = Capture(stdout_limit, lambda data: self._output("stdout", data))
        self.stderr = Capture(stderr_limit, lambda data: self._output("stderr", data))
        self.timed_out = False
        self.crowded = False
        self.killed = False
        self.interrupted = False
        self.is_code = False
        """A `run_code`, and not an `exec`."""
        self.context_ident: str | None = None
        self.starved = False
        """Something of it was killed because the machine's memory was used up."""
        self._holds = Held.times
        """How often all had been stopped for a moment when it began. Since then the kernel may have hung up on it."""
        self.tracked = False
        """The host wants to know which files it changed."""
        self._timer: int | None = None
        self._memory_kills = agent.memory_kills

    def emit(self, event: str, payload: bytes = b"", **fields: Any) -> None:
        """Send an event of this request."""
        self.agent.send({"id": self.ident, "ev": event, **fields}, payload)

    def _output(self, stream: str, data: bytes) -> None:
        self.emit(stream, data)

    def set_timeout(self, timeout: float | None) -> None:
        """Begin to end this execution after that many seconds."""
        if timeout is not None:
            self._timer = self.agent.loop.later(timeout, self._on_timeout)

    def pids(self) -> List[int]:
        """The processes this execution stands for, to be left alone when another one is killed."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """Ask the code to stop."""
        raise NotImplementedError

    def kill(self) -> None:
        """Stop the code, whatever it does."""
        raise NotImplementedError

    def send_signal(self, number: int) -> None:
        """A signal that the host asks for."""
        raise NotImplementedError

    def signalled(self, number: int) -> None:
        """The host has asked for this signal."""
        if number == signal.SIGINT:
            self.interrupted = True
            self.interrupt()
            return
        if number not in (signal.SIGSTOP, signal.SIGCONT, signal.SIGWINCH, signal.SIGURG):
            self.killed = True
        if number == signal.SIGKILL:
            self.kill()
        else:
            self.send_signal(number)

    def ending(self, code: int, *, died: bool) -> outcome.ExitInfo:
        """What is known about the end, as far as the two kinds know alike."""
        self.agent.loop.cancel(self._timer)
        self._timer = None
        self.stdout.finish()
        self.stderr.finish()
        ending = outcome.ExitInfo(code)
        ending.died = died
        ending.timed_out = self.timed_out
        ending.cause = "processes" if self.crowded else None
        ending.stderr = self.stderr.tail
        ending.truncated = self.stdout.truncated or self.stderr.truncated
        ending.starved = self.starved
        if died or code:
            kills = out_of_memory_kills()
            ending.memory_kill = kills is not None and kills > (self._memory_kills or 0)
            self.agent.memory_kills = kills
        return ending

    def seconds(self) -> float:
        """How long this has been under way."""
        return self.agent.loop.time() - self.began

    def done(self, **fields: Any) -> None:
        """Send the final event."""
        self.agent.forget(self.ident)
        duration = self.seconds() * 1000
        if self.tracked:
            fields["changes"] = self.agent.changes.look()
        self.emit(
            "done",
            stdout_truncated=self.stdout.truncated,
            stderr_truncated=self.stderr.truncated,
            duration_ms=round(duration, 3),
            **fields,
        )

    def _on_timeout(self) -> None:
        self.timed_out = True
        crowd = crowded()
        with Held(self.agent.settings.uid, crowd):
            self.crowded = self.no_room()
            if crowd or self.crowded:
                self.kill_crowd()
        self.interrupt()
        self._timer = self.agent.loop.later(self.grace(), self.kill)

    def no_room(self) -> bool:
        """Whether hardly any process can be started any more."""
        settings = self.agent.settings
        return settings.nproc > 0 and thread_count(settings.uid) >= settings.nproc * NEARLY_ALL

    def kill_crowd(self) -> None:
        """Kill what would keep all processors from who is to give in to SIGINT."""
        if self.crowded:
            self.kill()

    def grace(self) -> float:
        """Seconds between SIGINT and SIGKILL."""
        return GRACE


class CodeRun(Execution):
    """A `run_code`: its context's kernel does the work."""

    def __init__(
        self, agent: Agent, ident: int, context: Context, stdout_limit: int, stderr_limit: int, results_limit: int
    ) -> None:
        super().__init__(agent, ident, stdout_limit, stderr_limit)
        self._context = context
        self.is_code, self.context_ident = True, context.ident
        self.kernel: KernelProcess | None = None
        """The one that does the work; its context may have got another one meanwhile."""
        self.late = b""
        """What earlier executions of the context have left running and that printed since."""
        context.count += 1
        self._room = results_limit
        self._results_truncated = False

    def started(self) -> None:
        """Send the event that it is under way."""
        self.agent.send({"id": self.ident, "ev": "started", "context": self._context.ident}, lazily=True)

    def _output(self, stream: str, data: bytes) -> None:
        self.agent.send({"id": self.ident, "ev": stream}, data, lazily=True)

    def pids(self) -> List[int]:
        kernel = self.kernel
        return [] if kernel is None or kernel.pid is None else [kernel.pid]

    def interrupt(self) -> None:
        if self.kernel is not None:
            self.kernel.interrupt()

    def kill(self) -> None:
        if self.kernel is not None:
            self.kernel.kill()

    def kill_crowd(self) -> None:
        if self.kernel is not None:
            self.kernel.kill_what_it_started()

    def send_signal(self, number: int) -> None:
        if self.kernel is not None:
            self.kernel.signal(number)

    def grace(self) -> float:
        kernel = self.kernel
        return GRACE if kernel is None else kernel.grace

    def on_result(self, header: Header, payload: bytes) -> None:
        """The kernel has published a result. What it is said to be is the host's to check; its size is ours."""
        main = header.get("main") is True
        if len(payload) > self._room:
            self._results_truncated = True
            return
        self._room -= len(payload)
        self.emit("result", payload, main=main)

    def on_done(self, header: Header) -> None:
        """The kernel has finished and goes on living, as far as it knows."""
        code = header.get("exit_code")
        if type(code) is not int or not 0 <= code <= 255:
            raise ValueError("a kernel sent an end that is none")
        error = outcome.clean_error(header.get("error"))
        survived = header.get("survived") is not False
        if self.kernel is not None and not survived:
            self.kernel.kill()
        elif self.kernel is not None and self.timed_out:
            survived = self._stopped_all(self.kernel)
        ending = self.ending(code, died=False)
        ending.interrupted = self.interrupted and error is not None and error["name"] == "KeyboardInterrupt"
        ending.interrupted = ending.interrupted or (self.interrupted and code == 130)
        cause = header.get("cause")
        if ending.cause is None and isinstance(cause, str):
            ending.cause = cause
        if survived and self.kernel is not None and outcome.reason(ending) == "processes" and self.no_room():
            survived = self._make_room(self.kernel)
        self._results_truncated = self._results_truncated or header.get("results_truncated") is True
        self._end(ending, error, survived=survived)

    def _stopped_all(self, kernel: KernelProcess) -> bool:
        """The code has given in to SIGINT. False where threads that it has started go on: nothing ends them but the end
        of their interpreter."""
        kernel.kill_what_it_started()
        if kernel.pid is None or not thread_goes_on(kernel.pid, self.began):
            return True
        kernel.kill()
        return False

    def _make_room(self, kernel: KernelProcess) -> bool:
        """Nothing could be started any more, here or in other contexts. False where only the kernel's end helps."""
        kernel.kill_what_it_started()
        if not self.no_room():
            return True
        kernel.kill()
        return False

    def on_lost(self, status: int | None) -> None:
        """The kernel has died."""
        ending = self.ending(NOT_STARTED if status is None else exit_code(status), died=True)
        ending.killed = self.killed
        ending.interrupted = self.interrupted and not self.killed
        if status is None or (Held.times > self._holds and ending.exit_code == HUNG_UP):
            ending.cause = "processes"
        language = self._context.language
        settings = self.agent.settings
        ending.files = shared_files(settings)
        ending.cut_off = self.kernel is not None and self.kernel.cut_off
        self._end(ending, outcome.death(ending, language, settings.memory), survived=False)

    def _end(self, ending: outcome.ExitInfo, error: Dict[str, str] | None, *, survived: bool) -> None:
        ending.truncated = ending.truncated or self._results_truncated
        context = self._context
        if context.run is self:
            context.run = None
        self.done(
            exit_code=ending.exit_code,
            reason=outcome.reason(ending),
            context=context.ident,
            context_survived=survived,
            execution_count=context.count,
            error=error,
            results_truncated=self._results_truncated,
            **({"late": self.late.decode("utf-8", "replace")} if self.late else {}),
        )
