"""The host's end of the spawner (see `spawner_main`): start programs, hear of their end, signal them, all PID-safe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class Spawner:
    """One spawner process. Use `await Spawner.start(run_dir)` and `await spawner.close()`."""

    run_dir: Path
    _socket: socket.socket
    _process: subprocess.Popen[bytes]
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
        python = [sys.executable, "-I", "-S", script, str(there.fileno()), str(run_dir), *map(str, cgroups)]
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
            spawner = cls(run_dir, here, process, loop, loop.create_future())
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
    ) -> Process:
        """Start a program with these descriptors, in these cgroups (paths of `cgroup.procs` files).

        Raises:
            VmNotAvailable: the program or the cgroup could not be had; the message says which.
        """
        request = {"op": "spawn", "argv": list(argv), "env": dict(env), "cwd": cwd, "join": [str(p) for p in join]}
        reply = await self._request(request, [stdin, stdout, stderr])
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
            raise
        return process

    async def signal(self, process: Process, number: int) -> None:
        """Send a signal; a process that has ended is left alone."""
        if process.ended.done():
            return
        with contextlib.suppress(VmNotAvailable):
            await self._request({"op": "signal", "pid": process.pid, "signal": int(number)})

    def abandon(self) -> None:
        """Close the socket, without an event loop: the process kills what it owns, cleans up and ends."""
        self._socket.close()
        self._process.wait(20)

    async def close(self) -> None:
        """End the spawner: whatever it still owns is killed and the run directory removed."""
        self._disconnect()
        await asyncio.to_thread(self._process.wait, 20)

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
                data = self._socket.recv(spawner_main.MAX_MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._disconnect()
                return
            message = json.loads(data)
            if "ready" in message:
                if not self._up.done():
                    self._up.set_result(None)
                continue
            if "exit" in message:
                self._exited(message["exit"], message["status"])
                continue
            future = self._replies.get(message["id"])
            if future is not None and not future.done():
                future.set_result(message)
            elif "pid" in message:
                self._end_unwanted(self._track(message["pid"]))

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
            if not process.ended.done():
                process.ended.set_result(-9)
        self._processes.clear()
