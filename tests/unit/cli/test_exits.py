"""Exit codes, and how errors become messages."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from emberbox.cli.exits import Exit, exit_of_error, exit_of_run, fail, response_succeeded, run_async
from emberbox.errors import (
    ConfigError,
    ExecutionFailed,
    ExecutionTimeout,
    ImageError,
    Internal,
    PolicyBlocked,
    SessionNotFound,
    UnsupportedLanguage,
    ValidationFailed,
    VmConnectionError,
    VmExecutionError,
    VmNotAvailable,
)
from emberbox.models import BlockError, TerminationReason, VmExecuteResponse


def response(**fields: Any) -> VmExecuteResponse:
    now = datetime.now(UTC)
    base: dict[str, Any] = {
        "execution_id": "ex-1", "vm_id": "sb-1", "language": "python", "exit_code": 0, "stdout": "", "stderr": "",
        "duration_ms": 1, "started_at": now, "completed_at": now, "backend": "gvisor",
    }  # fmt: skip
    return VmExecuteResponse(**{**base, **fields})


def error_of(kind: type[VmExecutionError]) -> BlockError:
    return BlockError(code=kind.code, message="m")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (PolicyBlocked, 3),
        (ValidationFailed, 2),
        (UnsupportedLanguage, 2),
        (ConfigError, 2),
        (VmNotAvailable, 5),
        (ImageError, 5),
        (ExecutionTimeout, 4),
        (ExecutionFailed, 1),
        (VmConnectionError, 1),
        (SessionNotFound, 2),
        (Internal, 1),
    ],
)
def test_the_code_of_an_error(kind: type[VmExecutionError], code: int) -> None:
    assert exit_of_error(kind("m")) == code


GOOD = response()
BAD = response(exit_code=1)
LATE = response(exit_code=124, termination_reason=TerminationReason.TIMEOUT)


@pytest.mark.parametrize(
    ("results", "errors", "code"),
    [
        ([], [], Exit.NOTHING_RUN),
        ([GOOD, GOOD], [], Exit.SUCCESS),
        ([GOOD, BAD], [], Exit.FAILED),
        ([BAD, LATE], [], Exit.TIMEOUT),
        ([GOOD], [error_of(PolicyBlocked)], Exit.BLOCKED),
        ([BAD], [error_of(PolicyBlocked)], Exit.FAILED),
        ([GOOD], [error_of(ValidationFailed), error_of(PolicyBlocked)], Exit.FAILED),
        ([LATE], [error_of(ValidationFailed)], Exit.TIMEOUT),
        ([LATE, BAD], [error_of(VmNotAvailable), error_of(PolicyBlocked)], Exit.NO_BACKEND),
        ([], [error_of(ImageError)], Exit.NO_BACKEND),
    ],
)
def test_the_code_of_a_run(results: list[VmExecuteResponse], errors: list[BlockError], code: Exit) -> None:
    assert exit_of_run(results, errors) is code


@pytest.mark.parametrize("reason", list(TerminationReason))
def test_what_counts_as_success(reason: TerminationReason) -> None:
    wanted = reason in {TerminationReason.COMPLETED, TerminationReason.OUTPUT_TRUNCATED}
    assert response_succeeded(response(termination_reason=reason)) is wanted
    assert not response_succeeded(response(termination_reason=reason, exit_code=1))
    assert not response_succeeded(response(termination_reason=reason, error="E: v"))


def leaves(capsys: pytest.CaptureFixture[str], error: VmExecutionError, *, as_json: bool) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as info:
        fail(error, as_json=as_json)
    said = capsys.readouterr()
    assert isinstance(info.value.code, int)
    return info.value.code, said.out, said.err


def test_a_person_reads_message_and_remedy_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    error = VmNotAvailable("No [red]runsc[/] here, [/closing]", remediation="Run [setup].")
    code, out, err = leaves(capsys, error, as_json=False)
    assert (code, out) == (5, "")
    assert "✗ No [red]runsc[/] here, [/closing]" in err
    assert "→ Run [setup]." in err


def test_words_of_a_machine_in_an_error_control_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    error = VmNotAvailable("it said \x1b]0;title\x07\x9b2J", remediation="see \x1b[31mthere")
    _, _, err = leaves(capsys, error, as_json=False)
    assert not {"\x1b", "\x07", "\x9b"} & set(err)
    assert "title" in err
    assert "there" in err


def test_a_program_reads_one_json_document_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    error = PolicyBlocked("m", details={"findings": []})
    code, out, err = leaves(capsys, error, as_json=True)
    assert (code, err) == (3, "")
    assert json.loads(out) == {"error": error.to_dict()}


async def _answer(code: int) -> int:
    return code


async def _raise(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize("code", [0, 1, 42])
def test_a_command_leaves_with_its_own_code(code: int) -> None:
    with pytest.raises(SystemExit) as info:
        run_async(lambda: _answer(code), as_json=False)
    assert info.value.code == code


def test_an_error_of_a_command_becomes_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        run_async(lambda: _raise(ExecutionTimeout("too slow")), as_json=False)
    assert info.value.code == 4
    assert "too slow" in capsys.readouterr().err


def test_ctrl_c_ends_a_command_as_a_shell_expects(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        run_async(lambda: _raise(KeyboardInterrupt()), as_json=False)
    assert info.value.code == 130
    assert "interrupted" in capsys.readouterr().err
