"""One WebSocket: messages out in order through one bounded queue, messages in with a limit, tasks that end with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine
from functools import partial
from typing import Any, Self

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from emberbox.errors import RequestTooLarge, ValidationFailed, VmExecutionError
from emberbox.server import wire
from emberbox.server.error_handlers import ClientDisconnected
from emberbox.server.memory import IncomingBudget, UnreadAnswers

_WAITING = 64
_MOST_WAITING = 4 << 20
"""Characters that may wait for the reader; then whoever has more waits."""
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
        incoming: bounds what its tasks work at.
        unread: bounds what waits for its reader.
        caller: who is counted for both.
    """

    def __init__(
        self, socket: WebSocket, slow_seconds: float, incoming: IncomingBudget, unread: UnreadAnswers, caller: str
    ) -> None:
        self._hold = partial(incoming.hold, caller)
        self._unread = unread.add(caller, self.leave)
        self._room = asyncio.Event()
        self._room.set()
        self._taken = 0
        """Characters of the message that is being looked at."""
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
        self._unread.end()

    async def _write(self) -> None:
        """A reader who takes nothing for too long is left, and with it all that runs for it."""
        try:
            while True:
                text = await self._out.get()
                async with asyncio.timeout(self._slow_seconds):
                    await self._socket.send_text(text)
                self._unread.grow(-len(text))
                if self._unread.size <= _MOST_WAITING:
                    self._room.set()
        except Exception as exc:
            if not isinstance(exc, TimeoutError | OSError | RuntimeError | WebSocketDisconnect):
                log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox")
                log.exception("a message could not be sent")
            self.leave()

    def leave(self) -> None:
        """The other end is gone, or as good as: stop waiting for it."""
        self.gone = True
        self._room.set()
        if self._reader is not None:
            self._reader.cancel()

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message; waits while the reader is slow. Raises GoneError."""
        await self.send_text(json.dumps(message, ensure_ascii=False, separators=(",", ":")))

    async def send_text(self, text: str) -> None:
        """The same of one that is JSON already."""
        if self.gone:
            raise ClientDisconnected("the socket is closed")
        try:
            async with asyncio.timeout(self._slow_seconds):
                await self._room.wait()
                self._unread.grow(len(text))
                if self._unread.size > _MOST_WAITING:
                    self._room.clear()
                await self._out.put(text)
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
        self._taken = len(message.get("text") or "")
        return await _parsed(message)

    def tell(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Send something of the server's own beside, which is not counted."""
        self._own.add(name)
        self._begin(name, work)

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside; it ends with the socket. Raises ValidationFailed where the name is taken, or too much
        is under way; NoCapacity or TooManyRequests where there is no memory for it."""
        if name in self._tasks or len(self._tasks) - len(self._own) >= _MAX_TASKS:
            work.close()
            why = f"{name!r:.80} is under way" if name in self._tasks else f"{_MAX_TASKS} things are under way"
            raise ValidationFailed(f"{why} on this socket already.", remediation="Wait for its end, or cancel it.")
        held = self._hold()
        try:
            held.resize(self._taken)
        except VmExecutionError:
            work.close()
            raise
        self._begin(name, work).add_done_callback(lambda _: held.release())

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._ended(name, done))
        return task

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


async def _parsed(message: Any) -> Any:
    text = message.get("text")
    if text is None:
        raise ValidationFailed("A binary message.", remediation="Send JSON as text.")
    if len(text) > _LONGEST:
        raise RequestTooLarge(f"A message of more than {_LONGEST:,} characters.")
    return await wire.parse_beside(text)
