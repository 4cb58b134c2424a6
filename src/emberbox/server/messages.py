"""What goes over the WebSockets (docs/api.md)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from emberbox.models import (
    ApprovalRequest,
    BlockError,
    CodeBlock,
    CommandHistoryEntry,
    Model,
    Result,
    VmExecuteResponse,
)
from emberbox.models.base import AgentId, Seconds
from emberbox.models.service import ExecutionStatus

# --- /ws/{vm_id}, in --------------------------------------------------------------------------------------------------


class ExecuteCode(Model):
    """LlmExecuteCode."""

    language: str
    code: str
    agent_id: AgentId | None = None
    execution_id: str | None = Field(default=None, max_length=200, description="a name of the caller's for it")
    timeout_seconds: Seconds | None = None
    requirements: list[str] = Field(default_factory=list)
    metadata: dict[str, Any] | None = None


class ParseExecute(Model):
    """LlmParseExecute."""

    llm_response: str
    agent_id: AgentId | None = None
    execution_id: str | None = Field(default=None, max_length=200)
    auto_execute: bool = True
    auto_execute_threshold: float = Field(default=0.7, ge=0, le=1)


class Cancel(Model):
    """CancelExecution."""

    execution_id: str


class QueryHistory(Model):
    agent_id: AgentId | None = None
    limit: int = Field(default=50, ge=1, le=10_000)
    failures_only: bool = False
    before: str | None = Field(default=None, max_length=64)


class CreateSnapshot(Model):
    name: str | None = Field(default=None, max_length=100)
    description: str = Field(default="", max_length=2000)
    agent_id: AgentId | None = None


class RollbackToSnapshot(Model):
    snapshot_id: str
    agent_id: AgentId | None = None
    create_pre_rollback_snapshot: bool = False


class ApprovalAnswered(Model):
    """ApprovalResponse."""

    approval_id: str
    approve: bool
    edited_code: str | None = None
    reason: str = Field(default="", max_length=2000)


class Incoming(Model):
    """Any message of a client."""

    message_type: str = Field(max_length=100)
    data: dict[str, Any] = Field(default_factory=dict)


# --- /ws/{vm_id}, out -------------------------------------------------------------------------------------------------


class ExecutionOutput(Model):
    """LlmExecutionOutput. `stream` is `stdout`, `stderr`, or `result` with a rich result beside."""

    execution_id: str
    stream: Literal["stdout", "stderr", "result"]
    content: str
    result: Result | None = None


class ExecutionComplete(Model):
    """LlmExecutionComplete. `history_id` is the id under which the history has it."""

    execution_id: str
    status: Literal[ExecutionStatus, "refused"]
    exit_code: int | None = None
    duration_ms: float | None = None
    history_id: str | None = None
    response: VmExecuteResponse | None = None
    error: dict[str, Any] | None = None
    block: int | None = Field(default=None, description="of LlmParseExecute: which block it was")


class ParseComplete(Model):
    """LlmParseComplete: all blocks are done."""

    execution_id: str
    status: Literal["completed", "cancelled"]
    code_blocks: list[CodeBlock] = Field(default_factory=list)
    errors: list[BlockError] = Field(default_factory=list)


class HistoryResponse(Model):
    history: list[CommandHistoryEntry]
    total: int
    next: str | None = None


class SnapshotMade(Model):
    """SnapshotCreated."""

    snapshot_id: str
    name: str


class RollbackComplete(Model):
    snapshot_id: str
    pre_rollback_snapshot_id: str | None
    message: str


class Asked(ApprovalRequest):
    """ApprovalRequest."""


class ErrorMessage(Model):
    """Error. `execution_id` where it is about one."""

    code: str
    message: str
    remediation: str = ""
    execution_id: str | None = None


# --- /ws --------------------------------------------------------------------------------------------------------------


class WorkflowCode(Model):
    """`data` of execute_code."""

    language: str
    code: str
    agent_id: AgentId | None = None
    timeout_seconds: Seconds | None = None


class WorkflowCommand(Model):
    """A message of a client of `/ws`."""

    command_type: str = Field(max_length=100)
    session_id: str | None = Field(default=None, max_length=200)
    workflow_id: str | None = Field(default=None, max_length=200)
    data: dict[str, Any] = Field(default_factory=dict)
