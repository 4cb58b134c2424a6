"""Streams of events: their last word, their readers, and what is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest
from pydantic import BaseModel

from emberbox.errors import NoCapacity
from emberbox.models.service import Done, OutputEvent
from emberbox.server import streams
from emberbox.server.error_handlers import ClientDisconnected
from emberbox.server.streams import EventStream, Outbox

Message = MutableMapping[str, Any]


class Reader:
    """The other end of a stream."""

    def __init__(self, *, slow: bool = False) -> None:
        self.sent: list[Message] = []
        self.left = asyncio.Event()
        self.slow = slow

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.slow and self.sent:
            await asyncio.Event().wait()
        self.sent.append(message)

    def events(self) -> list[tuple[str, Any]]:
        text = b"".join(message.get("body", b"") for message in self.sent).decode()
        parts = [one.split("\n") for one in text.split("\n\n") if one.startswith("event")]
        return [(one[0].removeprefix("event: "), json.loads(one[1].removeprefix("data: "))) for one in parts]

    @property
    def ended(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False


async def read(
    work: Callable[[Outbox], Awaitable[BaseModel]], reader: Reader | None = None, seconds: float = 2
) -> Reader:
    """Read a stream to its end, with a deadline; nothing is left of it."""
    reader = reader or Reader()
    before = asyncio.all_tasks()

    async def coroutine(outbox: Outbox) -> BaseModel:
        return await work(outbox)

    stream = EventStream(coroutine, slow_seconds=0.2)
    async with asyncio.timeout(seconds):
        await stream({"type": "http"}, reader.receive, reader.send)
    assert asyncio.all_tasks() - before == set()
    return reader


async def test_events_come_in_their_order_and_the_last_is_the_outcome() -> None:
    async def work(outbox: Outbox) -> BaseModel:
        listeners = outbox.listeners()
        await listeners.text("stdout", "a" * 200_000)
        await listeners.text("stderr", "b")
        return Done()

    reader = await read(work)
    events = reader.events()
    assert [name for name, _ in events] == ["stdout"] * 4 + ["stderr", "complete"]
    assert "".join(data["content"] for name, data in events if name == "stdout") == "a" * 200_000
    assert reader.ended


async def test_an_error_is_the_last_event() -> None:
    async def work(outbox: Outbox) -> BaseModel:
        raise NoCapacity("full")

    reader = await read(work)
    assert [(name, data["error"]["code"]) for name, data in reader.events()] == [("error", "no_capacity")]
    assert reader.ended


async def test_after_a_defect_the_stream_ends_too(caplog: pytest.LogCaptureFixture) -> None:
    """It is told as such, without its words; and nobody waits for more."""

    async def work(outbox: Outbox) -> BaseModel:
        raise KeyError("secret")

    reader = await read(work)
    assert [(name, data["error"]["code"]) for name, data in reader.events()] == [("error", "internal")]
    assert "secret" not in str(reader.sent)
    assert reader.ended


async def test_who_leaves_cancels_the_work() -> None:
    reader, cancelled = Reader(), asyncio.Event()

    async def work(outbox: Outbox) -> BaseModel:
        try:
            await outbox.put("stdout", OutputEvent(content="x"))
            reader.left.set()
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return Done()

    await read(work, reader)
    assert cancelled.is_set()


async def test_who_has_left_before_it_began_starts_nothing() -> None:
    reader, begun = Reader(), []
    reader.left.set()

    async def work(outbox: Outbox) -> BaseModel:
        begun.append(1)
        await asyncio.Event().wait()
        return Done()

    await read(work, reader)


async def test_who_reads_nothing_is_left() -> None:
    ended = asyncio.Event()

    async def work(outbox: Outbox) -> BaseModel:
        try:
            while True:
                await outbox.put("stdout", OutputEvent(content="x"))
        finally:
            ended.set()

    await read(work, Reader(slow=True))
    assert ended.is_set()


async def test_a_reader_who_wakes_up_too_late_is_told_the_end() -> None:
    """The work has given up on it; the stream must not go on with nothing but signs of life."""
    reader, gate = Reader(), asyncio.Event()

    async def send(message: Message) -> None:
        reader.sent.append(message)
        if len(reader.sent) == 3:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.19):
                    await gate.wait()

    async def work(outbox: Outbox) -> BaseModel:
        try:
            for _ in range(100):
                await asyncio.wait_for(outbox.put("stdout", OutputEvent(content="x")), 0.1)
        except TimeoutError as error:
            raise ClientDisconnected("the reader takes nothing") from error
        return Done()

    reader.send = send  # type: ignore[method-assign]
    await read(work, reader)


async def test_signs_of_life_lose_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes at the very moment of a sign of life comes all the same."""
    monkeypatch.setattr(streams, "PING_SECONDS", 0.005)

    async def work(outbox: Outbox) -> BaseModel:
        for number in range(150):
            await asyncio.sleep(0.005)
            await outbox.put("stdout", OutputEvent(content=str(number)))
        return Done()

    reader = await read(work, seconds=20)
    assert [data["content"] for name, data in reader.events() if name == "stdout"] == [str(n) for n in range(150)]
    assert reader.events()[-1][0] == "complete"
    assert any(message.get("body", b"").startswith(b":") for message in reader.sent)


async def test_an_outbox_is_bounded() -> None:
    outbox = Outbox(slow_seconds=0.05)
    for _ in range(64):
        await outbox.put("stdout", OutputEvent(content="x"))
    with pytest.raises(ClientDisconnected):
        await outbox.put("stdout", OutputEvent(content="x"))
    assert outbox._queue.qsize() <= 64
