"""What is under way for the host: a `run_code` in a kernel, or a program of its own (`exec`)."""

from __future__ import annotations

import os
import signal
import time

from . import outcome
from .limits import AsUser
from .loop import READ, WRITE
from .processes import (
    DEADLY_SIGNALS,
    exit_code,
    interrupt_group,
    kill_tree,
    out_of_memory_kills,
    send_signal,
    spawn,
    thread_count,
    ticks_now,
)
from .streams import Capture, Pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List

    from .agent import Agent
    from .contexts import Context
    from .protocol import Header

GRACE = 1.0
NOT_STARTED = 126
KILLED = 137
NEARLY_ALL = 0.9


class Execution:
    """What the two kinds have in common: output, time, signals, and how it all ends."""

    def __init__(self, agent: Agent, ident: int, stdout_limit: int, stderr_limit: int) -> None:
        self.agent = agent
        self.ident = ident
        self.began = time.monotonic()
        self.since = ticks_now()
        self.stdout = Capture(stdout_limit, lambda data: self.emit("stdout", data))
        self.stderr = Capture(stderr_limit, lambda data: self.emit("stderr", data))
        self.timed_out = False
        self.crowded = False
        self.killed = False
        self.interrupted = False
        self._timer: int | None = None
        self._memory_kills = agent.memory_kills

    def emit(self, event: str, payload: bytes = b"", **fields: Any) -> None:
        """Send an event of this request."""
        self.agent.send({"id": self.ident, "ev": event, **fields}, payload)

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

    def ending(self, code: int, *, died: bool) -> outcome.Ending:
        """What is known about the end, as far as the two kinds know alike."""
        self.agent.loop.cancel(self._timer)
        self._timer = None
        self.stdout.finish()
        self.stderr.finish()
        ending = outcome.Ending(code)
        ending.died = died
        ending.timed_out = self.timed_out
        ending.cause = "processes" if self.crowded else None
        ending.stderr = self.stderr.tail
        ending.truncated = self.stdout.truncated or self.stderr.truncated
        if died:
            kills = out_of_memory_kills()
            ending.memory_kill = kills is not None and kills > (self._memory_kills or 0)
            self.agent.memory_kills = kills
        return ending

    def done(self, **fields: Any) -> None:
        """Send the final event."""
        self.agent.executions.pop(self.ident, None)
        duration = (time.monotonic() - self.began) * 1000
        self.emit(
            "done",
            stdout_truncated=self.stdout.truncated,
            stderr_truncated=self.stderr.truncated,
            duration_ms=round(duration, 3),
            **fields,
        )

    def _on_timeout(self) -> None:
        self.timed_out = True
        settings = self.agent.settings
        if settings.nproc > 0:
            self.crowded = thread_count(settings.uid) >= settings.nproc * NEARLY_ALL
        self.interrupt()
        self._timer = self.agent.loop.later(self.grace(), self.kill)

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
        context.count += 1
        self._room = results_limit
        self._results_truncated = False

    def pids(self) -> List[int]:
        kernel = self._context.kernel
        return [] if kernel is None or kernel.pid is None else [kernel.pid]

    def interrupt(self) -> None:
        if self._context.kernel is not None:
            self._context.kernel.interrupt()

    def kill(self) -> None:
        if self._context.kernel is not None:
            self._context.kernel.kill()

    def send_signal(self, number: int) -> None:
        if self._context.kernel is not None:
            self._context.kernel.signal(number)

    def grace(self) -> float:
        kernel = self._context.kernel
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
        if not survived and self._context.kernel is not None:
            self._context.kernel.kill()
        ending = self.ending(code, died=False)
        ending.interrupted = self.interrupted and error is not None and error["name"] == "KeyboardInterrupt"
        ending.interrupted = ending.interrupted or (self.interrupted and code == 130)
        cause = header.get("cause")
        if ending.cause is None and isinstance(cause, str):
            ending.cause = cause
        self._results_truncated = self._results_truncated or header.get("results_truncated") is True
        self._end(ending, error, survived=survived)

    def on_lost(self, status: int | None) -> None:
        """The kernel has died."""
        ending = self.ending(NOT_STARTED if status is None else exit_code(status), died=True)
        ending.killed = self.killed
        ending.interrupted = self.interrupted and not self.killed
        if status is None:
            ending.cause = "processes"
        self._end(ending, None, survived=False)

    def _end(self, ending: outcome.Ending, error: Dict[str, str] | None, *, survived: bool) -> None:
        ending.truncated = ending.truncated or self._results_truncated
        context = self._context
        context.run = None
        self.done(
            exit_code=ending.exit_code,
            reason=outcome.reason(ending),
            context=context.ident,
            context_survived=survived,
            execution_count=context.count,
            error=error,
            results_truncated=self._results_truncated,
        )


