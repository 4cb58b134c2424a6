"""The agent's side of a language kernel: its process, its pipes, its channel. Nothing it says is trusted."""

from __future__ import annotations

import _socket
import os
import signal

from . import outcome
from .channel import Channel
from .limits import AsUser
from .processes import CLOCK_TICKS, command_line, exit_code, kill_started, kill_tree, send_signal
from .streams import Pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Protocol

    from .limits import Settings
    from .loop import Loop
    from .protocol import Header
    from .streams import Capture

    class Run(Protocol):
        """The execution that a kernel is busy with."""

        stdout: Capture
        stderr: Capture
        late: bytes

        def on_result(self, header: Header, payload: bytes) -> None:
            """The kernel has published a result."""

        def on_done(self, header: Header) -> None:
            """The kernel has finished the execution and goes on living."""

        def on_lost(self, status: int | None) -> None:
            """The kernel has died with this wait status; None when there never was a process."""


class KernelProcess:
    """One process that executes code for one context, one execution after the other."""

    grace = 1.0
    """Seconds between SIGINT and SIGKILL when time is up."""

    def __init__(self, loop: Loop, settings: Settings) -> None:
        self._loop = loop
        self._settings = settings
        self.pid: int | None = None
        self.dead = False
        self._stopping = False
        self._replaced = False
        """User code has become another program by `exec`."""
        self.cut_off = False
        """User code has closed the channel."""
        self._run: Run | None = None
        self._sequence = 0
        self._began = self._ended = loop.time()
        self._had_stdin = False
        self._ready: Callable[[], None] | None = None
        self._heard = self._last = -1
        """Rounds of the loop: of the last frame, and of the last one that said that `done` came with it."""
        self.legacy = b""
        """The state that a kernel which has ended in an orderly way leaves to the next one."""
        self.others: Callable[[], List[int]] = list
        """Asked for the pids of the other kernels and programs before a tree is killed."""
        with AsUser(settings):  # so that the user can open /dev/stdout, which leads to a pipe of the user's then
            out, child_out = os.pipe2(os.O_CLOEXEC)
            err, child_err = os.pipe2(os.O_CLOEXEC)
            # The kernel's stdin shares this file's offset, so that each execution can be given another input.
            self._stdin = os.memfd_create("stdin", os.MFD_CLOEXEC)
        control, child_control = _socket.socketpair()
        fd = control.detach()
        # Before the pipes, so that these are asked after it whether they are empty: see `_finish`.
        self._channel = Channel(loop, fd, fd, self._on_frame, self._on_channel_end)
        self.stdout = Pipe(loop, out, lambda: None)
        self.stderr = Pipe(loop, err, lambda: None)
        child_fds = [child_control.detach(), self._stdin, child_out, child_err]
        try:
            self.start(child_fds)
        finally:
            for child_fd in (child_fds[0], child_out, child_err):
                os.close(child_fd)

    def start(self, fds: List[int]) -> None:
        """Start the process with these descriptors: control, stdin, stdout, stderr."""
        raise NotImplementedError

    def born(self, pid: int | None) -> None:
        """The process exists (or, with None, could not be made)."""
        if pid is None:
            self.died(None)
            return
        self.pid = pid
        if self._stopping:
            self.kill()

    def died(self, status: int | None) -> None:
        """The process has gone."""
        if self.dead:
            return
        self.stdout.drain_all()
        self.stderr.drain_all()
        self._channel.read_all()
        if self.pid is not None:
            self.bury(self.pid, status)
        run, self._run = self._run, None
        self.dead = True
        if run is not None:
            self.end_run(run, status)
        self._close()
        self._is_ready()

    def bury(self, pid: int, _status: int | None) -> None:
        """Kill what the dead process has left."""
        self._kill_tree(pid)

    def end_run(self, run: Run, status: int | None) -> None:
        """The process has died while it was executing something, or the program that took it over has ended."""
        if self._replaced and status is not None and os.WIFEXITED(status):
            code = exit_code(status)
            error = None if code == 0 else outcome.replaced(code)
            run.on_done({"id": self._sequence, "exit_code": code, "survived": False, "error": error})
        else:
            run.on_lost(status)

    def program(self) -> bytes:
        """The command line of the interpreter."""
        return command_line(os.getpid())

    @property
    def usable(self) -> bool:
        """Whether another execution can begin here."""
        return not self.dead and not self._stopping

    def warm_up(self, ready: Callable[[], None]) -> None:
        """Have the process load and touch what executions need; `ready` follows, also if it dies."""
        self._ready = ready
        self._channel.send({"id": 0, "op": "warm"})

    def _is_ready(self) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            ready()

    def setup(self, cwd: str | None, env: Dict[str, str]) -> None:
        """Give the context its own directory and environment, before the first execution."""
        self._channel.send({"id": 0, "op": "setup", "cwd": cwd, "env": env})

    def reseed(self) -> None:
        """This machine is a copy: the interpreter must not go on to draw the numbers that the original draws."""
        self._channel.send({"id": 0, "op": "reseed"})

    def forget(self) -> None:
        """Be as before the first execution."""
        self._channel.send({"id": 0, "op": "forget"})

    def execute(self, run: Run, request: Dict[str, Any], code: bytes, stdin: bytes) -> None:
        """Begin an execution; `run` hears of its results and its end."""
        # What an earlier execution left running wrote this: it is none of this one's output.
        self.stdout.drain()
        self.stderr.drain()
        late = self.stdout.take_late() + self.stderr.take_late()
        if late:
            run.late = late
        self._sequence += 1
        self._run = run
        self._began = self._loop.time()
        self.stdout.capture, self.stderr.capture = run.stdout, run.stderr
        if stdin or self._had_stdin:
            self._give_input(stdin)
        self.transmit({"id": self._sequence, "op": "execute", "stdin": bool(stdin), **request}, code)
        self._channel.flush()

    def transmit(self, header: Header, code: bytes) -> None:
        """Send an execution to the process."""
        self._channel.send(header, code)

    def inherit(self, legacy: bytes) -> None:
        """Take over the state of a kernel that has ended."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """SIGINT to the process group, as Ctrl-C would."""
        self.signal(signal.SIGINT)

    def signal(self, number: int) -> None:
        """A signal to the process group."""
        if self.pid is not None and not self.dead:
            try:
                os.killpg(self.pid, number)
            except OSError:
                send_signal(self.pid, number)

    def kill(self) -> None:
        """Kill the process and all that it started. `died` follows."""
        self._stopping = True
        if self.pid is not None and not self.dead:
            self._kill_tree(self.pid)

    def kill_what_it_started(self) -> None:
        """Kill what the execution that has just ended has started; the process itself goes on, if it is still there."""
        if self.pid is None:
            return
        since = self._began
        if int(self._ended * CLOCK_TICKS) == int(since * CLOCK_TICKS):
            since += 1 / CLOCK_TICKS  # what began in this tick may be of the execution before
        kill_started(self._settings.uid, self.pid, since=since, others=self.others())

    def flush(self) -> None:
        """Send what is queued for the kernel."""
        self._channel.flush()

    def hold(self, *, reading: bool) -> None:
        """Stop or resume taking output, while the host is slow."""
        if not self.dead:
            self._channel.hold(reading=reading)
            self.stdout.hold(reading=reading)
            self.stderr.hold(reading=reading)

    def _give_input(self, data: bytes) -> None:
        self._had_stdin = bool(data)
        os.ftruncate(self._stdin, 0)
        view = memoryview(data)
        offset = 0
        while offset < len(view):
            offset += os.pwrite(self._stdin, view[offset:], offset)
        os.lseek(self._stdin, 0, os.SEEK_SET)

    def _kill_tree(self, pid: int) -> None:
        # Between executions an orphan is somebody's daemon, left behind on purpose.
        since = self._began if self._run is not None else None
        kill_tree(self._settings.uid, pid, since=since, others=self.others())

    def _on_frame(self, header: Header, payload: bytes) -> None:
        run = self._run
        if header.get("ev") == "ready":
            self._is_ready()
            return
        if run is None or header["id"] != self._sequence:
            return  # a thread that went on after its execution
        try:
            self._gather()
            if header.get("ev") == "result":
                if header.get("last") is True:
                    self._last = self._heard
                run.on_result(header, payload)
            elif header.get("ev") == "done":
                self._finish(run, header)
            else:
                self.kill()
        except (TypeError, ValueError):
            self.kill()

    def _gather(self) -> None:
        """Take the output that was written before the frame that has come."""
        # The kernel flushed before it sent this: what it wrote is in the pipes by now. Where this frame is what woke us
        # up, the loop knows already whether they are empty, because it asked them after the channel.
        rounds = self._loop.rounds
        if self._last != rounds:  # else it was sent together with the frame before it
            for pipe in (self.stdout, self.stderr):
                if self._heard == rounds:
                    pipe.drain_all()
                else:
                    pipe.drain()
        self._heard = rounds

    def _finish(self, run: Run, header: Header) -> None:
        run.on_done(header)
        self._run = None
        self._ended = self._loop.time()
        self.stdout.capture = self.stderr.capture = None

    def _on_channel_end(self) -> None:
        # Closed by user code, or nonsense was sent: either way this kernel cannot be talked to any more.
        now = command_line(self.pid) if self.pid is not None and self._run is not None else b""
        if now and now != self.program():
            self._replaced = self._stopping = True  # the other program may run to its end
            return
        self.cut_off = bool(now)
        self.kill()

    def _close(self) -> None:
        self.stdout.close()
        self.stderr.close()
        self._channel.close()
        os.close(self._stdin)
