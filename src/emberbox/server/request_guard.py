"""What stands before every request: its id, where it comes from, who sent it, how long it is. Plain ASGI, because it is
in the way of each execution."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
import time
from collections.abc import Iterable, MutableMapping
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes, urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emberbox.errors import Forbidden, Unauthorized, ValidationFailed, VmExecutionError
from emberbox.models.base import name_from_json
from emberbox.models.server import ServerConfig
from emberbox.server.auth import Authenticator
from emberbox.server.error_handlers import PROBLEM, error_answer, too_large
from emberbox.server.memory import Held, IncomingBudget, UnreadAnswers, caller_of
from emberbox.server.protocol import MAX_HEAD_BYTES

REQUEST_ID = "X-Request-ID"
POLICY_VIOLATION = 1008
"""Close code of a WebSocket that is refused (RFC 6455, 7.4.1)."""
UNAUTHORIZED = 3000
"""Close code of one whose token does not count (IANA's registry of close codes)."""
_PUBLIC = re.compile(r"/(health|ready|docs(/.*)?|openapi\.json)?")
"""What shows nothing of anybody."""
_PIECE = 256 << 10
"""Bytes of an answer that are sent at once."""
_STREAMED = re.compile(r"/api/vms/[^/]+/files")
"""Bodies that go on to a machine in pieces, whose disk bounds them."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestObserver(Protocol):
    """Is told of each request."""

    def request_ended(self, method: str, route: str, status: int, seconds: float) -> None: ...


class RequestGuard:
    """The outermost layer of the application.

    Args:
        app: what is behind it.
        authenticator: knows who may come in.
        config: limits, names and origins.
        observer: counts.
        incoming: bounds what is received.
        unread: bounds what waits for readers.
    """

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Authenticator,
        config: ServerConfig,
        observer: RequestObserver,
        incoming: IncomingBudget | None = None,
        unread: UnreadAnswers | None = None,
    ) -> None:
        self._incoming = incoming or IncomingBudget.of(config)
        self._unread = unread or UnreadAnswers(config.max_unread_bytes)
        self._slow_reader = config.slow_reader_seconds
        self._app = app
        self._authenticator = authenticator
        self._max_body = config.max_body_bytes
        self._slow = config.slow_request_seconds
        self._hosts = frozenset({"localhost", config.host.lower(), *(name.lower() for name in config.allowed_hosts)})
        self._origins = frozenset(origin.lower() for origin in config.allowed_origins)
        self._observer = observer
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox.http")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or one WebSocket."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        seen = _Seen(send, request_id, scope, self._unread, self._slow_reader)
        began = time.perf_counter()
        held: Held | None = None
        try:
            try:
                self._check(scope, headers)
                scope["state"]["held"] = held = self._incoming.hold(caller_of(scope))
                body = _Body(receive, scope, self._limit(scope, headers, held), self._slow, held)
            except VmExecutionError as error:
                await _refuse(scope, receive, seen, error)
            else:
                await self._app(scope, body, seen)
        finally:
            if held is not None:
                held.release()
            self._ended(scope, seen, time.perf_counter() - began)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises where it is not let in."""
        head = len(scope.get("raw_path") or b"") + sum(len(name) + len(value) for name, value in headers.raw)
        if head > MAX_HEAD_BYTES:
            raise too_large(MAX_HEAD_BYTES)
        self._check_source(headers)
        _check_address(scope)
        if scope["type"] == "http" and (_PUBLIC.fullmatch(scope["path"]) or self._preflight(scope, headers)):
            return
        client = scope.get("client")
        principal = self._authenticator.principal(headers.get("authorization"), client[0] if client else "local")
        scope["state"]["principal"] = principal
        structlog.contextvars.bind_contextvars(token=principal.name)

    def _preflight(self, scope: Scope, headers: Headers) -> bool:
        """A browser asks whether a page may ask (Fetch standard, 3.2.2); it sends no token with that."""
        asks = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        return asks and headers.get("origin", "").lower() in self._origins

    def _check_source(self, headers: Headers) -> None:
        """No page of a browser may call it that is not one of ours: neither by its own origin, nor by a name that it
        has pointed here (DNS rebinding). A plain address cannot be pointed anywhere."""
        hosts = headers.getlist("host")
        host = _host_name(hosts[0]) if len(hosts) == 1 else None
        if host is None or not (host in self._hosts or _is_address(host)):
            raise Forbidden(
                f"This server is not called {host or 'that'!r:.100}.",
                remediation="Call it by its address or as localhost, or add the name to server.allowed_hosts.",
            )
        origin = headers.get("origin")
        if origin is None:
            if headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
                raise Forbidden("Another web page may not call this server.")
            return
        if origin.lower() not in self._origins and _netloc(origin) != hosts[0].lower():
            raise Forbidden(
                f"The web page {origin!r:.100} may not call this server.",
                remediation="Add its origin to server.allowed_origins, if you trust it.",
            )

    def _limit(self, scope: Scope, headers: Headers, held: Held) -> int | None:
        """How long the body may be; raises where it says itself that it is longer, or there is no room for it."""
        if scope["type"] != "http" or (scope["method"] == "PUT" and _STREAMED.fullmatch(scope["path"])):
            return None
        told = headers.get("content-length", "0")
        if not told.isdecimal():
            raise ValidationFailed("Content-Length is no number.", remediation="Leave it to the HTTP library.")
        if int(told) > self._max_body:
            raise too_large(self._max_body)
        if "principal" in scope["state"]:
            held.resize(int(told))
        return self._max_body

    def _ended(self, scope: Scope, seen: _Seen, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "(none)"  # not the path: ids would be without end
        method = scope.get("method", "WEBSOCKET")
        method = method if method in _METHODS else "OTHER"
        self._observer.request_ended(method, route, seen.status, seconds)
        level = self._log.debug if seen.status < 400 and _PUBLIC.fullmatch(scope["path"]) else self._log.info
        level(
            "request",
            method=method,
            path=scope["path"][:200],
            status=seen.status,
            ms=round(seconds * 1000, 1),
            client=(scope.get("client") or ("",))[0],
        )


class _Seen:
    """Sends, and remembers the status; adds the request's id. A long body goes in pieces, each when the client has
    taken the one before, and counts as unread meanwhile."""

    def __init__(self, send: Send, request_id: str, scope: Scope, answers: UnreadAnswers, seconds: float) -> None:
        self._send = send
        self._request_id = request_id
        self._scope = scope
        self._answers = answers
        self._seconds = seconds
        self._left = False
        self.status = 0

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[REQUEST_ID] = self._request_id
        elif kind == "websocket.accept":
            self.status = 101
        elif kind == "websocket.close" and self.status == 0:
            self.status = 403
        if kind == "http.response.body" and len(message.get("body", b"")) > _PIECE and not self._left:
            await self._long(message)
        elif not self._left:
            await self._send(message)

    async def _long(self, message: Message) -> None:
        """Send it until the client has it, takes nothing for too long, or others need the memory."""
        body, more = message["body"], message.get("more_body", False)
        time_limit = asyncio.timeout(None)
        loop = asyncio.get_running_loop()
        unread = self._answers.add(caller_of(self._scope), lambda: time_limit.reschedule(loop.time()))
        try:
            async with time_limit:
                unread.grow(len(body))
                for at in range(0, len(body), _PIECE):
                    if not unread.cut:
                        time_limit.reschedule(loop.time() + self._seconds)
                    piece = body[at : at + _PIECE]
                    goes_on = more or at + _PIECE < len(body)
                    await self._send({"type": message["type"], "body": piece, "more_body": goes_on})
                    unread.grow(-len(piece))
                    await asyncio.sleep(0)
        except TimeoutError:
            self._left = True  # the answer is not whole, so that the connection ends
        finally:
            unread.end()


class _Body:
    """Receives, and counts the bytes of the body."""

    def __init__(self, receive: Receive, scope: Scope, most: int | None, seconds: float, held: Held) -> None:
        self._receive = receive
        self._seconds = seconds
        self._ended = scope["type"] != "http"
        self._state = scope["state"]
        self._left = most
        self._most = most or 0
        self._held = held
        self._told = int(Headers(scope=scope).get("content-length", "0") or 0) if most is not None else 0

    async def __call__(self) -> MutableMapping[str, Any]:
        if self._ended:
            return await self._receive()  # what comes next is the end of the connection
        try:
            async with asyncio.timeout(self._seconds):
                message = await self._receive()
        except TimeoutError as exc:
            self._state[PROBLEM] = slow = ValidationFailed(
                f"No piece of the request came for {self._seconds:g} s.", remediation="Send it without long pauses."
            )
            raise slow from exc
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        if self._left is not None and message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            try:
                if self._left < 0:
                    raise too_large(self._most)
                self._held.resize(max(self._told, self._most - self._left))
            except VmExecutionError as problem:
                self._state[PROBLEM] = problem  # a framework may make another error of it
                raise
        return message


async def _refuse(scope: Scope, receive: Receive, send: _Seen, error: VmExecutionError) -> None:
    if scope["type"] == "http":
        await error_answer(error)(scope, receive, send)
        return
    if "websocket.http.response" in scope.get("extensions", {}):
        answer = error_answer(error)
        headers: Iterable[tuple[bytes, bytes]] = answer.raw_headers
        await send({"type": "websocket.http.response.start", "status": answer.status_code, "headers": list(headers)})
        await send({"type": "websocket.http.response.body", "body": bytes(answer.body)})
        send.status = answer.status_code
        return
    code = UNAUTHORIZED if isinstance(error, Unauthorized) else POLICY_VIOLATION
    await send({"type": "websocket.close", "code": code, "reason": error.message[:100]})


_OF_FILES = re.compile(rb"/files(/info|/list)?$")
"""Paths of requests whose query names a file."""


def _check_address(scope: Scope) -> None:
    """Raises where what is percent-encoded in it is no text: a framework would put other characters in its place. Names
    of files may have bytes that are none, in the form that the models have for them."""
    path = scope.get("raw_path") or b""
    for part in (path, scope.get("query_string") or b""):
        try:
            text = unquote_to_bytes(part).decode()
        except UnicodeDecodeError as exc:
            raise ValidationFailed("The address is not UTF-8.", remediation="Percent-encode UTF-8.") from exc
        if part is not path and _OF_FILES.search(path):
            text = name_from_json(text)
        if "\0" in text:
            raise ValidationFailed("The address has a NUL in it.", remediation="Leave it out.")


def _netloc(origin: str) -> str | None:
    """Host and port of an origin; None where it is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _host_name(header: str) -> str | None:
    """The name of a Host header, without its port."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?", header)
    return match[1].strip("[]").lower().rstrip(".") if match else None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
