"""One Firecracker microVM: its process, its channel, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from emberbox.errors import SnapshotFailed, VmConnectionError
from emberbox.host.cgroups import MachineGroup
from emberbox.host.spawner import Process, Spawner
from emberbox.machines.contract import MachineState
from emberbox.machines.firecracker import snapshot_files, vsock
from emberbox.machines.firecracker.api import ApiError, FirecrackerApi
from emberbox.machines.firecracker.balloon import WORTH_MB, BalloonReclaimer, private_mb
from emberbox.machines.firecracker.channel import VmChannel
from emberbox.machines.firecracker.jail_layout import MEMORY, STATE, JailLayout, kill_processes
from emberbox.machines.firecracker.vsock import BOOT_TRY_SECONDS, FIRST_TRY_SECONDS
from emberbox.machines.microvm.machine import MicroVm
from emberbox.machines.microvm.processor import emulated
from emberbox.machines.microvm.serial import SerialLog

_CHANGES = "changes"
_LAST = "last"
"""In the folder of a machine: the memory file of its last snapshot, which may be deleted before the machine ends."""
_AGAIN_SECONDS = 60.0
"""To reach the agent again after a snapshot: a host may be as slow as that, and the machine is given up afterwards."""


@dataclass(frozen=True, slots=True)
class DiffBase:
    """What the changes that Firecracker counts are changes of."""

    memory: Path | None
    """The file of the last snapshot; None: of a machine's memory before it was booted, which is empty."""


