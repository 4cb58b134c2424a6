"""One WebSocket: messages out in order through one bounded queue, messages in with a limit, tasks that end with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine
from typing import Any, Self

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from emberbox.errors import RequestTooLarge, ValidationFailed
from emberbox.server import wire
from emberbox.server.error_handlers import ClientDisconnected

_WAITING = 64
_MAX_TASKS = 64
"""Executions and questions of one socket at once."""
_LONGEST = 16 << 20
TRY_AGAIN_LATER = 1013
GOING_AWAY = 1001


class WebSocketConnection:
    """The server's end of a WebSocket. Use it as an async context manager, within which messages are sent.

    Args:
        socket: accepted.
        slow_seconds: how long the reader may take nothing.
    """

    def __init__(self, socket: WebSocket, slow_seconds: float) -> None:
        self._socket = socket
        self._slow_seconds = slow_seconds
        self._out: asyncio.Queue[str] = asyncio.Queue(_WAITING)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._own: set[str] = set()
        """Of the tasks, those that nobody has asked for."""
        self._writer: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[Any] | None = None
        self.gone = False

    async def __aenter__(self) -> Self:
        self._writer = asyncio.create_task(self._write())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.gone = True
        tasks = [*self._tasks.values(), *([self._writer] if self._writer else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _write(self) -> None:
        """A reader who takes nothing for too long is left, and with it all that runs for it."""
        try:
            while True:
                text = await self._out.get()
                async with asyncio.timeout(self._slow_seconds):
                    await self._socket.send_text(text)
        except Exception as exc:
            if not isinstance(exc, TimeoutError | OSError | RuntimeError | WebSocketDisconnect):
                log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox")
                log.exception("a message could not be sent")
            self.leave()

    def leave(self) -> None:
        """The other end is gone, or as good as: stop waiting for it."""
        self.gone = True
        if self._reader is not None:
            self._reader.cancel()

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message; waits while the reader is slow. Raises GoneError."""
        if self.gone:
            raise ClientDisconnected("the socket is closed")
        try:
            async with asyncio.timeout(self._slow_seconds):
                await self._out.put(json.dumps(message, ensure_ascii=False, separators=(",", ":")))
        except TimeoutError as exc:
            self.leave()
            raise ClientDisconnected("the reader takes nothing") from exc

    async def receive(self) -> Any:
        """The next message, parsed.

        Raises:
            GoneError: there is none any more.
            ValidationFailed: it is no JSON.
        """
        if self.gone:
            raise ClientDisconnected("the socket is closed")
        self._reader = asyncio.ensure_future(self._socket.receive())
        try:
            await asyncio.wait([self._reader])
        finally:
            self._reader.cancel()
        if self._reader.cancelled() or self._reader.exception() is not None:
            raise ClientDisconnected("the socket is closed")
        message = self._reader.result()
        if message["type"] == "websocket.disconnect":
            raise ClientDisconnected("the client left")
        return _parsed(message)

    def tell(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Send something of the server's own beside, which is not counted."""
        self._own.add(name)
        self._begin(name, work)

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside; it ends with the socket. Raises ValidationFailed where the name is taken, or too much
        is under way."""
        if name in self._tasks or len(self._tasks) - len(self._own) >= _MAX_TASKS:
            work.close()
            why = f"{name!r:.80} is under way" if name in self._tasks else f"{_MAX_TASKS} things are under way"
            raise ValidationFailed(f"{why} on this socket already.", remediation="Wait for its end, or cancel it.")
        self._begin(name, work)

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._ended(name, done))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(name, None)
        self._own.discard(name)
        if not task.cancelled():
            task.exception()  # what went wrong was sent, or nobody is there to be told

    def cancel(self, name: str) -> bool:
        """Cancel what was started under this name; False if there is none."""
        task = None if name in self._own else self._tasks.get(name)
        return task is not None and task.cancel()

    async def close(self, code: int, reason: str) -> None:
        """Say why, and close."""
        if self._socket.application_state is WebSocketState.CONNECTED:
            with contextlib.suppress(OSError, RuntimeError, TimeoutError, WebSocketDisconnect):
                async with asyncio.timeout(5):
                    await self._socket.close(code, reason)


def _parsed(message: Any) -> Any:
    text = message.get("text")
    if text is None:
        raise ValidationFailed("A binary message.", remediation="Send JSON as text.")
    if len(text) > _LONGEST:
        raise RequestTooLarge(f"A message of more than {_LONGEST:,} characters.")
    return wire.parse(text)
