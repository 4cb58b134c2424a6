"""One way to talk to a server: requests, event streams, errors and retries. Everything that is a client of the HTTP API
uses it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError

from emberbox.errors import (
    ApiError,
    ConfigError,
    ExecutionTimeout,
    NoCapacity,
    TooManyRequests,
    ValidationFailed,
    VmConnectionError,
    VmExecutionError,
    VmNotAvailable,
    error_classes,
)
from emberbox.models.history import HistoryQueryResponse
from emberbox.models.service import CommandStarted, ErrorResponse, OutputEvent, ResultEvent
from emberbox.sandbox.listeners import Listeners
from emberbox.sdk._httpx import SSEError, aconnect_sse, httpx
from emberbox.sdk.deadlines import CALL_SECONDS, CONNECT_SECONDS, EVENT_SECONDS, SETTLE_SECONDS

TOKEN_VARIABLE = "EMBERBOX_TOKEN"  # noqa: S105 (the name of a variable)
_MOST_RETRIES = 3
_LONGEST_PAUSE = 5.0
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream."""

    name: str
    data: str


class HttpServer:
    """A server of the HTTP API. Use it as an async context manager, or `aclose()` it.

    Args:
        base_url: such as `http://127.0.0.1:8080`.
        token: sent with each request; the variable EMBERBOX_TOKEN unless given.
        retries: how often what certainly never ran is tried again.
    """

    def __init__(self, base_url: str, token: str | None = None, *, retries: int = _MOST_RETRIES) -> None:
        self.base_url = checked_url(base_url)
        self._token = token or os.environ.get(TOKEN_VARIABLE) or None
        self._retries = retries
        self._asking = 0
        """So many wait for an answer, or read one."""
        self._answered = asyncio.Event()
        self._finishing: asyncio.Future[None] | None = None
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)
        timeout = httpx.Timeout(CALL_SECONDS, connect=CONNECT_SECONDS)
        try:
            # no proxy of the environment: what goes there is code and its output
            self._client = httpx.AsyncClient(
                base_url=self.base_url, headers=headers, limits=limits, timeout=timeout, trust_env=False
            )
        except UnicodeEncodeError as exc:
            raise ConfigError(
                "The token holds characters that no token has.", remediation="Copy it once more."
            ) from exc

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def finish(self) -> None:
        """Close its connections when what was asked is answered: at once, or beside everything else, so that who reads
        an answer may call this."""
        if self._asking:
            self._finishing = asyncio.ensure_future(self._close_when_answered())
        else:
            await self.aclose()

    async def _close_when_answered(self) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    while self._asking:
                        self._answered.clear()
                        await self._answered.wait()
        finally:
            await self.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        params: Mapping[str, Any] | None = None,
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = CALL_SECONDS,
    ) -> httpx.Response:
        """Send a request and return the answer of a success. What certainly never ran is tried again.

        Args:
            method, path, json, params, content, headers: of the request; a `json` may be one of our models.
            seconds: to wait for the answer.

        Raises:
            VmExecutionError: the error that the server names.
            VmConnectionError: it cannot be reached (retryable), or the connection broke (it may have run).
            ExecutionTimeout: no answer in time; it may have run.
        """
        body = _body(json)
        given = {name: value for name, value in (params or {}).items() if value is not None}
        for attempt in range(self._retries + 1):
            try:
                return await self._once(method, path, body, given, content, headers, seconds)
            except VmExecutionError as exc:
                again = attempt < self._retries and worth_another_try(exc) and not isinstance(content, AsyncIterator)
                if not again:
                    raise
                await asyncio.sleep(_pause(attempt, exc))
        raise AssertionError("unreachable")

    async def _once(
        self,
        method: str,
        path: str,
        body: object,
        params: Mapping[str, Any],
        content: bytes | AsyncIterator[bytes] | None,
        headers: Mapping[str, str] | None,
        seconds: float,
    ) -> httpx.Response:
        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        with self._told(method, path, seconds):
            response = await self._client.request(
                method, path, json=body, params=params, content=content, headers=headers, timeout=timeout
            )
        if response.is_success:
            return response
        raise error_of(response.status_code, response.content, response.headers)

    async def get(self, model: type[M], path: str, /, **params: Any) -> M:
        """The answer to a GET, as a model."""
        return parsed(model, await self.request("GET", path, params=params))

    async def history(self, path: str, limit: int, /, **params: Any) -> HistoryQueryResponse:
        """Up to `limit` entries of the history, in as many answers as the server makes of them."""
        found = await self.get(HistoryQueryResponse, path, limit=limit, **params)
        while found.next is not None and len(found.history) < limit:
            params["before"] = found.next
            more = await self.get(HistoryQueryResponse, path, limit=limit - len(found.history), **params)
            found.history += more.history
            found.next = more.next
        return found

    async def post(
        self, model: type[M], path: str, json: object = None, *, seconds: float = CALL_SECONDS,
        headers: Mapping[str, str] | None = None,
    ) -> M:  # fmt: skip
        """The answer to a POST, as a model."""
        return parsed(model, await self.request("POST", path, json=json, seconds=seconds, headers=headers))

    @contextlib.asynccontextmanager
    async def events(
        self, path: str, json: object = None, *, method: str = "POST", headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[ServerEvent]]:
        """The events that a request is answered with. To leave is to cancel what the request asked for."""
        body = _body(json)
        timeout = httpx.Timeout(EVENT_SECONDS, connect=CONNECT_SECONDS)
        with self._told(method, path, EVENT_SECONDS):
            given = {"json": body, "headers": dict(headers or {}), "timeout": timeout}
            async with aconnect_sse(self._client, method, path, **given) as source:
                if not source.response.is_success:
                    await source.response.aread()
                    raise error_of(source.response.status_code, source.response.content, source.response.headers)

                async def each() -> AsyncIterator[ServerEvent]:
                    async for event in source.aiter_sse():
                        if event.event == "error":
                            raise error_of(None, event.data.encode(), {})
                        yield ServerEvent(event.event, event.data)

                yield each()

    @contextlib.asynccontextmanager
    async def download(self, path: str, /, **params: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        """The pieces of an answer's body."""
        with self._told("GET", path, CALL_SECONDS):
            async with self._client.stream("GET", path, params=params) as response:
                if not response.is_success:
                    await response.aread()
                    raise error_of(response.status_code, response.content, response.headers)
                yield response.aiter_bytes()

    @contextlib.contextmanager
    def _told(self, method: str, path: str, seconds: float) -> Any:
        """Errors of the connection as errors of ours."""
        what = f"{method} {path}"
        self._asking += 1
        try:
            yield
        except _NEVER_SENT as exc:
            raise VmConnectionError(
                f"The server {self.base_url} cannot be reached: {exc}.",
                remediation="Is `emberbox serve` running there? Is the address right?",
                retryable=True,
            ) from exc
        except httpx.TimeoutException as exc:
            raise ExecutionTimeout(
                f"The server {self.base_url} did not answer {what} within {seconds:g} s.",
                remediation="It may have run all the same: look at the history before you try again.",
            ) from exc
        except (httpx.HTTPError, SSEError) as exc:
            raise VmConnectionError(
                f"The connection to {self.base_url} broke during {what}: {exc or type(exc).__name__}.",
                remediation="It may have run all the same: look at the history before you try again.",
            ) from exc
        except httpx.InvalidURL as exc:
            raise ConfigError(f"{path!r:.200} makes no address: {exc}.", remediation="Check ids and names.") from exc
        finally:
            self._asking -= 1
            self._answered.set()


def made(model: type[M], **fields: object) -> M:
    """A request; raises ValidationFailed, which names each field that no server would take."""
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in exc.errors(include_input=False))
        raise ValidationFailed(f"{told}."[:2000], remediation="Correct the named fields.") from exc