class FirecrackerMachine(MicroVm[VmChannel]):
    """A microVM that `FirecrackerFactory` started.

    Args:
        place: its folder.
        spawner: started its process, and reports its end.
        group: its cgroup, or None.
        fingerprint: what its snapshots depend on (snapshot_files.py).
        on_dead: told its id when it has ended and everything is cleared away.
    """

    backend = "firecracker"
    program = "Firecracker"

    def __init__(
        self,
        place: JailLayout,
        spawner: Spawner,
        group: MachineGroup | None,
        fingerprint: snapshot_files.Fingerprint,
        on_dead: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(place.machine_id, spawner, group, on_dead)
        self.place = place
        self.fingerprint = fingerprint
        self.api = FirecrackerApi(place.api)
        self._balloon = BalloonReclaimer(self.api, place.vsock)
        self._base: DiffBase | None = None
        """Of the next snapshot; None: that must be whole."""
        self._halted = False
        """By `pause`."""

    # --- steps of its start ---------------------------------------------------------------------------------------

    def attach(self, serial_fd: int) -> None:
        """Take over the end of the pipe with Firecracker's output."""
        self.serial = SerialLog(serial_fd)

    def taken_over(self, process: Process) -> None:
        """Its Firecracker runs, and was another process's."""
        self._outlives = True
        self.prepared(process)
        self._to(MachineState.RUNNING)

    async def ready_for_calls(self) -> None:
        """Wait until Firecracker listens to its API; raises ApiError, VmConnectionError."""
        await self._unless_dead(self.api.appeared())

    async def connect(self, seconds: float, last_request: int | None = None) -> None:
        """Open the channel: the agent runs.

        Args:
            seconds: for all attempts.
            last_request: of the channel's numbers, when the agent is a copy.

        Raises:
            VmConnectionError: nobody answered in time, or the machine died.
        """
        first_try = FIRST_TRY_SECONDS if last_request is not None else BOOT_TRY_SECONDS
        fds = await self._unless_dead(vsock.connect(self.place.vsock, seconds, first_try))
        self._channel = VmChannel(*fds, self._channel_broke)
        if last_request is not None:
            self._channel.number_after(last_request)
        if not self._outlives:
            self._base = DiffBase(None if last_request is None else self.place.root / MEMORY)
        self._to(MachineState.RUNNING)

    # --- snapshots ------------------------------------------------------------------------------------------------

    async def give_back(self) -> int:
        """Let the guest give back what it has freed, where that is much; MiB that the host got."""
        if self._halted or self._state is not MachineState.RUNNING:
            return 0
        given = await self._balloon.give_back(self._held_mb)
        if given >= WORTH_MB:
            # pages that were not written to since the last snapshot, but freed, are still in its file: look at them all
            self._base = None
        return given

    def _held_mb(self) -> int | None:
        return None if self._process is None else private_mb(self._process.pid)

    async def checkpoint(self, directory: Path) -> int:
        building = directory.with_name(f".{directory.name}")
        try:
            building.mkdir(mode=0o700)
            async with self._calling:
                if not emulated():  # there it takes half a minute
                    await self.give_back()
            async with self._stopped():
                base, self._base = self._base, None  # whatever goes wrong from here on, the next one is whole
                names = self.place.written(STATE), self.place.written(MEMORY)
                await self.api.create_snapshot(*names, whole=base is None)
            size = await asyncio.to_thread(self._collect, building, base)
            building.rename(directory)
        except BaseException as exc:
            await asyncio.to_thread(self._discard, building)
            if isinstance(exc, ApiError):
                raise SnapshotFailed(f"{self.id} cannot be written down: {exc.message}") from exc
            if isinstance(exc, OSError):
                raise SnapshotFailed(f"Cannot write a snapshot to {directory}: {exc.strerror or exc}.") from exc
            raise
        return size

    @contextlib.asynccontextmanager
    async def _stopped(self) -> AsyncIterator[None]:
        """The processors stand still meanwhile, and the channel gets another connection afterwards. A machine that does
        not go on is killed."""
        async with self._calling:
            await self.api.patch_vm("Paused")
            channel = self._channel
            if channel is not None:
                channel.detach()
            try:
                yield
            finally:
                try:
                    await self.api.patch_vm("Resumed")
                    if channel is not None:
                        channel.attach(*await self._unless_dead(vsock.connect(self.place.vsock, _AGAIN_SECONDS)))
                except (ApiError, VmConnectionError) as exc:
                    self._background(self._died(f"it did not go on after a snapshot: {exc.message}"))

    def _collect(self, building: Path, base: DiffBase | None) -> int:
        """Put the snapshot's files together; bytes that they take on the disk."""
        self.place.take(STATE, building / STATE)
        changes = self.place.directory / _CHANGES
        self.place.take(MEMORY, changes)  # renamed: to another file system it would be copied, and lose its holes
        snapshot_files.merge(None if base is None else base.memory, changes, building / MEMORY)
        self.fingerprint.write(building)
        link = self.place.directory / _LAST
        with contextlib.suppress(OSError):  # another file system: the next one is whole as well
            link.unlink(missing_ok=True)
            os.link(building / MEMORY, link)
            self._base = DiffBase(link)
        return sum(path.stat().st_blocks * 512 for path in building.iterdir())

    def _discard(self, building: Path) -> None:
        written = [self.place.root / self.place.written(name) for name in (STATE, MEMORY)]
        for path in (*written, self.place.directory / _CHANGES):
            with contextlib.suppress(OSError):
                path.unlink()
        shutil.rmtree(building, ignore_errors=True)

    # --- stop, go on ----------------------------------------------------------------------------------------------

    async def pause(self, *, idle: bool = False) -> None:
        if self._state is MachineState.RUNNING:
            async with self._calling:
                if not idle and not emulated():  # idle ones are new, and have nothing yet; emulated it takes too long
                    await self.give_back()
                await self.api.patch_vm("Paused")
                self._halted = True

    async def resume(self) -> None:
        if self._state is MachineState.RUNNING:
            async with self._calling:
                await self.api.patch_vm("Resumed")
                self._halted = False

    def _kept(self) -> tuple[list[int], dict[str, int]] | None:
        if self._process is None:
            return None
        serial = -1 if self.serial is None else self.serial.fileno()
        uid = -1 if self.place.uid is None else self.place.uid
        return [serial, -1, -1], {"uid": uid}  # the connection is made anew by the next owner

    # --- the end --------------------------------------------------------------------------------------------------

    async def _kill_others(self) -> None:
        if self.spawner.gone or self._process is None:
            # nobody reports their end, or a start was cut short
            await asyncio.to_thread(kill_processes, self.id)

    async def _close_more(self) -> None:
        await self.api.close()

    def _remove_files(self) -> None:
        self.place.remove()
