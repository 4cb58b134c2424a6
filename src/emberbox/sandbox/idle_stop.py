"""Machines that nobody uses rest: a gVisor sandbox takes 2 % of a processor for doing nothing.

Without it, fifty sandboxes that only wait take a whole processor from those that work: with 150 on two processors, the
first answer of a fork came after its time-out of 30 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from emberbox.errors import ExecutionFailed, ExecutionTimeout, VmConnectionError
from emberbox.machines.contract import Machine

QUIET_SECONDS = 1.0
"""Without a request for so long, a machine is looked at."""
_LONGEST_SECONDS = 60.0
"""Between two looks at a machine in which something of the user's runs; each costs it some milliseconds."""
_LOOK_TIMEOUT = 15.0


class IdleStopper:
    """The rests of one machine.

    Args:
        machine: of a sandbox in use.
        may_rest: asked before each look: the machine is not stopped already, or being replaced.
    """

    def __init__(self, machine: Machine, may_rest: Callable[[], bool]) -> None:
        self._machine = machine
        self._may_rest = may_rest
        self._rest: asyncio.Future[None] | None = None

    def begin(self) -> bool:
        """Have it rest now, until its next request; nothing of the user's may run in it. False: it is none that
        rests."""
        self._rest = self._machine.rest()
        return self._rest is not None

    async def run(self) -> None:
        """Have it rest whenever nothing was asked of it for a while and nothing of the user's runs in it."""
        channel = self._machine.channel
        pause, seen = QUIET_SECONDS, channel.last_request
        while channel.closed is None:
            await asyncio.sleep(pause)
            if self._rest is not None:
                await asyncio.wait([self._rest])
                pause, seen, self._rest = QUIET_SECONDS, channel.last_request, None
            elif not channel.quiet or channel.last_request != seen:
                pause, seen = QUIET_SECONDS, channel.last_request
            else:
                pause = min(pause * 2, _LONGEST_SECONDS)
                if self._may_rest():
                    idle, seen = await self._look(), seen + 1
                    unasked = channel.quiet and channel.last_request == seen
                    if idle and unasked and self._may_rest() and not self.begin():
                        return

    async def _look(self) -> bool:
        try:
            answer, _ = await self._machine.channel.call("idle", timeout=_LOOK_TIMEOUT)
        except (ExecutionFailed, ExecutionTimeout, VmConnectionError):
            return False  # its next user will find out why
        return answer.get("idle") is True
