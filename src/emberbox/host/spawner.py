"""The host's end of the spawner (see `spawner_main`): start programs, hear of their end, signal them, all PID-safe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from emberbox.errors import Internal, VmNotAvailable
from emberbox.host import spawner_main

_REQUEST_TIMEOUT = 15.0
_NAMESPACES = (
    "As an ordinary user it needs user namespaces: allow them (user.max_user_namespaces and, where it exists, "
    "kernel.unprivileged_userns_clone of sysctl(8)), or run as root."
)


@dataclass(slots=True)
class Process:
    """A child of the spawner. `ended` resolves to its exit code (negative for a signal)."""

    pid: int
    ended: asyncio.Future[int]
    pidfd: int = -1
    """Signals go through this descriptor, without a round trip to the spawner. Closed when the process has ended."""

    def send(self, number: int) -> bool:
        """Signal it through its pidfd; False where that cannot be done."""
        if self.pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return True  # it has ended, and that will be heard of
        except OSError:
            return False  # EPERM: it has become another user's; EBADF, ENOSYS: odd kernels
        return True

    def close(self) -> None:
        """Close the descriptor."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


@dataclass(frozen=True, slots=True)
class OwnRoot:
    """A root directory for one program."""

    at: Path
    """An empty folder, on which it is made; the host sees nothing of that."""
    files: Sequence[Path]
    """Files, folders and links of the host that are to be found there, read-only."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a program is not to have. All but `limits` is for root only; the gid is that of `uid` (-1: it stays)."""

    limits: Mapping[int, int] = field(default_factory=dict)
    """Of setrlimit(2), by number."""
    uid: int = -1
    groups: Sequence[int] = ()
    """Other groups, where there is a uid."""
    network: bool = False
    """A network of its own, in which nothing is."""
    namespaces: bool = False
    """That, and no file system that can be written to."""
    root: OwnRoot | None = None
    """With namespaces: of the host's files it finds these only, and no process but its own."""


