"""Uvicorn's HTTP protocol with a deadline for the head of a request: without one, a client that sends half a head keeps
its connection for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def http_protocol(seconds: float) -> type[HttpToolsProtocol]:
    """The protocol with this deadline."""

    class PatientHttp(HttpToolsProtocol):
        """Closes connections whose request does not begin, or whose head does not end, in time."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            """A client is there."""
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            """It says something."""
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            """It is gone."""
            self._stop()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """A head is awaited unless a request is under way, or the connection has been handed to a WebSocket."""
            cycle: Any = self.cycle
            awaited = cycle is None or cycle.response_complete
            if not awaited or self.transport.get_protocol() is not self:
                self._stop()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(seconds, self._too_slow)

        def _stop(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_slow(self) -> None:
            self._deadline = None
            cycle: Any = self.cycle
            idle = cycle is None or cycle.response_complete
            if idle and self.transport.get_protocol() is self and not self.transport.is_closing():
                self.transport.close()

    return PatientHttp
