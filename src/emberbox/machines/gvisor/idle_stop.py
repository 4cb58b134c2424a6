"""Stops a sandbox in which nothing runs, until its agent is asked for something."""

from __future__ import annotations

import asyncio
import signal

from emberbox.host.spawner import Process
from emberbox.machines.channel import Channel
from emberbox.machines.gvisor.stubs import Stubs

SETTLE_SECONDS = 0.05


class IdleStop:
    """The rest of one sandbox, which begins after a moment without requests: the interpreters shall have come to wait.

    The stubs are stopped as well. With the sandbox process alone, one of them took a whole processor in one of 250
    sandboxes, from some time on: nobody answered what it had asked for. The gofer only ever answers, and sleeps.

    Args:
        channel: of its agent: the next request ends the rest.
        process: the sandbox process.
        stubs: its other processes.
        others: pids of those that are no stubs.
    """

    def __init__(self, channel: Channel, process: Process, stubs: Stubs, others: set[int]) -> None:
        self._channel = channel
        self._process = process
        self._stubs = stubs
        self._others = others
        self._stopped = False
        channel.before_send = self.end
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it is over."""
        self._stopping = asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        await asyncio.sleep(SETTLE_SECONDS)
        if self._process.send(signal.SIGSTOP):
            self._stopped = True
            await self._stubs.stop_computing({self._process.pid}, self._others)

    def end(self) -> None:
        """Let it go on, for good. Harmless when it is awake."""
        self._channel.before_send = None
        self._stopping.cancel()
        if self._stopped:
            self._stopped = False
            self._stubs.go_on()
            self._process.send(signal.SIGCONT)
        if not self.ended.done():
            self.ended.set_result(None)