def _body(json: object) -> object:
    """A model as JSON. What was not set is left to the server: a default of ours would look like a wish."""
    return json.model_dump(mode="json", exclude_unset=True, exclude_none=True) if isinstance(json, BaseModel) else json


def checked_url(url: str) -> str:
    """The address of a server without the slash at its end; raises ConfigError."""
    try:
        parts = httpx.URL(url)
        parts.host.encode("idna")
    except (httpx.InvalidURL, UnicodeError) as exc:
        raise ConfigError(f"{url!r:.200} is no address: {exc}.", remediation="Write http://HOST:PORT.") from exc
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ConfigError(f"{url!r:.200} is no address of a server.", remediation="Write http://HOST:PORT.")
    return url.rstrip("/")


def parsed(model: type[M], response: httpx.Response) -> M:
    """The answer as a model; raises ApiError where it is none."""
    return parsed_text(model, response.content)


def parsed_text(model: type[M], text: str | bytes) -> M:
    """JSON as a model; raises ApiError where it is none."""
    try:
        return model.model_validate_json(text)
    except ValidationError as exc:
        raise ApiError(
            f"The server's answer is no {model.__name__}: {exc.errors()[0]['msg']}.",
            remediation="Is it an Emberbox server, and of this version?",
        ) from exc


async def followed(
    model: type[M],
    events: AsyncIterator[ServerEvent],
    listeners: Listeners,
    started: asyncio.Future[int] | None = None,
) -> M:
    """Hand a stream's events to listeners, and return what its last one says.

    Args:
        model: of the last event.
        events: of the stream.
        listeners: hear output and results.
        started: gets the pid of a command.

    Raises:
        VmConnectionError: the stream ended too early; it may have run all the same.
    """
    async for event in events:
        if event.name in ("stdout", "stderr"):
            await listeners.text(event.name, parsed_text(OutputEvent, event.data).content)
        elif event.name == "result":
            await listeners.result(parsed_text(ResultEvent, event.data).result)
        elif event.name == "started" and started is not None and not started.done():
            started.set_result(parsed_text(CommandStarted, event.data).pid)
        elif event.name == "complete":
            return parsed_text(model, event.data)
    raise VmConnectionError(
        "The server's stream ended before its work did.",
        remediation="It may have run all the same: look at the history before you try again.",
    )


