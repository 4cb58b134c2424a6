"""The Python zygote: a warm interpreter, forked from the agent, that forks one kernel process per context."""

from __future__ import annotations

import _socket
import array
import fcntl
import gc
import json
import os
import select
import signal
import sys

from .limits import restrict
from .loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, NoReturn

    from .limits import Settings
    from .loop import Loop

MESSAGE_SIZE = 1 << 16
KERNEL_FDS = 4
FIRST_FREE_FD = 3
CONTROL_FD = 100
"""Above what user code opens, and below no limit that matters: it is open before the limit is set."""
MSG_CMSG_CLOEXEC = 0x40000000  # not in the socket module


class Zygote:
    """The agent's side: starts the zygote, asks it for kernels, starts it again when it dies."""

    def __init__(self, loop: Loop, settings: Settings, ready: Callable[[str | None], None]) -> None:
        self._loop = loop
        self._settings = settings
        self._ready: Callable[[str | None], None] | None = ready
        self._forks: Dict[int, tuple[Callable[[int | None], None], Callable[[int], None]]] = {}
        self._kernels: Dict[int, Callable[[int], None]] = {}
        self._next = 0
        self.pid = 0
        self._start()

    def fork(self, fds: List[int], born: Callable[[int | None], None], died: Callable[[int], None]) -> None:
        """Ask for a kernel with these descriptors: control, stdin, stdout, stderr.

        `born(pid)` follows (None when no process could be made), and later `died(status)`.
        """
        if not self.pid:
            self._start()
        self._next += 1
        self._forks[self._next] = (born, died)
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds).tobytes())]
        try:
            self._socket.sendmsg([b"%d" % self._next], rights)
        except OSError:
            self._forks.pop(self._next)
            self._loop.later(0, lambda: born(None))

    def _start(self) -> None:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if not self.pid:
            _serve(self._settings, theirs)
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._loop.watch(ours.fileno(), READ, self._on_ready)
        self._loop.on_death(self.pid, self._on_death)

    def _on_ready(self, _events: int) -> None:
        while True:
            try:
                data = self._socket.recv(MESSAGE_SIZE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.pause(self._socket.fileno())
                return
            self._on_message(json.loads(data))

    def _on_message(self, message: Dict[str, Any]) -> None:
        if "ready" in message:
            ready, self._ready = self._ready, None
            if ready is not None:
                ready(message["ready"])
        elif "born" in message:
            born, died = self._forks.pop(message["token"])
            if message["born"] is not None:
                self._kernels[message["born"]] = died
            born(message["born"])
        else:
            died = self._kernels.pop(message["died"], lambda _status: None)
            died(message["status"])

    def _on_death(self, _status: int) -> None:
        self._on_ready(0)
        self._loop.pause(self._socket.fileno())
        self._socket.close()
        # Its kernels have become children of process 1, which is this one inside a machine.
        for pid, died in self._kernels.items():
            self._loop.on_death(pid, died)
        self._kernels.clear()
        forks, self._forks = self._forks, {}
        ready, self._ready = self._ready, None
        if ready is not None:
            ready("the warm-up code ended the interpreter")
        self.pid = 0  # the next `fork` starts another one
        for born, _ in forks.values():
            born(None)


def _serve(settings: Settings, sock: _socket.socket) -> NoReturn:
    """The zygote's process, from its fork to its end."""
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        fd = FIRST_FREE_FD
        os.dup2(sock.fileno(), fd, inheritable=False)
        sock.detach()
        os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
        channel = _socket.socket(fileno=fd)
        problem = _warm_up(settings)
        channel.sendmsg([json.dumps({"ready": problem}).encode()])
        _loop(settings, channel)
    finally:
        os._exit(1)


def _warm_up(settings: Settings) -> str | None:
    """Load what kernels need, with the rights of the user but out of the user's reach.

    Nothing that the user can write to is on the path here: this process can become root again. A kernel adds the
    user's own packages once it has given those rights up.
    """
    import site

    from .kernels import python  # noqa: F401 - loaded here, once, for every kernel

    package_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:] = [path for path in sys.path if path and os.path.abspath(path) != package_root]
    os.chdir("/")
    privileged = os.geteuid() == 0
    if privileged:
        os.setegid(settings.gid)
        os.seteuid(settings.uid)
    os.environ.clear()
    os.environ.update(settings.env)
    site.ENABLE_USER_SITE = False
    site.main()
    sys.path[:0] = settings.python_path
    problem = None
    if settings.warmup:
        try:
            exec(compile(settings.warmup, "<warmup>", "exec"), {"__name__": "__warmup__"})
        except BaseException as exc:  # noqa: BLE001 - the template's code may raise anything; its author must be told
            problem = f"{type(exc).__name__}: {exc}"
    if privileged:
        os.seteuid(0)
        os.setegid(0)
    gc.collect()
    gc.freeze()
    return problem


def _loop(settings: Settings, channel: _socket.socket) -> None:
    wakeup, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    poll = select.poll()
    poll.register(channel.fileno(), READ)
    poll.register(wakeup, READ)
    while True:
        ready = dict(poll.poll())
        if wakeup in ready:
            os.read(wakeup, 4096)
            _report_deaths(channel)
        if channel.fileno() in ready:
            data, rights, _, _ = channel.recvmsg(
                64, _socket.CMSG_SPACE(KERNEL_FDS * array.array("i").itemsize), MSG_CMSG_CLOEXEC
            )
            if not data:
                return
            fds = array.array("i")
            fds.frombytes(rights[0][2])
            channel.sendmsg([json.dumps({"token": int(data), "born": _fork_kernel(settings, list(fds))}).encode()])
            for fd in fds:
                os.close(fd)


def _report_deaths(channel: _socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        channel.sendmsg([json.dumps({"died": pid, "status": status}).encode()])


def _fork_kernel(settings: Settings, fds: List[int]) -> int | None:
    from .kernels import python

    try:
        pid = os.fork()
    except OSError:
        return None
    if pid:
        return pid
    try:
        for target, fd in enumerate(fds[1:]):
            os.dup2(fd, target, inheritable=True)
        control = fcntl.fcntl(fds[0], fcntl.F_DUPFD_CLOEXEC, CONTROL_FD)
        restrict(settings)
        os.closerange(FIRST_FREE_FD, control)
        os.closerange(control + 1, os.sysconf("SC_OPEN_MAX"))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        python.main(control, settings.workdir)
    finally:
        os._exit(1)
