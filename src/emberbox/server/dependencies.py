"""What a route is given: the service, and who calls; and what several of them do alike."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query, Request, Response
from pydantic import BaseModel

from emberbox.errors import ValidationFailed
from emberbox.server.auth import Principal
from emberbox.server.idempotency import HEADER
from emberbox.server.memory import Held
from emberbox.server.service import BEGAN, Service, stopping
from emberbox.server.streams import EventStream, Outbox, cancel_on_disconnect, dumped

SSE: dict[str, Any] = {
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
    "description": "the answer; with `stream=true` events: stdout, stderr, result, then complete or error",
}
Stream = Annotated[bool, Query(description="answer with server-sent events as it runs")]


@dataclass(frozen=True, slots=True)
class Call:
    """One request, let in."""

    service: Service
    principal: Principal
    request: Request

    @property
    def key(self) -> str | None:
        """Its idempotency key."""
        return self.request.headers.get(HEADER)

    async def run(self, body: BaseModel, work: Callable[[], Coroutine[Any, Any, BaseModel]]) -> Response:
        """Do the work and answer with what it returns. It is cancelled when the caller leaves, unless it has a key:
        then it goes on, for the client that asks again with it.

        Args:
            body: the request; with its path, what the key stands for.
            work: does it.
        """
        if self.key is None:
            try:
                return _json(await cancel_on_disconnect(self.request, _dumped(work())))
            except asyncio.CancelledError:
                if not self.service.draining:
                    raise
                raise stopping() from None  # the time of the drain is over, and uvicorn waits no longer
        url = self.request.url
        named = json.dumps([url.path, url.query, body.model_dump(mode="json")], sort_keys=True).encode()
        return _json(await self.service.run_detached(self._kept(self.key, named, work)))

    async def _kept(self, key: str, named: bytes, work: Callable[[], Coroutine[Any, Any, BaseModel]]) -> bytes:
        held: Held = self.request.state.held
        with held.kept():  # it may outlast the request
            return await self._once(key, named, work)

    async def _once(self, key: str, named: bytes, work: Callable[[], Coroutine[Any, Any, BaseModel]]) -> bytes:
        began: list[bool] = []
        BEGAN.set(began)  # of this task alone
        service, principal = self.service, self.principal
        return await service.keys.once(
            principal.id,
            key,
            named,
            lambda: service.cancellable(principal, key, _dumped(work())),
            lambda: bool(began),
        )

    def stream(self, work: Callable[[Outbox], Coroutine[Any, Any, BaseModel]]) -> Response:
        """Answer with events as the work goes on."""
        service = self.service
        if self.key is not None:
            raise ValidationFailed(
                f"{HEADER} and a stream do not go together: a stream is not kept.", remediation="Leave one of them out."
            )
        service.streams.check(self.principal.id, service.config.max_sockets)

        async def counted(outbox: Outbox) -> BaseModel:
            with service.streams.one(self.principal.id, service.config.max_sockets):
                return await work(outbox)

        def counts() -> bool:
            return service.authenticator.counts(self.principal)

        return EventStream(counted, service.config.slow_reader_seconds, counts)


async def _dumped(work: Coroutine[Any, Any, BaseModel]) -> bytes:
    return await dumped(await work)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
