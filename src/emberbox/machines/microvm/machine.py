"""A virtual machine in one process of the host, with a console and an agent behind a channel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Generic, TypeVar

from emberbox.host.cgroups import MachineGroup
from emberbox.host.spawner import Process, Spawner
from emberbox.machines.channel import Channel
from emberbox.machines.contract import Death, MachineState
from emberbox.machines.microvm.serial import SerialLog
from emberbox.machines.process_machine import ProcessMachine
from emberbox.models import TerminationReason

_C = TypeVar("_C", bound=Channel)
_LAST_WORDS_SECONDS = 5.0
"""The channel may hear of the end before its process is reaped: so long its status is waited for."""


class MicroVm(ProcessMachine, Generic[_C]):
    """A microVM; back ends say how it starts, how it is written to disk, and what it leaves."""

    program: str
    """What runs it, in messages."""

    def __init__(
        self, machine_id: str, spawner: Spawner, group: MachineGroup | None, on_dead: Callable[[str], None]
    ) -> None:
        super().__init__(machine_id, spawner, group, on_dead)
        self.serial: SerialLog | None = None
        self._channel: _C | None = None
        self._process: Process | None = None
        self._calling = asyncio.Lock()
        """Held while the processors are stopped and let go on."""

    @property
    def channel(self) -> _C:
        if self._channel is None:
            raise self._no_channel()
        return self._channel

    def _channel_or_none(self) -> _C | None:
        return self._channel

    def _output(self) -> SerialLog | None:
        return self.serial

    def _running_processes(self) -> list[Process]:
        return [] if self._process is None else [self._process]

    # --- start ----------------------------------------------------------------------------------------------------

    def prepared(self, process: Process | None) -> None:
        """Its program runs: the end of that is the end of the machine. None: it is a blank that can only be thrown
        away."""
        self._process = process
        self._to(MachineState.PREPARED)
        if process is not None:
            self._background(self._follow(process))

    async def listening(self, seconds: float) -> None:
        """Wait for the word of the guest's first process on the console; raises TimeoutError, VmConnectionError."""
        assert self.serial is not None  # noqa: S101 (for the type checker)
        async with asyncio.timeout(seconds):
            await self._unless_dead(self.serial.ready.wait())

    def rest(self) -> asyncio.Future[None] | None:
        """None: the processors of a guest in which nothing runs are halted."""
        return None

    # --- the end --------------------------------------------------------------------------------------------------

    async def _follow(self, process: Process) -> None:
        await self._died(await self._status(process))

    async def _status(self, process: Process) -> str:
        return f"{self.program} ended with status {await asyncio.shield(process.ended)}"

    async def _died(self, why: str) -> None:
        process = self._process
        by_guest = self._channel is not None and self._channel.broken_by_guest
        ending = self._kill_task is not None or self._state is MachineState.DEAD
        if process is not None and not (ending or by_guest or process.ended.done()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_SECONDS):
                    why = await self._status(process)
        await super()._died(why)

    def _explain(self, why: str) -> Death:
        if self.group is not None and self.group.oom_kills():
            return Death(TerminationReason.MEMORY, "the host had not enough memory for the sandbox")
        if self._channel is not None and self._channel.broken_by_guest:
            return Death(TerminationReason.KILLED, f"the sandbox was killed because {why}")
        tail = self.serial.text() if self.serial is not None else ""
        if "Kernel panic" in tail:
            why = "the guest's kernel panicked"
        return Death(TerminationReason.CRASHED, f"the sandbox died: {why}" + (f" ({tail})" if tail else ""))
