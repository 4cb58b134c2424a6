"""Programs of their own: `exec`, and what else the agent runs as one."""

from __future__ import annotations

import os
import signal

from . import outcome
from .executions import Execution
from .limits import AsUser
from .loop import READ, WRITE
from .processes import DEADLY_SIGNALS, exit_code, interrupt_group, kill_tree, send_signal, spawn
from .streams import Pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List

    from .agent import Agent

NOT_STARTED = 126


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
    ) -> None:
        super().__init__(agent, ident, stdout_limit, stderr_limit)
        self.argv = argv
        self.cwd = cwd
        self._problem: tuple[int, str] | None = None
        self._waiting: List[tuple[bytes, bool, Callable[[str | None], None]]] = []
        self._status: int | None = None
        self.on_exit: Callable[[outcome.ExitInfo], None] = self._report
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
        kill_tree(self.agent.settings.uid, self.pid, since=self.began, others=others)
        send_signal(self.pid, signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except OSError:
            send_signal(self.pid, number)

    def describe(self) -> Dict[str, Any]:
        """What `processes` tells."""
        age = round(self.seconds() * 1000)
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
        try:
            problem = os.read(self._failure, 64)
        except BlockingIOError:
            return
        self.agent.loop.pause(self._failure)
        os.close(self._failure)
        self._failure = -1
        if not problem:
            self.on_started()
            return
        number, step = problem.split()
        self._problem = (int(number), step.decode())

    def emit(self, event: str, payload: bytes = b"", **fields: Any) -> None:
        """Send an event of this request. Output tells that the program runs, which must be heard of first."""
        if payload:
            self._on_started()
        super().emit(event, payload, **fields)

    def on_started(self) -> None:
        """The program runs."""
        self.emit("started", pid=self.pid)

    def _on_death(self, status: int) -> None:
        self._on_started()
        if self.timed_out or self.killed:
            self.kill()  # it may have ended by SIGINT at once, and left what ignores that
        self.agent.past.append(self.pid)
        self._out.drain_all()
        self._err.drain_all()
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

    def _report(self, ending: outcome.ExitInfo) -> None:
        self.done(exit_code=ending.exit_code, reason=outcome.reason(ending))