def error_of(status: int | None, body: bytes, headers: Mapping[str, str]) -> VmExecutionError:
    """The error that an answer tells of, as the class that it is."""
    try:
        told = ErrorResponse.model_validate_json(body).error
    except ValidationError:
        text = body[:200].decode("utf-8", "replace").strip()
        return ApiError(f"HTTP {status}: {text or 'no text'}", details={"status": status})
    details = told.details | ({} if status is None else {"status": status})
    if (pause := headers.get("retry-after")) is not None:
        details["retry_after"] = pause
    kind = error_classes().get(told.code)
    if kind is None:
        return ApiError(
            f"{told.code}: {told.message}", remediation=told.remediation, retryable=told.retryable, details=details
        )
    error = kind(told.message)  # some classes have other arguments
    error.remediation, error.retryable, error.details = told.remediation, told.retryable, details
    return error


def worth_another_try(error: VmExecutionError) -> bool:
    """It certainly never ran, and a little later it may."""
    if not error.retryable:
        return False
    if isinstance(error, VmConnectionError | TooManyRequests | NoCapacity):
        return True
    return type(error) is VmNotAvailable and error.details.get("status") == 503


def _pause(attempt: int, error: VmExecutionError) -> float:
    """Seconds before the next try: what the server asks for; or longer each time, and spread out."""
    told = str(error.details.get("retry_after", ""))
    if told.isdecimal():
        return min(_LONGEST_PAUSE, float(told))
    return min(_LONGEST_PAUSE, 0.2 * 2.0**attempt) * (0.5 + random.random() / 2)  # noqa: S311 (to spread, not to hide)


def base64_of(data: bytes) -> str:
    """As JSON carries bytes."""
    return base64.b64encode(data).decode("ascii")