class Program(Execution):
    """An `exec`: a program of its own."""

    def __init__(
        self,
        agent: Agent,
        ident: int,
        argv: List[str],
        cwd: str,
        env: Dict[str, str],
        *,
        stdin: bool,
        stdout_limit: int,
        stderr_limit: int,
        address_space: bool = True,
    ) -> None:
        super().__init__(agent, ident, stdout_limit, stderr_limit)
        self.argv = argv
        self.cwd = cwd
        self._problem: tuple[int, str] | None = None
        self._waiting: List[tuple[bytes, bool, Callable[[str | None], None]]] = []
        self._status: int | None = None
        self.on_exit: Callable[[outcome.Ending], None] = self._report
        """What to do at the end, in place of reporting the end of an `exec`."""
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        with AsUser(agent.settings):  # so that the user can open /dev/stdout, which leads to a pipe of the user's then
            child_in, self._stdin = os.pipe2(os.O_CLOEXEC) if stdin else (null, -1)
            out, child_out = os.pipe2(os.O_CLOEXEC)
            err, child_err = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid, self._failure = spawn(
                agent.settings,
                argv,
                cwd=cwd,
                env=env,
                stdio=[child_in, child_out, child_err],
                address_space=address_space,
            )
        except OSError:
            for fd in {out, err} | ({self._stdin} if stdin else set()):
                os.close(fd)
            raise
        finally:
            for fd in {null, child_in, child_out, child_err}:
                os.close(fd)
        if stdin:
            os.set_blocking(self._stdin, False)
        self._out = Pipe(agent.loop, out, lambda: None)
        self._err = Pipe(agent.loop, err, lambda: None)
        self._out.capture, self._err.capture = self.stdout, self.stderr
        agent.loop.watch(self._failure, READ, lambda _: self._on_started())
        agent.loop.on_death(self.pid, self._on_death)

    def pids(self) -> List[int]:
        return [self.pid]

    def interrupt(self) -> None:
        interrupt_group(self.pid)

    def kill(self) -> None:
        others = [pid for pid in self.agent.pids() if pid != self.pid]
        kill_tree(self.agent.settings.uid, self.pid, since=self.since, others=others)
        send_signal(self.pid, signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except OSError:
            send_signal(self.pid, number)

    def describe(self) -> Dict[str, Any]:
        """What `processes` tells."""
        age = round((time.monotonic() - self.began) * 1000)
        return {"target": self.ident, "pid": self.pid, "argv": self.argv, "cwd": self.cwd, "started_ms_ago": age}

    def hold(self, *, reading: bool) -> None:
        """Stop or resume taking output, while the host is slow."""
        self._out.hold(reading=reading)
        self._err.hold(reading=reading)

    def write_stdin(self, data: bytes, *, eof: bool, answer: Callable[[str | None], None]) -> None:
        """Queue input; `answer(None)` once it is in the pipe, `answer(errno name)` when nobody reads it any more."""
        if self._stdin < 0:
            answer("EPIPE")
            return
        self._waiting.append((data, eof, answer))
        if len(self._waiting) == 1:
            self._feed()

    def _feed(self) -> None:
        while self._waiting:
            data, eof, answer = self._waiting[0]
            try:
                while data:
                    data = data[os.write(self._stdin, data) :]
            except BlockingIOError:
                self._waiting[0] = (data, eof, answer)
                self.agent.loop.watch(self._stdin, WRITE, lambda _: self._feed())
                return
            except OSError:
                self._close_stdin()
                return
            self._waiting.pop(0)
            answer(None)
            if eof:
                self._close_stdin()
        if self._stdin >= 0:
            self.agent.loop.pause(self._stdin)

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self.agent.loop.pause(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
        waiting, self._waiting = self._waiting, []
        for _, _, answer in waiting:
            answer("EPIPE")

    def _on_started(self) -> None:
        """The program runs now, or it could not be started."""
        if self._failure < 0:
            return
        problem = os.read(self._failure, 64)
        self.agent.loop.pause(self._failure)
        os.close(self._failure)
        self._failure = -1
        if not problem:
            self.on_started()
            return
        number, step = problem.split()
        self._problem = (int(number), step.decode())

    def on_started(self) -> None:
        """The program runs."""
        self.emit("started", pid=self.pid)

    def _on_death(self, status: int) -> None:
        self._on_started()
        self._out.drain()
        self._err.drain()
        # A daemon may go on writing: whoever reads keeps it from being blocked or killed, until it closes the pipe.
        self.agent.linger(self._out)
        self.agent.linger(self._err)
        self._close_stdin()
        if self._problem is not None:
            self.ending(NOT_STARTED, died=False)
            self.agent.program_failed(self, *self._problem)
            return
        died = os.WIFSIGNALED(status) and os.WTERMSIG(status) in DEADLY_SIGNALS
        ending = self.ending(exit_code(status), died=died)
        ending.killed = self.killed and os.WIFSIGNALED(status)
        ending.interrupted = self.interrupted and ending.exit_code == 128 + signal.SIGINT
        self.on_exit(ending)

    def _report(self, ending: outcome.Ending) -> None:
        self.done(exit_code=ending.exit_code, reason=outcome.reason(ending))

