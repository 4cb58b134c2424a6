"""Wire and domain types: what they refuse, and what they say about themselves."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from emberbox import models
from emberbox.models import (
    ALL_LANGUAGES,
    CodeBlock,
    Execution,
    ExecutionError,
    ExecutionIntent,
    FileChange,
    HistoryConfig,
    Logs,
    MachineLimits,
    Model,
    ParseExecuteRequest,
    ResourceLimits,
    Result,
    TerminationReason,
    VmExecuteRequest,
    VmExecuteResponse,
    VmExecutionConfig,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def execution(**fields: Any) -> Execution:
    base: dict[str, Any] = {
        "execution_id": "ex-1", "sandbox_id": "sb-1", "backend": "gvisor", "language": "python", "exit_code": 0,
        "duration_ms": 1.5, "started_at": NOW, "completed_at": NOW,
    }  # fmt: skip
    return Execution(**{**base, **fields})


# --- all models -------------------------------------------------------------------------------------------------------

MODELS = [
    value
    for value in vars(models).values()
    if isinstance(value, type) and issubclass(value, BaseModel) and value not in (BaseModel, Model)
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_unknown_keys_are_refused_by_name(model: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="nonsense\n  Extra inputs are not permitted"):
        model.model_validate({"nonsense": 1})


def test_assignments_are_checked() -> None:
    config = VmExecutionConfig()
    with pytest.raises(ValidationError, match="max_code_length"):
        config.max_code_length = 0
    assert config.max_code_length == 100_000


# --- the contract -----------------------------------------------------------------------------------------------------


def test_defaults_of_the_execution_settings() -> None:
    assert VmExecutionConfig().model_dump() == {
        "enabled": False,
        "api_base_url": "http://localhost:8080",
        "vm_pool_size": 1,
        "default_vm_type": "default",
        "execution_timeout_ms": 30000,
        "allowed_languages": ["python", "javascript", "bash", "rust", "typescript"],
        "auto_provision": True,
        "code_validation": True,
        "max_code_length": 100000,
        "policy": {
            "profile": "standard",
            "disabled": [],
            "ask": [],
            "enabled": [],
            "rules": [],
            "roles": {},
            "agents": {},
        },
        "history": HistoryConfig().model_dump(),
        "security_settings": {
            "dangerous_patterns_check": True,
            "resource_limits": ResourceLimits().model_dump(),
        },
    }


def test_defaults_of_the_history_settings() -> None:
    assert HistoryConfig().model_dump() == {
        "enabled": True,
        "snapshot_on_execution": False,
        "snapshot_on_failure": True,
        "auto_rollback_on_failure": False,
        "max_history_entries": 100,
        "persist_history": True,
        "track_files": True,
        "integration_mode": "http",
    }


def test_defaults_of_requests() -> None:
    request = VmExecuteRequest(language="python", code="1")
    assert (request.vm_id, request.requirements, request.timeout_seconds, request.metadata) == (None, [], None, None)
    parse = ParseExecuteRequest(llm_response="x")
    assert (parse.auto_execute, parse.auto_execute_threshold, parse.vm_config) == (True, 0.7, None)


def test_languages_and_reasons() -> None:
    assert ALL_LANGUAGES == ("python", "javascript", "bash", "rust", "typescript")
    assert {str(reason) for reason in TerminationReason} == {
        "completed", "timeout", "memory", "processes", "disk", "output-truncated", "killed", "crashed", "interrupted",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "fields", "key"),
    [
        (VmExecutionConfig, {"vm_pool_size": -1}, "vm_pool_size"),
        (VmExecutionConfig, {"execution_timeout_ms": 0}, "execution_timeout_ms"),
        (VmExecutionConfig, {"allowed_languages": ["py"]}, "allowed_languages.0"),
        (VmExecutionConfig, {"history": {"integration_mode": "magic"}}, "history.integration_mode"),
        (VmExecuteRequest, {"language": "python", "code": "1", "timeout_seconds": 0}, "timeout_seconds"),
        (VmExecuteRequest, {"language": "python"}, "code"),
        (ParseExecuteRequest, {"llm_response": "", "auto_execute_threshold": 2}, "auto_execute_threshold"),
        (ExecutionIntent, {"confidence": 1.1}, "confidence"),
        (ExecutionIntent, {"confidence": 1, "suggested_action": "run"}, "suggested_action"),
        (MachineLimits, {"memory_mb": 1}, "memory_mb"),
        (MachineLimits, {"vcpus": 0}, "vcpus"),
        (MachineLimits, {"vcpus": float("nan")}, "vcpus"),
        (MachineLimits, {"processes": 1}, "processes"),
        (MachineLimits, {"output_bytes": 1}, "output_bytes"),
        (MachineLimits, {"disk_mb": 1 << 30}, "disk_mb"),
    ],
)
def test_values_out_of_range_are_refused_by_name(model: type[BaseModel], fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as info:
        model.model_validate(fields)
    assert [".".join(map(str, error["loc"])) for error in info.value.errors()] == [key]


def test_limits_do_not_change() -> None:
    limits = MachineLimits()
    with pytest.raises(ValidationError, match="frozen"):
        limits.memory_mb = 1000  # type: ignore[misc]
    assert hash(limits) == hash(MachineLimits())


def test_a_block_has_offsets_and_a_confidence() -> None:
    with pytest.raises(ValidationError, match="execution_confidence"):
        CodeBlock(language="python", code="", execution_confidence=2, start_pos=0, end_pos=0)
    with pytest.raises(ValidationError, match="start_pos"):
        CodeBlock(language="python", code="", execution_confidence=1, start_pos=-1, end_pos=0)


# --- results ----------------------------------------------------------------------------------------------------------


def test_formats_of_a_result_in_their_order() -> None:
    assert Result().formats() == []
    result = Result(png="p", text="", json=0, extra={"x/y": 1})
    assert result.formats() == ["text", "png", "json", "x/y"]


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValidationError, match="gif"):
        Result(gif="x")  # type: ignore[call-arg]


def test_text_is_that_of_the_main_result() -> None:
    results = [Result(text="figure"), Result(text="42", is_main_result=True), Result(text="later")]
    assert execution(results=results).text == "42"
    assert execution(results=results[:1]).text is None
    assert execution().text is None


def test_output_is_joined() -> None:
    run = execution(logs=Logs(stdout=["a", "b\n"], stderr=["c"]))
    assert (run.stdout, run.stderr) == ("ab\n", "c")


@pytest.mark.parametrize("reason", list(TerminationReason))
def test_only_what_ended_by_itself_succeeded(reason: TerminationReason) -> None:
    wanted = reason in {TerminationReason.COMPLETED, TerminationReason.OUTPUT_TRUNCATED}
    assert execution(termination_reason=reason).succeeded is wanted


def test_an_error_or_an_exit_code_is_no_success() -> None:
    assert execution().succeeded
    assert not execution(exit_code=1).succeeded
    assert not execution(error=ExecutionError(name="E", value="")).succeeded


def test_an_execution_comes_back_from_json_as_it_was() -> None:
    run = execution(
        results=[Result(json={"a": [1, None, "é"]}, extra={"x/y": {"z": 1}}, is_main_result=True)],
        logs=Logs(stdout=["\x00é😀"]),
        error=ExecutionError(name="E", value="v", traceback="t"),
        termination_reason="timeout",
        memory_peak_mb=1.25,
    )
    assert Execution.model_validate_json(run.model_dump_json()) == run


def test_the_wire_form_of_an_execution() -> None:
    run = execution(
        language="bash",
        exit_code=3,
        logs=Logs(stdout=["a", "b"], stderr=["c"]),
        results=[Result(text="t")],
        error=ExecutionError(name="ValueError", value="too big", traceback="long"),
        termination_reason=TerminationReason.MEMORY,
        context_survived=False,
        stdout_truncated=True,
        memory_peak_mb=7,
        changed_files=[FileChange(path="/home/user/a", change="deleted")],
        snapshot_before="snap-1",
        snapshot_after="snap-2",
        rolled_back_to="snap-1",
        restored_from="snap-0",
        lost_executions=["ex-0"],
        notes=["n"],
    )
    response = VmExecuteResponse.of(run)
    assert response.model_dump(mode="json") == {
        "execution_id": "ex-1",
        "vm_id": "sb-1",
        "language": "bash",
        "exit_code": 3,
        "stdout": "ab",
        "stderr": "c",
        "duration_ms": 1.5,
        "started_at": "2026-01-02T03:04:05Z",
        "completed_at": "2026-01-02T03:04:05Z",
        "error": "ValueError: too big",
        "traceback": "long",
        "backend": "gvisor",
        "results": [response.model_dump(mode="json")["results"][0]],
        "termination_reason": "memory",
        "context_survived": False,
        "stdout_truncated": True,
        "stderr_truncated": False,
        "memory_peak_mb": 7.0,
        "changed_files": [{"path": "/home/user/a", "change": "deleted"}],
        "snapshot_before": "snap-1",
        "snapshot_id": "snap-2",
        "rolled_back_to": "snap-1",
        "restored_from": "snap-0",
        "lost_executions": ["ex-0"],
        "notes": ["n"],
    }
    assert response.results[0].text == "t"
    assert VmExecuteResponse.of(execution()).error is None
