"""Every error has a status, and a form that is JSON whatever its details are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emberbox.errors import (
    ForkFailed,
    GuestFileError,
    HistoryError,
    Internal,
    NoCapacity,
    TooManyRequests,
    Unauthorized,
    ValidationFailed,
    VmConnectionError,
    VmExecutionError,
    error_classes,
)
from emberbox.models.service import ErrorResponse
from emberbox.server import error_handlers
from emberbox.server.error_handlers import error_answer, of_validation, plain, status_of


def test_every_error_has_a_status_that_is_documented() -> None:
    """A class that is added later must be thought of."""
    for kind in error_classes().values():
        status = status_of(kind("x"))
        assert status in {*error_handlers.RESPONSES, 500, 502}, kind
        if kind is not Internal and kind is not VmExecutionError and kind.code != "api_error":
            assert status != 500, kind


@pytest.mark.parametrize("kind", error_classes().values(), ids=lambda kind: kind.code)
def test_every_answer_has_the_documented_form(kind: type[VmExecutionError]) -> None:
    answer = error_answer(kind("what happened"))
    told = ErrorResponse.model_validate_json(bytes(answer.body)).error
    assert (told.code, told.message) == (kind.code, "what happened")
    assert told.remediation


def test_files_that_are_not_there_are_404_and_others_are_not() -> None:
    for name, status in (("ENOENT", 404), ("ENOTDIR", 404), ("EACCES", 409), ("EISDIR", 409), (None, 409), (7, 409)):
        assert status_of(GuestFileError("x", details={"errno": name})) == status


def test_headers_that_go_with_it() -> None:
    assert error_answer(Unauthorized("x")).headers["WWW-Authenticate"] == "Bearer"
    assert error_answer(TooManyRequests("x", details={"retry_after": 7})).headers["Retry-After"] == "7"
    assert error_answer(NoCapacity("x")).headers["Retry-After"] == "1"
    for error in (HistoryError("x"), ForkFailed("x"), VmConnectionError("x")):  # it may have run: no invitation
        assert "Retry-After" not in error_answer(error).headers


class _Odd:
    def __repr__(self) -> str:
        return "odd"


@pytest.mark.parametrize(
    "details",
    [{"a": _Odd()}, {"a": {1, 2}}, {"a": b"\xff"}, {1: 2}],
)
def test_details_of_any_kind_are_answered(details: dict[Any, Any]) -> None:
    """An error in telling of an error would be a connection that breaks."""
    error = VmExecutionError("x", details=details)
    assert json.loads(json.dumps(plain(error)))["code"] == "execution_error"
    assert json.loads(bytes(error_answer(error).body))["error"]["code"] == "execution_error"


def test_a_message_of_any_kind_is_answered() -> None:
    for message in ("\0", "x" * 1_000_000, "</script>"):
        assert json.loads(bytes(error_answer(ValidationFailed(message)).body))["error"]["code"] == "validation_failed"


def test_a_refusal_names_the_field_and_not_what_stood_there() -> None:
    problems = [{"loc": ("body", "vm", 3, "code"), "msg": "Input should be a string", "input": "SECRET"}] * 50
    error = of_validation(problems)
    assert "vm.3.code: Input should be a string" in error.message
    assert "SECRET" not in json.dumps(error.to_dict())
    assert len(error.message) <= 2001
    assert len(error.details["fields"]) <= 10
    assert of_validation([{}]).message
