"""Answers that outlast a single write: streams of events, and plain answers whose client may leave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from emberbox.errors import Internal, VmExecutionError
from emberbox.models import Result
from emberbox.models.service import ErrorResponse, OutputEvent, ResultEvent
from emberbox.sandbox.listeners import Listeners
from emberbox.server.error_handlers import ClientDisconnected, plain

T = TypeVar("T")
_WAITING = 64
"""Events that may wait for a slow reader; then the code waits."""
_PIECE = 64 << 10
"""Characters of output in one event."""
_MANY = 20
"""Items of a list that are written at once."""
PING_SECONDS = 15.0
_LOOK_SECONDS = 5.0
"""How often a quiet stream looks whether its reader still counts."""


class Outbox:
    """Events on their way to one client. The producer waits while it is full.

    Args:
        slow_seconds: how long; then the reader counts as gone.
    """

    def __init__(self, slow_seconds: float) -> None:
        self._queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue(_WAITING)
        self._slow_seconds = slow_seconds

    async def put(self, name: str, model: BaseModel) -> None:
        """Send an event; raises GoneError where the reader takes nothing."""
        item = (name, (await dumped(model)).decode())
        try:
            self._queue.put_nowait(item)
        except asyncio.QueueFull:
            try:
                async with asyncio.timeout(self._slow_seconds):
                    await self._queue.put(item)
            except TimeoutError as exc:
                raise ClientDisconnected("the reader takes nothing") from exc

    async def next(self) -> tuple[str, str]:
        """The next event."""
        return await self._queue.get()

    def listeners(self) -> Listeners:
        """Output and results as events."""
        return Listeners(self._text_of("stdout"), self._text_of("stderr"), self._result)

    def _text_of(self, stream: str) -> Callable[[str], Awaitable[None]]:
        async def text(content: str) -> None:
            for at in range(0, len(content), _PIECE):
                await self.put(stream, OutputEvent(content=content[at : at + _PIECE]))

        return text

    async def _result(self, result: Result) -> None:
        await self.put("result", ResultEvent(result=result))


class EventStream(Response):
    """Server-sent events (HTML standard, 9.2) of one piece of work, which is cancelled when the reader leaves.

    The last event is `complete`, with what the work returned, or `error`.

    Args:
        work: gets the outbox; what it returns is the last event.
        slow_seconds: how long the reader may take for what it was sent.
        counts: whether the reader may still have it.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        work: Callable[[Outbox], Coroutine[Any, Any, BaseModel]],
        slow_seconds: float,
        counts: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._work = work
        self._slow_seconds = slow_seconds
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        del scope
        outbox = Outbox(self._slow_seconds)
        work = asyncio.create_task(self._do(outbox))
        gone = asyncio.create_task(_left(receive))
        gone.add_done_callback(lambda _: work.cancel())
        try:
            await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._copy(outbox, work, send)
        except (ClientDisconnected, OSError):
            pass
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.wait([gone, work])

    async def _do(self, outbox: Outbox) -> None:
        with contextlib.suppress(ClientDisconnected):
            try:
                await outbox.put("complete", await self._work(outbox))
            except VmExecutionError as error:
                await outbox.put("error", ErrorResponse.model_validate({"error": plain(error)}))
            except ClientDisconnected:
                raise
            except Exception as error:
                log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox")
                log.exception("unexpected error")
                internal = Internal(f"{type(error).__name__} in the server.")
                await outbox.put("error", ErrorResponse.model_validate({"error": plain(internal)}))

    async def _copy(self, outbox: Outbox, work: asyncio.Task[None], send: Send) -> None:
        getting: asyncio.Future[tuple[str, str]] | None = None
        quiet, look = 0.0, min(_LOOK_SECONDS, PING_SECONDS)
        try:
            while True:
                getting = getting or asyncio.ensure_future(outbox.next())
                if work.done():
                    await asyncio.sleep(0)  # what waits in the outbox is taken at once
                    if not getting.done():
                        await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})
                        return
                else:
                    both: list[asyncio.Future[Any]] = [getting, work]
                    await asyncio.wait(both, timeout=look, return_when=asyncio.FIRST_COMPLETED)
                if not self._counts():
                    raise ClientDisconnected("the token counts no more")
                if getting.done():
                    name, data = getting.result()
                    getting, quiet = None, 0.0
                    await self._body(send, f"event: {name}\ndata: {data}\n\n".encode())
                elif not work.done() and (quiet := quiet + look) >= PING_SECONDS:
                    quiet = 0.0
                    await self._body(send, b": alive\n\n")
        finally:
            if getting is not None:
                getting.cancel()

    async def _body(self, send: Send, data: bytes) -> None:
        await self._send(send, {"type": "http.response.body", "body": data, "more_body": True})

    async def _send(self, send: Send, message: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._slow_seconds):
                await send(dict(message))
        except TimeoutError as exc:
            raise ClientDisconnected("the reader takes nothing") from exc


class PatientStream(StreamingResponse):
    """Bytes for a reader who may take so long for each piece.

    Args:
        pieces: of the body.
        slow_seconds: for each.
    """

    def __init__(self, pieces: AsyncIterator[bytes], slow_seconds: float) -> None:
        super().__init__(pieces, media_type="application/octet-stream")
        self._slow_seconds = slow_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""

        async def patient(message: Message) -> None:
            try:
                async with asyncio.timeout(self._slow_seconds):
                    await send(message)
            except TimeoutError as exc:
                raise OSError("the reader takes nothing") from exc

        with contextlib.suppress(OSError, ClientDisconnect):
            await super().__call__(scope, receive, patient)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work; it is cancelled when the client leaves.

    Raises:
        GoneError: they left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnected("the reader left")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.wait([task, gone])


def json_of(model: BaseModel) -> bytes:
    """A model as JSON. Items of lists are written one by one: for a long list in one go, a thread would keep all others
    from running."""
    parts = []
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, list) and all(isinstance(item, BaseModel) for item in value):
            parts.append(b'"%b":[%b]' % (name.encode(), b",".join([item.model_dump_json().encode() for item in value])))
        else:
            parts.append(model.model_dump_json(include={name}).encode()[1:-1])
    return b"{%b}" % b",".join(parts)


async def dumped(model: BaseModel) -> bytes:
    """The same; where there is much, in a thread."""
    lists = (getattr(model, name) for name in type(model).model_fields)
    if any(isinstance(value, list) and len(value) > _MANY for value in lists):
        return await asyncio.to_thread(json_of, model)
    return model.model_dump_json().encode()


async def long_answer(model: BaseModel) -> Response:
    """As `answer`, of a model that may be long."""
    return Response(await dumped(model), media_type="application/json")


def answer(model: BaseModel, status: int = 200) -> Response:
    """A model as the answer, without the second validation that a framework would do."""
    return Response(model.model_dump_json(), status, media_type="application/json")
