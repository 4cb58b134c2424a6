"""One gVisor sandbox: its processes, its channel, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from emberbox.errors import SnapshotFailed, VmNotAvailable
from emberbox.host.cgroups import MachineGroup
from emberbox.host.rundir import processes_of
from emberbox.host.spawner import Process, Spawner
from emberbox.machines.channel import Channel
from emberbox.machines.contract import Death, MachineState, MachineStats, MemoryUse
from emberbox.machines.gvisor.control import IMAGE_FILES, Control, ControlError
from emberbox.machines.gvisor.dialect import Dialect, dialect_of
from emberbox.machines.gvisor.idle_stop import IdleStop
from emberbox.machines.gvisor.memory import MemoryGauge
from emberbox.machines.gvisor.stubs import Stubs, descendants
from emberbox.machines.process_machine import ProcessMachine
from emberbox.machines.tail import OutputTail
from emberbox.models import TerminationReason

_WATCH_SECONDS = 0.25
_KILL_SECONDS = 10.0
_CHECKPOINT_SECONDS = 60.0
STATE = "s"
"""Below a machine's directory: runsc's own state. Short, because Unix sockets live there."""
COMMAND_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_SMALLEST_HEAP = 48 << 20
_HEAP_SHARE = 10
"""One part in so many of the memory is what runsc's own heap should have at most. Its garbage ended sandboxes: nothing
inside sees it."""


class GvisorMachine(ProcessMachine):
    """A sandbox that `GvisorFactory.boot` started."""

    backend = "gvisor"

    def __init__(
        self,
        machine_id: str,
        directory: Path,
        spawner: Spawner,
        group: MachineGroup | None,
        memory_limit: int,
        runsc: Sequence[str],
        on_dead: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(machine_id, spawner, group, on_dead)
        self.directory = directory
        self._memory_limit = memory_limit
        self.runsc = runsc
        """Command line of runsc for this machine, up to the verb."""
        self._channel: Channel | None = None
        self._stderr: OutputTail | None = None
        self._processes: list[Process] = []
        self._stubs = Stubs(self._all_pids)
        self._resting = False
        """Stopped while it was idle."""
        self._idle_stop: IdleStop | None = None
        self._memory_peak = 0
        self._gauge = MemoryGauge([])

    @property
    def channel(self) -> Channel:
        if self._channel is None:
            raise self._no_channel()
        return self._channel

    def _channel_or_none(self) -> Channel | None:
        return self._channel

    def _output(self) -> OutputTail | None:
        return self._stderr

    def _running_processes(self) -> list[Process]:
        return self._processes

    @property
    def cgroup_join(self) -> list[Path]:
        """Files into which its processes write `0` before they begin."""
        return self.group.join if self.group is not None else []

    @property
    def command_env(self) -> dict[str, str]:
        """The environment of runsc. GOMEMLIMIT has it collect its garbage sooner where there is much, no more."""
        return {**COMMAND_ENV, "GOMEMLIMIT": str(max(_SMALLEST_HEAP, self._memory_limit // _HEAP_SHARE))}

    def attach(self, read_fd: int, write_fd: int, stderr_fd: int) -> None:
        """Take over the ends of the sandbox's pipes."""
        self._stderr = OutputTail(stderr_fd)
        self._channel = Channel(read_fd, write_fd, self._channel_broke)

    def prepared(self, processes: list[Process]) -> None:
        """The sandbox exists, with these processes: any of them ending is the end of the machine."""
        self._processes = processes
        self._gauge = MemoryGauge([process.pid for process in processes])
        self._to(MachineState.PREPARED)
        for process in processes:
            self._background(self._follow(process))
        if self.group is None:
            self._background(self._watch_memory())

    def running(self, last_request: int = 0) -> None:
        """The agent runs; `last_request` of the channel's numbers, when it is a copy."""
        self.channel.number_after(last_request)
        self._to(MachineState.RUNNING)

    def taken_over(self) -> None:
        """The agent runs, and was another process's."""
        self._outlives = True
        self._to(MachineState.RUNNING)

    def _kept(self) -> tuple[list[int], dict[str, int]] | None:
        if self._stderr is None:
            return None
        return [*self.channel.fds, self._stderr.fileno()], {"memory": self._memory_limit}

    def _all_pids(self) -> list[int]:
        if self.group is not None:
            return self.group.pids()
        return descendants(process.pid for process in self._processes)

    def _stray_pids(self) -> list[int]:
        """Processes of this machine, also those that a start cut short never told us about."""
        return self.group.pids() if self.group is not None else processes_of(self.id)

    async def kill_strays(self) -> None:
        """Kill what a start that was cut short has left, found by its group or name. The children of what is killed
        become children of the spawner, so that a second look finds them."""
        end = self._loop.time() + _KILL_SECONDS
        while (pids := self._stray_pids()) and not self.spawner.gone and self._loop.time() < end:
            for pid in pids:
                with contextlib.suppress(VmNotAvailable, TimeoutError):
                    process = await self.spawner.own(pid)
                    await self.spawner.signal(process, signal.SIGKILL)
                    async with asyncio.timeout(_KILL_SECONDS):
                        await asyncio.shield(process.ended)
            await asyncio.sleep(0.002)

    @property
    def control_socket(self) -> Path:
        return self.directory / STATE / f"runsc-{self.id}.sock"

    def dialect(self) -> Dialect:
        """Of its control socket. Reads the program, once for all machines: not for the event loop."""
        return dialect_of(Path(self.runsc[0]))

    async def checkpoint(self, directory: Path) -> int:
        building = directory.with_name(f".{directory.name}")
        try:
            building.mkdir(mode=0o700)
            try:
                await asyncio.to_thread(self._checkpoint_by_socket, building)
            except ControlError:
                await asyncio.to_thread(_empty, building)
                await self._checkpoint_by_command(building)
            size = sum((building / name).stat().st_size for name in IMAGE_FILES)
            building.rename(directory)
        except BaseException as exc:
            await asyncio.to_thread(shutil.rmtree, building, ignore_errors=True)
            if isinstance(exc, OSError):
                raise SnapshotFailed(f"Cannot write a snapshot to {directory}: {exc.strerror or exc}.") from exc
            raise
        return size

    def _checkpoint_by_socket(self, building: Path) -> None:
        with Control(self.control_socket, _CHECKPOINT_SECONDS, self.dialect()) as control:
            control.checkpoint(building)

    async def _checkpoint_by_command(self, building: Path) -> None:
        """Slower, and the same for every version of runsc."""
        verb = ["checkpoint", f"--image-path={building}", "--compression=none", "--leave-running", self.id]
        with Path(os.devnull).open("r+b") as null:
            fd = null.fileno()
            command = await self.spawner.spawn(
                [*self.runsc, *verb], stdin=fd, stdout=fd, stderr=fd, env=COMMAND_ENV, cwd=str(self.directory)
            )
        async with asyncio.timeout(_CHECKPOINT_SECONDS):
            status = await asyncio.shield(command.ended)
        if status != 0:
            raise SnapshotFailed(f"runsc could not write a snapshot of {self.id} (status {status}).")

    async def pause(self, *, idle: bool = False) -> None:
        if idle:
            # only the sandbox process itself ticks: the gofer sleeps, and so do the stubs. These are just being made,
            # under ptrace, where a signal from elsewhere may be taken for an answer
            self._resting = True
            await self.spawner.signal(self._processes[0], signal.SIGSTOP)
            return
        self._end_rest()
        self._resting = False
        for process in self._processes:
            await self.spawner.signal(process, signal.SIGSTOP)
        pids = {process.pid for process in self._processes}
        await self._stubs.stop_computing(pids, pids)

    async def resume(self) -> None:
        self._stubs.go_on()
        for process in self._processes[:1] if self._resting else reversed(self._processes):
            await self.spawner.signal(process, signal.SIGCONT)
        self._resting = False

    def rest(self) -> asyncio.Future[None] | None:
        if self.group is None or self._state is not MachineState.RUNNING:
            return None  # without a group, finding the stubs takes long
        if self._idle_stop is None or self._idle_stop.ended.done():
            pids = {process.pid for process in self._processes}
            self._idle_stop = IdleStop(self.channel, self._processes[0], self._stubs, pids)
        return self._idle_stop.ended

    def _end_rest(self) -> None:
        if self._idle_stop is not None:
            self._idle_stop.end()
            self._idle_stop = None

    async def go_on_after_another(self) -> None:
        """Let everything go on that another process may have stopped."""
        self._stubs.all_go_on({process.pid for process in self._processes})
        await self.resume()

    def stderr_text(self) -> str:
        return self._stderr.text() if self._stderr else ""

    def abandon(self) -> None:
        """Close the descriptors, without an event loop."""
        self._stubs.forget()
        super().abandon()

    def stats(self) -> MachineStats:
        if self.group is None:
            memory = self._gauge.used() if self._state is MachineState.RUNNING else None
            return MachineStats(memory, max(self._memory_peak, memory or 0))
        return super().stats()

    def mark(self) -> int:
        self._memory_peak = 0
        return super().mark()

    def since(self, mark: int) -> MemoryUse:
        if self.group is None:
            return MemoryUse(self.stats().memory_peak_bytes, False)
        return super().since(mark)

    # --- the end --------------------------------------------------------------------------------------------------

    async def _follow(self, process: Process) -> None:
        status = await asyncio.shield(process.ended)
        await self._died(f"a process of the sandbox ended with status {status}")

    def _explain(self, why: str) -> Death:
        if self.group is not None and self.group.oom_kills():
            limit = self._memory_limit >> 20
            return Death(TerminationReason.MEMORY, f"the sandbox needed more than its {limit} MiB of memory")
        if self._channel is not None and self._channel.broken_by_guest:
            return Death(TerminationReason.KILLED, f"the sandbox was killed because {why}")
        tail = self.stderr_text()
        return Death(TerminationReason.CRASHED, f"the sandbox died: {why}" + (f" ({tail[-500:]})" if tail else ""))

    async def _kill_others(self) -> None:
        if self.spawner.gone:
            # nobody reports their end any more; the ids in their command lines are random, so these are ours
            for pid in self._stray_pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._end_rest()
        self._stubs.forget()

    def _remove_files(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- hosts without a memory cgroup ----------------------------------------------------------------------------

    async def _watch_memory(self) -> None:
        """Kill the sandbox when it passes its memory; coarser than a cgroup, but a bound."""
        while self._state is not MachineState.DEAD:
            await asyncio.sleep(_WATCH_SECONDS)
            used = self._gauge.used()
            self._memory_peak = max(self._memory_peak, used)
            if used > self._memory_limit:
                limit = self._memory_limit >> 20
                death = Death(TerminationReason.MEMORY, f"the sandbox needed more than its {limit} MiB of memory")
                self._background(self.kill(death))
                return


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
