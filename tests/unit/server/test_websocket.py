"""One WebSocket: order, limits, and what happens when the other end does nothing any more."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.websockets import WebSocket, WebSocketState

from emberbox.errors import RequestTooLarge, ValidationFailed
from emberbox.server.error_handlers import ClientDisconnected
from emberbox.server.memory import IncomingBudget, UnreadAnswers
from emberbox.server.websocket import WebSocketConnection


class Socket:
    """The other end."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[str] = []
        self.all_there = asyncio.Event()
        self.error: BaseException | None = None
        self.slow = False
        self.closed: tuple[int, str] | None = None
        self.application_state = WebSocketState.CONNECTED

    async def receive(self) -> dict[str, Any]:
        return await self.incoming.get()

    async def send_text(self, text: str) -> None:
        if self.error is not None:
            raise self.error
        if self.slow:
            await asyncio.Event().wait()
        self.sent.append(text)
        if len(self.sent) == 200:
            self.all_there.set()

    async def close(self, code: int, reason: str) -> None:
        if self.error is not None:
            raise self.error
        self.closed = (code, reason)


def line_of(socket: Socket, seconds: float = 0.2) -> WebSocketConnection:
    incoming, unread = IncomingBudget(1 << 30, 1 << 30), UnreadAnswers(1 << 30)
    return WebSocketConnection(socket, seconds, incoming, unread, "ada")  # type: ignore[arg-type]


def says(text: str) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": text}


async def test_messages_go_out_in_their_order_and_come_in_parsed() -> None:
    socket = Socket()
    async with asyncio.timeout(5), line_of(socket) as line:
        for number in range(200):
            await line.send({"n": number, "t": "\u00e4"})
        socket.incoming.put_nowait(says('{"a": 1}'))
        assert await line.receive() == {"a": 1}
        await asyncio.wait_for(socket.all_there.wait(), 5)
    assert [json.loads(text)["n"] for text in socket.sent] == list(range(200))


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (says("{"), ValidationFailed), (says("[" * 200_000), ValidationFailed), (says("1" * 5000), ValidationFailed),
        ({"type": "websocket.receive", "bytes": b"{}"}, ValidationFailed),
        (says(" " * ((16 << 20) + 1)), RequestTooLarge),
        ({"type": "websocket.disconnect", "code": 1001}, ClientDisconnected),
    ],
)  # fmt: skip
async def test_what_is_no_message(message: dict[str, Any], kind: type[Exception]) -> None:
    socket = Socket()
    async with asyncio.timeout(5), line_of(socket) as line:
        socket.incoming.put_nowait(message)
        with pytest.raises(kind):
            await line.receive()


async def test_who_takes_nothing_is_left_and_all_that_runs_for_it_ends() -> None:
    socket, ended = Socket(), asyncio.Event()
    socket.slow = True

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with asyncio.timeout(5):
        async with line_of(socket) as line:
            line.start("a", work())
            await line.send({})
            with pytest.raises(ClientDisconnected):
                await line.receive()
        assert ended.is_set()
        with pytest.raises(ClientDisconnected):
            await line.send({})


@pytest.mark.parametrize("error", [OSError("x"), RuntimeError("x"), ValueError("x"), UnicodeError("x")])
async def test_a_writer_that_fails_ends_the_line(error: Exception) -> None:
    """Whatever it fails of: nobody may wait for answers that are never sent."""
    socket = Socket()
    socket.error = error
    async with asyncio.timeout(5), line_of(socket, seconds=30) as line:
        await line.send({})
        with pytest.raises(ClientDisconnected):
            await line.receive()


async def test_names_are_taken_once_and_64_at_most() -> None:
    socket = Socket()
    async with asyncio.timeout(5), line_of(socket) as line:
        for number in range(64):
            line.start(f"e{number}", asyncio.Event().wait())  # type: ignore[arg-type]
        for name, words in (("e1", "under way"), ("one more", "64")):
            with pytest.raises(ValidationFailed, match=words):
                line.start(name, asyncio.sleep(0))
        assert line.cancel("e1")
        assert not line.cancel("nobody")
        await asyncio.sleep(0.01)
        line.start("one more", asyncio.sleep(0))
        await asyncio.sleep(0.01)
        line.start("one more", asyncio.sleep(0))


async def test_a_task_that_fails_is_no_noise_and_gives_its_name_back() -> None:
    async def fail() -> None:
        raise KeyError("x")

    socket = Socket()
    async with asyncio.timeout(5), line_of(socket) as line:
        line.start("a", fail())
        await asyncio.sleep(0.01)
        line.start("a", fail())
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("error", [OSError("x"), RuntimeError("x"), None])
async def test_to_close_what_is_closed_is_harmless(error: Exception | None) -> None:
    socket = Socket()
    socket.error = error
    async with asyncio.timeout(5):
        async with line_of(socket) as line:
            pass
        await line.close(1000, "done")


async def test_to_close_what_the_client_has_left_is_harmless() -> None:
    """With the framework's own socket, as the server has it: an error here is one in the log for every client."""

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        if message["type"] != "websocket.accept":
            raise OSError("the client is gone")

    socket = WebSocket({"type": "websocket", "headers": []}, receive, send)
    await socket.accept()
    line = WebSocketConnection(socket, 1, IncomingBudget(1, 1), UnreadAnswers(1), "ada")
    await line.close(1000, "done")
