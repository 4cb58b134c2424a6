"""Uvicorn's protocols with bounds that they lack: for the head of a request (its time and its size, before anybody has
shown a token), for the handshake of a WebSocket, for pongs that nobody reads, for messages that are being received, and
for clients that take nothing of what they were sent."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from emberbox.errors import VmExecutionError
from emberbox.server.memory import SMALL, Held, IncomingBudget, caller_of

MAX_HEAD_BYTES = 64 << 10
_MAX_UNREAD_BYTES = 1 << 20
"""What may wait for a client that sends pings and reads no pongs."""
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"  # RFC 6585, 5
)
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_TRY_AGAIN_LATER = 1013
"""The status of a WebSocket's end (IANA's registry of close codes)."""


class _ReaderWatch:
    """Hangs up on a client that takes nothing for so long of what waits for it: what was written to a transport stays
    in memory until then, also when the request is answered and the connection is closed.

    Args:
        transport: of the client.
        seconds: that it has.
    """

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = 0

    def begin(self) -> None:
        """Something waits for it."""
        if self._timer is None:
            self._look()

    def _look(self) -> None:
        self._waiting = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._late)

    def _late(self) -> None:
        self._timer = None
        waiting = self._transport.get_write_buffer_size()
        if waiting and waiting >= self._waiting:
            self._transport.abort()
        elif waiting:
            self._look()

    def end(self) -> None:
        """Nothing waits any more, or the client is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _WatchesReader(asyncio.Protocol):
    """What both protocols do about a client that takes nothing of what it is sent."""

    reader_seconds = 30.0
    """For taking anything."""
    _reader: _ReaderWatch

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        super().connection_made(transport)
        self._reader = _ReaderWatch(transport, self.reader_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._reader.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """It takes less than it is sent."""
        super().pause_writing()
        self._reader.begin()

    def resume_writing(self) -> None:
        """It has taken most of it."""
        self._reader.end()
        super().resume_writing()


class BoundedHttp(_WatchesReader, HttpToolsProtocol):
    """Closes connections whose request does not begin, or whose head does not end, in time and size; and those whose
    answer is not read."""

    seconds = 30.0
    """For a head."""
    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """It says something."""
        super().data_received(data)
        if self._watch() and not self._body_goes_on():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()
        else:
            self._head_bytes = 0

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._stop()
        super().connection_lost(exc)

    def _awaited(self) -> bool:
        """A head is awaited: no request is under way, and the connection is no WebSocket's."""
        cycle: Any = self.cycle
        idle = cycle is None or cycle.response_complete
        return idle and self.transport.get_protocol() is self

    def _body_goes_on(self) -> bool:
        """The request was answered before its body had come; what comes is that, and no head."""
        cycle: Any = self.cycle
        return cycle is not None and cycle.more_body

    def _watch(self) -> bool:
        """Whether a head is awaited; its deadline goes on, or ends."""
        awaited = self._awaited()
        if not awaited:
            self._stop()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.seconds, self._too_slow)
        return awaited

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self._awaited() and not self.transport.is_closing():
            self.transport.close()


def http_protocol(seconds: float, reader_seconds: float) -> type[BoundedHttp]:
    """The protocol with these times for a head, and for taking anything of an answer."""
    return type("BoundedHttp", (BoundedHttp,), {"seconds": seconds, "reader_seconds": reader_seconds})


class BoundedWebSocket(_WatchesReader, WebSocketsSansIOProtocol):
    """Ends connections that are of no use any more, and those that send more than there is memory for."""

    incoming: IncomingBudget
    """Of messages that are being received, or wait to be taken."""
    _held: Held | None = None
    _queued = 0

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if self._held is not None:
            self._held.release()
            self._held = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The client says something."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.transport.is_closing():
            self.transport.write(_BAD_REQUEST)
            self.transport.close()
        elif self.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES and not self.writable.is_set():
            self.transport.abort()  # messages wait for the reader, but the answers to its pings do not
        else:
            self._count()

    def handle_cont(self, event: Frame) -> None:
        """A fragment: added to those before it, since a million of them would be a million objects."""
        if not isinstance(self.frames[0], bytearray):
            self.frames = [bytearray(self.frames[0])]  # type: ignore[list-item]
        self.frames[0] += event.data
        if event.fin:
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        """A message is whole."""
        self._queued += sum(map(len, self.frames))
        super().send_receive_event_to_app()

    async def receive(self) -> Any:
        """The next message."""
        message = await super().receive()
        if self.queue.empty():
            self._queued = 0
            self._count()
        return message

    def _count(self) -> None:
        size = len(self.conn.reader.buffer) + sum(map(len, self.frames)) + self._queued
        if self._held is None:
            if size <= SMALL or self.disconnected or not hasattr(self, "scope"):
                return
            self._held = self.incoming.hold(caller_of(self.scope))
        try:
            self._held.resize(size)
        except VmExecutionError as error:
            self.conn.send_close(_TRY_AGAIN_LATER, error.message[:100])
            self.handle_parser_exception()


def websocket_protocol(reader_seconds: float, incoming: IncomingBudget) -> type[BoundedWebSocket]:
    """The protocol with this time for taking anything, and this budget."""
    return type("BoundedWebSocket", (BoundedWebSocket,), {"reader_seconds": reader_seconds, "incoming": incoming})
