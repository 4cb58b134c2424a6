"""Commands against a server: which one, and how errors and Ctrl-C become messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NoReturn
from urllib.parse import quote

from emberbox.cli.exits import Exit, run_async
from emberbox.cli.target import Target
from emberbox.errors import SessionNotFound
from emberbox.models import (
    CommandHistoryEntry,
    HistoryQueryRequest,
    HistoryQueryResponse,
    HistoryVerification,
)
from emberbox.sdk.transport import HttpServer


@asynccontextmanager
async def connected(target: Target) -> AsyncIterator[HttpServer]:
    """The server."""
    async with HttpServer(target.url, target.token) as server:
        yield server


def on_server(
    target: Target, work: Callable[[HttpServer], Awaitable[int | None]], *, as_json: bool = False
) -> NoReturn:
    """Do a command's work with the server, and leave with its exit code (success, if it returns none)."""

    async def whole() -> int:
        async with connected(target) as server:
            code = await work(server)
        return int(Exit.SUCCESS if code is None else code)

    run_async(whole, as_json=as_json)


def part(text: str) -> str:
    """An id as a part of an address."""
    return quote(text, safe="") or "-"


class ServerHistory:
    """The history of a server, as the commands about the local one use it."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server

    async def query(self, wanted: HistoryQueryRequest) -> HistoryQueryResponse:
        """Entries, newest first."""
        given = wanted.model_dump(mode="json", exclude_none=True, exclude={"agent_ids", "limit"})
        return await self._server.history("/api/history", wanted.limit, **given)

    async def get(self, execution_id: str) -> CommandHistoryEntry | None:
        """One entry; None if there is none."""
        try:
            found = await self._server.get(HistoryQueryResponse, f"/api/history/{part(execution_id)}")
        except SessionNotFound:
            return None
        return found.history[0] if found.history else None

    async def verify(self, noted: str | None = None) -> HistoryVerification:
        """Whether it is as it was written."""
        return await self._server.get(HistoryVerification, "/api/history/verify", head=noted)
