"""Uvicorn's protocols with bounds that they lack: for the head of a request (its time and its size, before anybody has
shown a token), for the handshake of a WebSocket, and for pongs that nobody reads."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_HEAD_BYTES = 64 << 10
_MAX_UNREAD_BYTES = 1 << 20
"""What may wait for a client that sends pings and reads no pongs."""
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"  # RFC 6585, 5
)
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class BoundedHttp(HttpToolsProtocol):
    """Closes connections whose request does not begin, or whose head does not end, in time and size."""

    seconds = 30.0
    """For a head."""
    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
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


def http_protocol(seconds: float) -> type[BoundedHttp]:
    """The protocol with this deadline for a head."""
    return type("BoundedHttp", (BoundedHttp,), {"seconds": seconds})


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """Ends connections that are of no use any more."""

    def data_received(self, data: bytes) -> None:
        """The client says something."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.transport.is_closing():
            self.transport.write(_BAD_REQUEST)
            self.transport.close()
        elif self.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES and not self.writable.is_set():
            self.transport.abort()  # messages wait for the reader, but the answers to its pings do not
