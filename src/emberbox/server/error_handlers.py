"""Which HTTP status an error of ours has, and how it is said."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from emberbox.errors import (
    ApiError,
    ConfigError,
    Conflict,
    ExecutionFailed,
    ExecutionTimeout,
    Forbidden,
    ForkFailed,
    GuestFileError,
    HistoryError,
    ImageError,
    Internal,
    PolicyBlocked,
    RequestTooLarge,
    RollbackFailed,
    SessionNotFound,
    SnapshotFailed,
    SnapshotNotFound,
    TooManyRequests,
    Unauthorized,
    ValidationFailed,
    VmConnectionError,
    VmExecutionError,
    VmNotAvailable,
)
from emberbox.models.service import ErrorResponse

_STATUS: dict[type[VmExecutionError], int] = {
    ValidationFailed: 400,
    ConfigError: 400,
    PolicyBlocked: 422,
    Unauthorized: 401,
    Forbidden: 403,
    SessionNotFound: 404,
    SnapshotNotFound: 404,
    Conflict: 409,
    ExecutionFailed: 409,
    GuestFileError: 409,
    RollbackFailed: 409,
    SnapshotFailed: 409,
    RequestTooLarge: 413,
    TooManyRequests: 429,
    VmConnectionError: 502,
    ForkFailed: 503,
    HistoryError: 503,
    ImageError: 503,
    VmNotAvailable: 503,
    ExecutionTimeout: 504,
}
_WORDS = {
    400: "bad input",
    401: "no token, or one that does not count",
    403: "the token may not do this",
    404: "there is no such thing, or it is not yours",
    409: "it does not fit what there is now",
    413: "too long",
    422: "blocked by policy",
    429: "too many requests, or too much at once; `Retry-After` says when to try again",
    502: "the connection to the machine broke; whether it ran is unknown",
    503: "no capacity, or no machine; it did not run",
    504: "a time-out of the server",
}
CLIENT_CLOSED_REQUEST = 499
"""As nginx calls it: the client has left before there was an answer."""
PROBLEM = "problem"
"""In a request's state: what was wrong with its body, which a framework may have made another error of."""
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": words} for status, words in _WORDS.items()
}
"""What every request may be answered with instead."""


class ClientDisconnected(Exception):
    """The client has left, or reads nothing any more."""


def status_of(error: VmExecutionError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, GuestFileError) and error.details.get("errno") in {"ENOENT", "ENOTDIR"}:
        return 404
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)


def error_answer(error: VmExecutionError) -> JSONResponse:
    """The answer that tells of an error."""
    status = status_of(error)
    headers: dict[str, str] = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if "retry_after" in error.details:
        headers["Retry-After"] = str(error.details["retry_after"])
    elif status == HTTPStatus.SERVICE_UNAVAILABLE and error.retryable:
        headers["Retry-After"] = "1"
    return JSONResponse({"error": plain(error)}, status, headers)


def plain(error: VmExecutionError) -> dict[str, Any]:
    """The wire form, which is JSON whatever the details are."""
    wire: dict[str, Any] = json.loads(json.dumps(error.to_dict(), default=str))
    return wire


def register(app: FastAPI) -> None:
    """Have the application answer all errors in one form."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        del request
        assert isinstance(error, VmExecutionError)  # noqa: S101 (registered for these)
        return error_answer(error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        del request
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return error_answer(of_validation(list(error.errors())))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101
        known = _of_http(request, error)
        answer = error_answer(known)
        if type(known) is ApiError:
            answer.status_code = error.status_code
        answer.headers.update(error.headers or {})
        if PROBLEM in request.scope["state"]:
            answer.headers["Connection"] = "close"  # the rest of the body would be taken for the next request
        return answer

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        del request
        log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox")
        log.error("unexpected error", exc_info=error)
        return error_answer(Internal(f"{type(error).__name__} in the server.", details={}))

    async def gone(request: Request, error: Exception) -> Response:
        del request, error
        return Response(status_code=CLIENT_CLOSED_REQUEST)  # nobody reads it; the log shows it

    app.add_exception_handler(VmExecutionError, ours)
    app.add_exception_handler(ClientDisconnected, gone)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def of_validation(problems: list[Any]) -> ValidationFailed:
    """What is wrong with a request, naming each place; not what stood there, which may be long or secret."""
    told = []
    for problem in problems[:10]:
        place = ".".join(str(part) for part in problem.get("loc", ()) if part not in {"body", "query", "path"})
        told.append(f"{place or 'the request'}: {problem.get('msg', 'wrong')}")
    message = "; ".join(told)[:2000]
    return ValidationFailed(
        f"{message}.", remediation="Correct the named fields; /docs has the form.", details={"fields": told}
    )


def of_model(error: ValidationError) -> ValidationFailed:
    """The same for a message of a WebSocket."""
    return of_validation(list(error.errors(include_url=False, include_context=False, include_input=False)))


def too_large(most: int) -> RequestTooLarge:
    """A request is longer than it may be."""
    return RequestTooLarge(f"The request is longer than {most:,} bytes.")


def _of_http(request: Request, error: HTTPException) -> VmExecutionError:
    problem: VmExecutionError | None = request.scope["state"].get(PROBLEM)
    if problem is not None:
        return problem
    if isinstance(error.__cause__, VmExecutionError):
        return error.__cause__  # of what read the body, which the framework has made another error of
    if error.status_code == HTTPStatus.NOT_FOUND:
        where = request.url.path[:200]
        return SessionNotFound(f"There is nothing at {where}.", remediation="/docs shows what there is.")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return ApiError(
            f"{request.method[:20]} is not possible at {request.url.path[:200]}.", remediation="/docs shows what is."
        )
    if error.status_code == HTTPStatus.BAD_REQUEST:
        return ValidationFailed(f"The request cannot be read: {error.detail}.", remediation="Send JSON in UTF-8.")
    return ApiError(str(error.detail))
