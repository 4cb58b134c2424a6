"""One QEMU microVM: its process, its memory, its channel, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from emberbox.errors import SnapshotFailed, VmConnectionError, VmNotAvailable
from emberbox.host.cgroups import MachineGroup
from emberbox.host.rundir import processes_of
from emberbox.host.spawner import Process, Spawner
from emberbox.images.store import Image
from emberbox.machines.channel import Channel
from emberbox.machines.contract import MachineState
from emberbox.machines.microvm.machine import MicroVm
from emberbox.machines.microvm.serial import SerialLog
from emberbox.machines.qemu.checkpoint import migrate, save_devices
from emberbox.machines.qemu.memory import Mapped, PagesFile
from emberbox.machines.qemu.qmp import Qmp, QmpError
from emberbox.machines.qemu.shared_memory import SharedMemory, save_memory
from emberbox.machines.qemu.snapshot_files import BASE, PAGES, STATE, Fingerprint
from emberbox.machines.qemu.wake_handshake import greet

_T = TypeVar("_T")
_MEMORY = "/memfd:emberbox-ram"
_STATE_SECONDS = 120.0


class QemuMachine(MicroVm[Channel]):
    """A microVM that `QemuFactory` started.

    Args:
        directory: its folder.
        spawner: started its process, and reports its end.
        group: its cgroup, or None.
        fingerprint: what its snapshots depend on (snapshot_files.py).
        image: what it was booted from; None where that is not known any more.
        memory: bytes of the guest's memory.
        on_dead: told its id when it has ended and everything is cleared away.
    """

    backend = "qemu"
    program = "QEMU"

    def __init__(
        self,
        directory: Path,
        spawner: Spawner,
        group: MachineGroup | None,
        fingerprint: Fingerprint,
        image: Image | None,
        memory: int,
        on_dead: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(directory.name, spawner, group, on_dead)
        self.directory = directory
        self.fingerprint = fingerprint
        self.image = image
        self.memory = memory
        self.qmp: Qmp | None = None
        self.base: SharedMemory | None = None
        """What its memory is a private copy of; None: it has a memory of its own."""
        self._ram_fd = -1
        """That one, which it shares with this process."""
        self._agent: socket.socket | None = None
        self._greetings: socket.socket | None = None

    def _qmp(self) -> Qmp:
        if self.qmp is None:
            raise VmNotAvailable(f"Machine {self.id} has no QEMU: it is {self._state}.")
        return self.qmp

    # --- steps of its start ---------------------------------------------------------------------------------------

    def attach(self, streams: Sequence[socket.socket], number: int = 0) -> None:
        """Take over our ends of its four sockets (`sockets`). `number`: of the first call of QMP."""
        log, agent, greetings, qmp = streams
        agent.setblocking(False)
        greetings.setblocking(False)
        self.serial = SerialLog(log.detach())
        self._agent, self._greetings = agent, greetings
        self.qmp = Qmp(qmp, number, self._channel_broke)

    @property
    def ready(self) -> bool:
        """The guest's first process has said that it runs, or it is a copy of one in which it did."""
        return self.base is not None or (self.serial is not None and self.serial.ready.is_set())

    def use(self, memory: SharedMemory | int) -> None:
        """Its memory, which is given up with it: a `SharedMemory` that is held for it, or the descriptor of its own."""
        if isinstance(memory, SharedMemory):
            self.base = memory
        else:
            self._ram_fd = memory

    @property
    def memory_fd(self) -> int:
        return self._ram_fd if self.base is None else self.base.fd

    def taken_over(self, process: Process) -> None:
        """Its QEMU runs, and was another process's."""
        self._outlives = True
        self.prepared(process)

    def must_fit(self, snapshot: Fingerprint) -> None:
        """Raises VmNotAvailable: this blank cannot become a copy of that machine."""
        if self.base is None or self.base.digest != snapshot.base:
            raise VmNotAvailable(f"The blank {self.id} was made for copies of another machine.")

    async def ready_for_calls(self, seconds: float) -> None:
        """Wait until QEMU takes commands; raises QmpError, VmConnectionError, TimeoutError."""
        await self._unless_dead(self._qmp().begin(seconds))

    async def greeted(self, seconds: float) -> None:
        """The guest's first process runs, has the right time and fresh randomness; raises VmConnectionError."""
        assert self._greetings is not None  # noqa: S101 (for the type checker)
        await self._unless_dead(greet(self._greetings, seconds))

    async def connect(self, seconds: float, last_request: int | None = None) -> None:
        """Open the channel: the agent runs.

        Args:
            seconds: until the guest must have answered.
            last_request: of the channel's numbers, when the agent is a copy: what comes before its first answer is
                for the original.

        Raises:
            VmConnectionError: nobody answered in time, or the machine died.
        """
        await self.greeted(seconds)
        if self._agent is None:
            raise VmConnectionError("The machine was ended.")
        other = os.dup(self._agent.fileno())
        fd = self._agent.detach()
        self._agent = None
        self._channel = Channel(other, fd, self._channel_broke)
        if last_request is not None:
            self._channel.resync(last_request)
        self._to(MachineState.RUNNING)

    async def fill(self, directory: Path) -> None:
        """Become a copy of the machine that was written down there; raises QmpError, VmConnectionError, OSError."""
        if (directory / PAGES).exists():
            await asyncio.to_thread(self._load_pages, directory / PAGES)
        fd = os.open(directory / STATE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await self._unless_dead(self._load_state(fd))
        finally:
            os.close(fd)

    def _load_pages(self, path: Path) -> None:
        assert self._process is not None  # noqa: S101 (for the type checker)
        with PagesFile(path) as pages:
            if pages.size != self.memory:
                raise VmNotAvailable(f"{path} is of a machine with another memory.", retryable=False)
            Mapped.find(self._process.pid, self.memory).load(pages)

    async def _load_state(self, fd: int) -> None:
        qmp = self._qmp()
        await qmp.call("getfd", fds=[fd], fdname="state")
        with qmp.watch("MIGRATION") as events:
            await qmp.call("migrate-incoming", uri="fd:state")
            async with asyncio.timeout(_STATE_SECONDS):
                while (status := (await events.get()).get("status")) not in ("completed", "failed"):
                    pass
        if status == "failed":
            raise QmpError("QEMU did not take the state of the snapshot.")
        await qmp.call("cont")

    # --- snapshots ------------------------------------------------------------------------------------------------

    async def checkpoint(self, directory: Path) -> int:
        building = directory.with_name(f".{directory.name}")
        try:
            building.mkdir(mode=0o700)
            async with self._stopped() as qmp:
                save = save_devices if self.fingerprint.method == "devices" else migrate
                await self._unless_dead(save(qmp, building / STATE))
                if self.fingerprint.method == "devices":
                    await self._in_thread(self._write_memory, building)
            size = await self._in_thread(self._finish, building)
            building.rename(directory)
        except BaseException as exc:
            await asyncio.to_thread(shutil.rmtree, building, ignore_errors=True)
            if isinstance(exc, QmpError | VmConnectionError | TimeoutError):
                raise SnapshotFailed(f"{self.id} cannot be written down: {exc or 'time-out'}") from exc
            if isinstance(exc, OSError):
                raise SnapshotFailed(f"Cannot write a snapshot to {directory}: {exc.strerror or exc}.") from exc
            raise
        return size

    @contextlib.asynccontextmanager
    async def _stopped(self) -> AsyncIterator[Qmp]:
        """The processors stand still meanwhile. A machine that does not go on is killed."""
        async with self._calling:
            qmp = self._qmp()
            await qmp.call("stop")
            try:
                yield qmp
            finally:
                try:
                    await qmp.call("cont")
                except (QmpError, VmConnectionError) as exc:
                    self._background(self._died(f"it did not go on after a snapshot: {exc.message}"))

    async def _in_thread(self, work: Callable[[Path, SharedMemory], _T], building: Path) -> _T:
        """Do something with the memory, which stays open until it is done, whatever becomes of the machine and of the
        caller; nothing is written to the folder after that."""
        base = self.base.hold() if self.base is not None else SharedMemory(os.dup(self._ram_fd), "")
        done = self._loop.run_in_executor(None, work, building, base)  # no task: those end with their loop
        done.add_done_callback(lambda _: base.release())
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            while not done.done():
                with contextlib.suppress(asyncio.CancelledError):  # once more
                    await asyncio.wait([done])
            raise

    def _write_memory(self, building: Path, base: SharedMemory) -> None:
        """What must be copied while the processors stand still."""
        if self.base is not None and self._process is not None:
            Mapped.find(self._process.pid, self.memory).write_own_pages(building / PAGES)
        else:
            digest = save_memory(base.fd, building / BASE)
            self.fingerprint.model_copy(update={"base": digest}).write(building)

    def _finish(self, building: Path, base: SharedMemory) -> int:
        """What can be done while the machine runs; bytes that the snapshot takes on the disk."""
        if self.fingerprint.method == "stream":
            self.fingerprint.model_copy(update={"base": ""}).write(building)
        elif base.digest:
            digest = base.save(building / BASE)
            self.fingerprint.model_copy(update={"base": digest}).write(building)
        # a file that others have as well takes no room of its own
        return sum(info.st_blocks * 512 for path in building.iterdir() if (info := path.stat()).st_nlink == 1)

    # --- stop, go on ----------------------------------------------------------------------------------------------

    async def pause(self, *, idle: bool = False) -> None:
        del idle  # a guest that waits uses no processor, and one call stops any
        if self._state is MachineState.RUNNING:
            async with self._calling:
                await self._qmp().call("stop")

    async def resume(self) -> None:
        if self._state is MachineState.RUNNING:
            async with self._calling:
                await self._qmp().call("cont")

    async def go_on_after_another(self) -> None:
        """Take QEMU's attention, and let the processors go on that another process may have stopped."""
        await self._qmp().interrupt()
        await self._qmp().call("cont")

    def _kept(self) -> tuple[list[int], dict[str, int]] | None:
        if self._process is None or self._greetings is None or self.serial is None:
            return None
        fds = [self.serial.fileno(), self.channel.fds[0], self._greetings.fileno(), self._qmp().fileno()]
        return fds, {"memory": self.memory}

    # --- the end --------------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        super().abandon()
        if self.qmp is not None:
            self.qmp.abandon()
        self._close_memory()

    async def _kill_others(self) -> None:
        if self.serial is not None:
            self.serial.text()  # its last words, before the socket is closed
        if self.spawner.gone or self._process is None:
            # nobody reports their end, or a start was cut short; the id in their command lines is random
            for pid in await asyncio.to_thread(processes_of, self.id):
                with contextlib.suppress(OSError):
                    os.kill(pid, 9)

    async def _close_more(self) -> None:
        if self.qmp is not None:
            self.qmp.close()
        for stream in (self._agent, self._greetings):
            if stream is not None and stream.fileno() >= 0:  # somebody may be waiting for it, and be cancelled later
                self._loop.remove_reader(stream.fileno())
                self._loop.remove_writer(stream.fileno())
        self._close_memory()

    def _close_memory(self) -> None:
        for stream in (self._agent, self._greetings):
            if stream is not None:
                stream.close()
        self._agent = self._greetings = None
        if self.base is not None:
            self.base.release()
            self.base = None
        if self._ram_fd >= 0:
            os.close(self._ram_fd)
            self._ram_fd = -1

    def _remove_files(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


def memory_fd_of(pid: int, size: int, flags: int) -> int:
    """Open the memory, of so many bytes, of a QEMU that another process started; raises OSError.

    A guest that has taken its QEMU over chooses what stands behind its descriptors, and may change it at any time. So
    what is looked at is held first, by a descriptor that can do nothing, and opened only where it is what it should be.
    """
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            held = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                ours = f"/proc/self/fd/{held}"
                if os.readlink(ours).startswith(_MEMORY) and os.fstat(held).st_size == size:  # noqa: PTH115 (no path)
                    return os.open(ours, flags | os.O_CLOEXEC)
            finally:
                os.close(held)
    raise OSError(2, "its memory was not found")


def sockets() -> tuple[list[socket.socket], list[socket.socket]]:
    """Our ends and QEMU's ends of the four sockets of a machine: log, agent, greetings, QMP. Raises OSError."""
    ours: list[socket.socket] = []
    theirs: list[socket.socket] = []
    try:
        for _ in range(4):
            here, there = socket.socketpair()
            ours.append(here)
            theirs.append(there)
    except OSError:
        close_all([*ours, *theirs])
        raise
    return ours, theirs


def close_all(streams: list[Any]) -> None:
    """Close each."""
    for stream in streams:
        stream.close()
