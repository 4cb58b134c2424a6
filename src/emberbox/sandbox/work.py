"""Work under way in a sandbox: how long it may take, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from emberbox.errors import ExecutionFailed
from emberbox.guest.protocol import Header
from emberbox.machines.channel import Event, Stream
from emberbox.machines.contract import Machine
from emberbox.models import Execution, TerminationReason
from emberbox.sandbox.listeners import Listeners
from emberbox.sandbox.outcome import ExecutionCollector, OutputCollector, values_at_most

ANSWER_SECONDS = 45.0
"""The agent answers in milliseconds. On a host with ten times the work that it can do, an emulated machine took more
than fifteen seconds."""
_AT_ONCE = 16
"""Events that are taken before others are served."""
_MANY_VALUES = 2000
"""Results with more of them are read in a thread."""


class OverdueError(Exception):
    """The guest did not end its work in time."""


class Work:
    """Events of a request, with a deadline for the guest alone: the time that listeners take is not counted.

    Args:
        stream: the events.
        seconds: that the guest may take in all; None: any.
    """

    def __init__(self, stream: Stream, seconds: float | None) -> None:
        self.number = stream.number
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._end = None if seconds is None else self._loop.time() + seconds
        self._handed_out: float | None = None
        self._events = 0

    def __aiter__(self) -> Work:
        return self

    async def __anext__(self) -> Event:
        now = self._loop.time()
        if self._end is not None and self._handed_out is not None:
            self._end += now - self._handed_out
        self._events += 1
        if self._events % _AT_ONCE == 0:
            await asyncio.sleep(0)  # a guest that sends faster than events are taken keeps nobody else waiting
        try:
            async with asyncio.timeout_at(self._end):  # what has come already is taken without waiting
                event = await anext(self._stream)
        except TimeoutError as exc:
            raise OverdueError from exc
        self._handed_out = self._loop.time()
        return event


def finished(machine: Machine, execution: Execution, mark: int) -> Execution:
    """Add what only the host knows: the peak of memory, and whether its memory cap was what killed the code."""
    memory = machine.since(mark)
    if memory.peak_bytes is not None:
        execution.memory_peak_mb = round(memory.peak_bytes / (1 << 20), 2)
    if memory.killed and not execution.succeeded:
        execution.termination_reason = TerminationReason.MEMORY
    return execution


@contextlib.contextmanager
def nonsense() -> Iterator[None]:
    """An answer whose fields are not what the protocol says is an error of the machine, not of Emberbox."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ExecutionFailed("The guest's answer is not valid.", remediation="Create a new sandbox.") from exc


def rows_of(header: Header, key: str) -> list[dict[str, Any]]:
    rows = header.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ExecutionFailed("The guest's answer is not valid.", remediation="Create a new sandbox.")
    return rows


async def take(collector: ExecutionCollector, header: Header, payload: bytes, listeners: Listeners) -> None:
    if (output := collector.output(header, payload)) is not None:
        await listeners.text(*output)
    elif header["ev"] == "result":
        if values_at_most(payload) > _MANY_VALUES:
            result = await asyncio.to_thread(collector.result, header, payload)
        else:
            result = collector.result(header, payload)
        if result is not None:
            await listeners.result(result)
    elif header["ev"] == "started" and isinstance(header.get("context"), str):
        collector.context = header["context"][:100]


async def flush(collector: OutputCollector, listeners: Listeners) -> None:
    for name, text in collector.flush():
        await listeners.text(name, text)