@dataclass(slots=True)
class Spawner:
    """One spawner process. Use `await Spawner.start(run_dir)` and `await spawner.close()`."""

    run_dir: Path
    pid: int
    _socket: socket.socket
    _wait: Callable[[float], object]
    """Waits so many seconds for the end of the process."""
    _loop: asyncio.AbstractEventLoop
    _up: asyncio.Future[None]
    _next_id: int = 0
    _replies: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    _processes: dict[int, Process] = field(default_factory=dict)
    _early_exits: dict[int, int] = field(default_factory=dict)
    _sending: asyncio.Lock = field(default_factory=asyncio.Lock)
    _room: asyncio.Future[None] | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    async def start(
        cls, run_dir: Path, lock_fd: int, *, cgroups: Sequence[Path] = (), user_namespace: bool | None = None
    ) -> Spawner:
        """Start the process. `run_dir` is removed by it when the control socket ends; it shares the lock `lock_fd`,
        so that nobody takes the directory for abandoned before it is done.

        `cgroups`: directories in which groups that begin with the name of `run_dir` are removed likewise.
        `user_namespace`: start it in one of its own, where it is root. By default so for an ordinary user, because
        gVisor needs that much.
        """
        prefix: list[str] = []
        if os.getuid() != 0 if user_namespace is None else user_namespace:
            unshare = shutil.which("unshare")
            if unshare is None:
                raise VmNotAvailable("`unshare` was not found.", remediation="Install the package util-linux.")
            prefix = [unshare, "--user", "--map-root-user", "--"]
        loop = asyncio.get_running_loop()
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = spawner_main.__file__
        descriptors = [str(there.fileno()), str(lock_fd)]
        python = [sys.executable, "-I", "-S", script, *descriptors, str(run_dir), *map(str, cgroups)]
        argv = [*prefix, *python]
        with there, tempfile.TemporaryFile() as words:
            process = subprocess.Popen(  # noqa: ASYNC220 (a short-lived fork of one small helper)
                argv,
                pass_fds=[there.fileno(), lock_fd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=words,
                cwd="/",
                env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
                start_new_session=True,
            )
            there.close()
            here.setblocking(False)
            spawner = cls(run_dir, process.pid, here, process.wait, loop, loop.create_future())
            loop.add_reader(here.fileno(), spawner._readable)
            try:
                async with asyncio.timeout(_REQUEST_TIMEOUT):
                    await spawner._up
            except BaseException as exc:
                await asyncio.shield(asyncio.ensure_future(spawner.close()))
                if not isinstance(exc, OSError | TimeoutError):
                    raise
                words.seek(0)
                why = words.read(2000).decode("utf-8", "replace").strip() or exc
                raise VmNotAvailable(f"The spawner did not start: {why}.", remediation=_NAMESPACES) from exc
        return spawner

    @classmethod
    async def adopt(cls, run_dir: Path) -> tuple[Spawner, int, list[str]]:
        """Take over the spawner of an Emberbox that is gone, with what it kept: also the lock of `run_dir`, and the
        names of the machines.

        Raises:
            VmNotAvailable: there is none that waits, or it speaks otherwise.
        """
        loop = asyncio.get_running_loop()
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            control.connect(str(run_dir / spawner_main.ADOPT))
            peer = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid = struct.unpack("3i", peer)[0]
            pidfd = os.pidfd_open(pid)
        except OSError as exc:
            control.close()
            raise VmNotAvailable(f"Nothing waits in {run_dir}: {exc.strerror}.") from exc
        control.setblocking(False)
        spawner = cls(run_dir, pid, control, partial(_wait_for, [pidfd]), loop, loop.create_future())
        loop.add_reader(control.fileno(), spawner._readable)
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT):
                await spawner._up
            lock_fd, names = await spawner._kept()
        except BaseException as exc:
            spawner.let_go()  # another may understand it
            if isinstance(exc, OSError | TimeoutError):
                raise VmNotAvailable(f"The spawner of {run_dir} does not answer.") from exc
            raise
        return spawner, lock_fd, names

    async def _kept(self) -> tuple[int, list[str]]:
        reply = await self._request({"op": "kept"})
        (lock_fd,) = reply["fds"]
        if reply["version"] != spawner_main.VERSION:
            os.close(lock_fd)
            raise VmNotAvailable(f"The spawner of {self.run_dir} is of another version of Emberbox.")
        return lock_fd, reply["kept"]

    async def keep(
        self, name: str, pids: Sequence[int], fds: Sequence[int], info: Mapping[str, int], seconds: float
    ) -> None:
        """Spare these processes for so long when this Emberbox dies, and hold these descriptors (ten at most)."""
        request = {"op": "keep", "name": name, "pids": list(pids), "info": dict(info), "seconds": seconds}
        await self._request(request, fds)

    async def drop(self, name: str) -> None:
        """Undo `keep`: the descriptors are closed."""
        with contextlib.suppress(VmNotAvailable):
            await self._request({"op": "drop", "name": name})

    async def take(self, name: str) -> tuple[list[int], list[int], dict[str, int]]:
        """What was kept under a name: processes, descriptors, and what was said of them."""
        reply = await self._request({"op": "take", "name": name})
        return reply["pids"], reply["fds"], reply["info"]

    @property
    def gone(self) -> bool:
        """The process has ended, or was told to."""
        return self._socket.fileno() < 0

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        env: Mapping[str, str],
        cwd: str = "/",
        join: Sequence[Path] = (),
        more: Sequence[int] = (),
        confine: Confinement | None = None,
    ) -> Process:
        """Start a program with these descriptors (`more` become 3, 4, ..), in these cgroups (paths of `cgroup.procs`
        files).

        Raises:
            VmNotAvailable: the program or the cgroup could not be had; the message says which.
        """
        request: dict[str, Any] = {
            "op": "spawn",
            "argv": list(argv),
            "env": dict(env),
            "cwd": cwd,
            "join": [str(p) for p in join],
        }
        if confine is not None:
            limits = [[number, value] for number, value in confine.limits.items()]
            own = confine.root
            request["confine"] = {
                "limits": limits,
                "uid": confine.uid,
                "groups": list(confine.groups),
                "network": confine.network,
                "namespaces": confine.namespaces,
                "root": None if own is None else {"at": str(own.at), "files": [str(path) for path in own.files]},
            }
        reply = await self._request(request, [stdin, stdout, stderr, *more])
        return self._track(int(reply["pid"]))

    async def own(self, pid: int) -> Process:
        """Follow an orphan of a program that was spawned here, so that its end is reported and it can be signalled."""
        if pid in self._processes:
            return self._processes[pid]
        process = self._track(pid)
        try:
            await self._request({"op": "own", "pid": pid})
        except BaseException:
            self._processes.pop(pid, None)
            process.close()
            raise
        return process

    async def signal(self, process: Process, number: int) -> None:
        """Send a signal; a process that has ended is left alone."""
        if process.ended.done() or process.send(number):
            return
        with contextlib.suppress(VmNotAvailable):
            await self._request({"op": "signal", "pid": process.pid, "signal": int(number)})

    def abandon(self) -> None:
        """Close the socket, without an event loop: the process kills what it owns, cleans up and ends."""
        self._keep_nothing()
        self._socket.close()
        for process in self._processes.values():
            process.close()
        self._wait(20)

    def let_go(self) -> None:
        """Disconnect from a spawner that was adopted; it goes on waiting for another."""
        self._disconnect()
        self._wait(0)

    async def close(self) -> None:
        """End the spawner: whatever it still owns is killed and the run directory removed."""
        self._keep_nothing()
        self._disconnect()
        await asyncio.to_thread(self._wait, 20)

    def _keep_nothing(self) -> None:
        """Nothing is to outlive this end: it is meant."""
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps({"id": 0, "op": "drop", "name": None}).encode())

    def _track(self, pid: int) -> Process:
        process = Process(pid, self._loop.create_future())
        if pid in self._early_exits:
            process.ended.set_result(self._early_exits.pop(pid))
        else:
            self._processes[pid] = process
        return process

    async def _request(self, message: dict[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        self._next_id += 1
        number = self._next_id
        data = json.dumps({"id": number, **message}).encode()
        if len(data) > spawner_main.MAX_MESSAGE:
            raise Internal(f"A request to the spawner of {len(data)} bytes is too long.")
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._replies[number] = future
        try:
            # not wait_for: in Python 3.11 it swallows a cancellation that comes together with the answer
            async with asyncio.timeout(_REQUEST_TIMEOUT):
                await self._send(data, fds)
                reply = await future
        except (OSError, TimeoutError) as exc:
            raise VmNotAvailable(f"The spawner does not answer: {exc or 'time-out'}.") from exc
        finally:
            self._replies.pop(number, None)
        if "error" in reply:
            raise VmNotAvailable(f"Could not {message['op']} a helper process: {reply['error']}.", details=reply)
        return reply

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        async with self._sending:
            while True:
                try:
                    socket.send_fds(self._socket, [data], list(fds))
                except BlockingIOError:
                    await self._wait_for_room()
                else:
                    return

    async def _wait_for_room(self) -> None:
        """Many requests at once fill the socket."""
        room = self._room = self._loop.create_future()
        self._loop.add_writer(self._socket.fileno(), self._writable)
        try:
            await room
        finally:
            self._room = None
            if not self.gone:
                self._loop.remove_writer(self._socket.fileno())

    def _writable(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _readable(self) -> None:
        while True:
            try:
                data, fds, flags, _ = socket.recv_fds(
                    self._socket, spawner_main.MAX_MESSAGE, spawner_main.MAX_FDS, flags=socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                data, fds, flags = b"", [], 0
            if not data:
                self._disconnect()
                return
            message = json.loads(data)
            if flags & socket.MSG_CTRUNC and "owned" not in message:  # a pidfd is dispensable
                for fd in fds:
                    os.close(fd)
                message, fds = {"id": message.get("id"), "error": "descriptors were lost on the way"}, []
            self._take(message, fds)

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        """One message of the process, with the descriptors that came beside it."""
        if "owned" in message:
            for fd in fds:
                self._take_pidfd(message["owned"], fd)
        elif fds:
            message["fds"] = fds
        if "ready" in message:
            if not self._up.done():
                self._up.set_result(None)
        elif "exit" in message:
            self._exited(message["exit"], message["status"])
        else:
            self._answer(message)

    def _answer(self, message: dict[str, Any]) -> None:
        future = self._replies.get(message["id"])
        if future is not None and not future.done():
            future.set_result(message)
            return
        for fd in message.get("fds", []):  # whoever asked was cancelled
            os.close(fd)
        if "pid" in message:
            self._end_unwanted(self._track(message["pid"]))

    def _take_pidfd(self, pid: int, fd: int) -> None:
        process = self._processes.get(pid)
        if process is not None and process.pidfd < 0:
            process.pidfd = fd
        else:
            os.close(fd)  # whoever asked for it was cancelled

    def _end_unwanted(self, process: Process) -> None:
        """Whoever asked for this process was cancelled before it started."""
        task = self._loop.create_task(self.signal(process, signal.SIGKILL))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _exited(self, pid: int, status: int) -> None:
        process = self._processes.pop(pid, None)
        if process is None:
            self._early_exits[pid] = status  # the reply to `spawn` is not read yet
        elif not process.ended.done():
            process.close()
            process.ended.set_result(status)

    def _disconnect(self) -> None:
        if self.gone:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        if self._room is not None and not self._room.done():
            self._room.set_exception(OSError("the spawner is gone"))
        if not self._up.done():
            self._up.set_exception(OSError("it ended"))
            self._up.exception()  # nobody waiting for it is no leak
        for future in self._replies.values():
            if not future.done():
                future.set_exception(OSError("the spawner is gone"))
        for process in self._processes.values():
            process.close()
            if not process.ended.done():
                process.ended.set_result(-9)
        self._processes.clear()


def _wait_for(pidfds: list[int], seconds: float) -> None:
    """Wait for the end of a process that is no child of ours. Done once: the descriptor is closed."""
    while pidfds:
        pidfd = pidfds.pop()
        try:
            select.select([pidfd], [], [], seconds)
        finally:
            os.close(pidfd)
