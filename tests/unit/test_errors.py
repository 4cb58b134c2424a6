"""The error tree: codes for programs, remedies for people, and when trying again is safe."""

from __future__ import annotations

import json

import pytest

from emberbox import errors
from emberbox.errors import (
    ConfigError,
    ExecutionFailed,
    GuestFileError,
    PolicyBlocked,
    UnsupportedLanguage,
    ValidationFailed,
    VmConnectionError,
    VmExecutionError,
    VmNotAvailable,
)

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, VmExecutionError)]
LEAVES = [kind for kind in CLASSES if kind is not VmExecutionError]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_a_message_a_code_and_a_remedy(kind: type[VmExecutionError]) -> None:
    error = kind("what happened")
    assert str(error) == error.message == "what happened"
    assert error.code.isidentifier()
    assert error.remediation.endswith(".")
    assert error.details == {}
    assert kind.__doc__


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in CLASSES}) == len(CLASSES)


def test_what_the_caller_knows_better_replaces_the_default() -> None:
    error = VmNotAvailable("m", remediation="do this", retryable=False, details={"a": 1})
    assert (error.remediation, error.retryable, error.details) == ("do this", False, {"a": 1})
    assert VmNotAvailable("m", remediation="").remediation == ""
    assert VmConnectionError("m", retryable=True).retryable


def test_every_error_is_found_by_its_code() -> None:
    assert {kind.code: kind for kind in CLASSES} == errors.error_classes()


def test_the_wire_form() -> None:
    error = ValidationFailed("m", remediation="r", details={"findings": [{"line": 1}]})
    wire = error.to_dict()
    assert wire == {
        "code": "validation_failed",
        "message": "m",
        "remediation": "r",
        "retryable": True,
        "details": {"findings": [{"line": 1}]},
    }
    assert json.loads(json.dumps(wire)) == wire


def test_only_what_certainly_never_ran_is_safe_to_repeat() -> None:
    """Also a promise to callers: a new error is one of these only on purpose."""
    assert {kind.__name__ for kind in CLASSES if kind("m").retryable} == {
        "ConfigError", "ValidationFailed", "UnsupportedLanguage", "PolicyBlocked", "VmNotAvailable", "NoCapacity",
        "SessionNotFound", "ImageError", "SnapshotFailed", "SnapshotNotFound", "RollbackFailed",
        "Unauthorized", "Forbidden", "TooManyRequests", "RequestTooLarge", "Conflict",
    }  # fmt: skip


def test_the_tree_is_the_one_that_is_drawn_in_the_module() -> None:
    assert errors.__doc__ is not None
    for kind in LEAVES:
        assert f"── {kind.__name__}" in errors.__doc__


def test_whoever_catches_a_kind_catches_its_kinds() -> None:
    assert issubclass(UnsupportedLanguage, ValidationFailed)
    assert issubclass(PolicyBlocked, ValidationFailed)
    assert issubclass(GuestFileError, ExecutionFailed)
    assert not issubclass(ConfigError, ValidationFailed)


def test_no_error_hides_one_of_python() -> None:
    import builtins

    assert [kind.__name__ for kind in CLASSES if hasattr(builtins, kind.__name__)] == []
