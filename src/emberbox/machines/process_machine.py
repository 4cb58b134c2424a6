"""What the machines of all back ends have in common: processes below a spawner, a cgroup, a channel, an end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from emberbox.errors import VmConnectionError, VmNotAvailable
from emberbox.host.cgroups import MachineGroup
from emberbox.host.spawner import Process, Spawner
from emberbox.machines.channel import Channel
from emberbox.machines.contract import Death, MachineState, MachineStats, MemoryUse, next_states
from emberbox.machines.tail import OutputTail
from emberbox.models import MachineLimits, TerminationReason

_T = TypeVar("_T")
_KILL_SECONDS = 10.0


class ProcessMachine:
    """A machine whose processes a spawner started; back ends say how it begins and what it leaves.

    Args:
        machine_id: random, and part of every command line of the machine's, so that its processes can be found.
        spawner: started its processes, and reports their end.
        group: its cgroup, or None.
        on_dead: told its id when it has ended and everything is cleared away.
    """

    backend: str

    def __init__(
        self, machine_id: str, spawner: Spawner, group: MachineGroup | None, on_dead: Callable[[str], None]
    ) -> None:
        self.id = machine_id
        self.spawner = spawner
        self.group = group
        self.on_dead = on_dead
        self.uid: int | None = None
        """Its processes run as this user, who is nobody else's; None: as who started them."""
        self.recipe: tuple[Path, MachineLimits] | None = None
        """Directory of the image, and the limits: only snapshots of the same can fill it."""
        self._state = MachineState.STARTING
        self._outlives = False
        self._death: Death | None = None
        self._loop = asyncio.get_running_loop()
        self._dead: asyncio.Future[Death] = self._loop.create_future()
        self._tasks: set[asyncio.Task[object]] = set()
        self._kill_task: asyncio.Task[Death] | None = None

    # --- what a back end fills in ---------------------------------------------------------------------------------

    def _channel_or_none(self) -> Channel | None:
        raise NotImplementedError

    def _output(self) -> OutputTail | None:
        """What its programs write."""
        raise NotImplementedError

    def _running_processes(self) -> list[Process]:
        """Any of them ending is the end of the machine."""
        raise NotImplementedError

    async def _kill_others(self) -> None:
        """Kill what else there may be of it, after its processes have ended."""
        raise NotImplementedError

    def _remove_files(self) -> None:
        """Remove what it has on the host besides its cgroup."""
        raise NotImplementedError

    def _kept(self) -> tuple[list[int], dict[str, int]] | None:
        """What the next owner needs: descriptors (-1: of a stream that has ended) and numbers; None before it runs."""
        raise NotImplementedError

    def _explain(self, why: str) -> Death:
        """What its end, which nobody here wanted, is to be called."""
        raise NotImplementedError

    async def _close_more(self) -> None:
        """Close what else it holds."""

    # --- state and tasks ------------------------------------------------------------------------------------------

    @property
    def state(self) -> MachineState:
        return self._state

    def _no_channel(self) -> VmNotAvailable:
        return VmNotAvailable(f"Machine {self.id} has no channel: it is {self._state}.")

    def _to(self, state: MachineState) -> None:
        if state in next_states(self._state):
            self._state = state

    def _background(self, work: Coroutine[object, object, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _unless_dead(self, work: Coroutine[object, object, _T]) -> _T:
        """The result of some work, which is given up when the machine dies; raises VmConnectionError then."""
        task = self._loop.create_task(work)
        try:
            ends: set[asyncio.Future[Any]] = {task, self._dead}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            task.cancel()
            raise
        if not task.done():
            task.cancel()
            raise VmConnectionError(self._dead.result().message)
        return task.result()

    # --- figures --------------------------------------------------------------------------------------------------

    def stats(self) -> MachineStats:
        if self.group is None:
            return MachineStats()
        group = self.group
        peak, reclaimable = group.memory_peak_bytes(), group.reclaimable_bytes()
        return MachineStats(group.memory_bytes(), peak, group.cpu_seconds(), reclaimable_bytes=reclaimable)

    def mark(self) -> int:
        if self.group is None:
            return 0
        self.group.reset_memory_peak()
        return self.group.oom_kills()

    def since(self, mark: int) -> MemoryUse:
        if self.group is None:
            return MemoryUse(None, False)
        return MemoryUse(self.group.memory_peak_bytes(), self.group.oom_kills() > mark)

    # --- the end --------------------------------------------------------------------------------------------------

    async def wait(self) -> Death:
        return await asyncio.shield(self._dead)

    async def kill(self, death: Death | None = None) -> Death:
        if self._kill_task is None:
            self._death = death or Death(TerminationReason.KILLED, "the sandbox was killed")
            self._kill_task = asyncio.get_running_loop().create_task(self._kill(), name=f"kill {self.id}")
        # whoever waits may be cancelled; the clean-up goes on
        return await asyncio.shield(self._kill_task)

    def abandon(self) -> None:
        """Close the descriptors, without an event loop."""
        if (channel := self._channel_or_none()) is not None:
            channel.abandon()
        if (output := self._output()) is not None:
            output.abandon()

    async def let_go(self, why: str) -> None:
        """Close the channel and whatever else leads to the machine, which goes on."""
        if (channel := self._channel_or_none()) is not None:
            channel.close(why)
        await self._close_more()

    def _channel_broke(self, why: str) -> None:
        self._background(self._died(why))

    async def _died(self, why: str) -> None:
        """The machine ended by itself: find out why, then clean up."""
        if self._kill_task is None and self._state is not MachineState.DEAD:
            await self.kill(self._explain(why))

    async def survive_owner(self, seconds: float) -> None:
        """Raises VmNotAvailable: it cannot."""
        kept = self._kept() if seconds > 0 else None
        if kept is not None:
            ended, other = socket.socketpair()  # stands for a stream that has ended; /dev/null cannot be polled
            other.close()
            with ended:
                fds = [ended.fileno() if fd < 0 else fd for fd in kept[0]]
                pids = [process.pid for process in self._running_processes()]
                await self.spawner.keep(self.id, pids, fds, kept[1], seconds)
            self._outlives = True
        elif self._outlives:
            await self.spawner.drop(self.id)
            self._outlives = False

    async def _kill(self) -> Death:
        death = self._death or Death(TerminationReason.KILLED, "the sandbox was killed")
        self._to(MachineState.DEAD)
        processes = self._running_processes()
        for process in processes:
            await self.spawner.signal(process, signal.SIGKILL)
        for process in processes:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KILL_SECONDS):
                    await asyncio.shield(process.ended)
        await self._kill_others()
        if self._outlives:
            await self.spawner.drop(self.id)
        await self.let_go(death.message)
        if (output := self._output()) is not None:
            output.close()
        await asyncio.to_thread(self._clear)
        if not self._dead.done():
            self._dead.set_result(death)
        for task in self._tasks:
            task.cancel()
        self.on_dead(self.id)
        return death

    def _clear(self) -> None:
        if self.group is not None:
            self.group.remove()
        self._remove_files()
