"""What the server takes and gives, beyond what the SDK knows already (docs/api.md)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from emberbox.models.base import (
    AgentId,
    EnvName,
    EnvValue,
    GuestPath,
    Language,
    Milliseconds,
    Model,
    Seconds,
    TemplateName,
)
from emberbox.models.configuration import MachineLimits
from emberbox.models.execution import BlockError, Result, VmExecuteResponse
from emberbox.models.hooks import ApprovalRequest
from emberbox.models.sandboxes import (
    ContextInfo,
    EntryInfo,
    FileDiff,
    PoolStatus,
    ProcessInfo,
    SnapshotInfo,
    SnapshotStrategy,
)

VmStatus = Literal["provisioning", "ready", "running", "paused", "stopped", "failed"]
RollbackStrategy = Literal["snapshot", "to-last-success", "to-pre-execution", "selective"]
ExecutionStatus = Literal["completed", "failed", "timeout", "cancelled"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Names of sessions and machines: they stand in URLs."""


class ErrorBody(Model):
    """Why a request was not done."""

    code: str
    message: str
    remediation: str
    retryable: bool = Field(description="it certainly never ran: to repeat it is safe")
    details: dict[str, Any] = Field(default_factory=dict)


class ErrorResponse(Model):
    """The answer of every request that failed."""

    error: ErrorBody


class VmInstance(Model):
    """A machine, as its owner sees it."""

    id: str
    name: str
    vm_type: str
    status: VmStatus
    ip_address: str | None = Field(default=None, description="machines have no network yet")
    created_at: datetime
    last_activity: datetime
    agent_id: str
    backend: str


class VmList(Model):
    """All machines that the caller may see."""

    vms: list[VmInstance]
    total: int


class VmCreateRequest(Model):
    """A machine of one's own."""

    vm_type: TemplateName | None = Field(default=None, description="a template's name; default_vm_type if left out")
    vm_name: str | None = Field(default=None, pattern=NAME)
    agent_id: AgentId | None = None
    envs: dict[EnvName, EnvValue] = Field(default_factory=dict)
    metadata: dict[str, str] = Field(default_factory=dict)
    limits: MachineLimits | None = None
    timeout_seconds: Seconds | None = Field(default=None, description="killed after so long; None: never")
    snapshot_id: str | None = Field(default=None, description="a kept snapshot to go on from")


class PoolConfig(Model):
    """What of the settings concerns the machines of an agent."""

    vm_pool_size: int
    default_vm_type: str
    auto_provision: bool
    max_sandboxes_per_agent: int


class VmPoolResponse(Model):
    """The machines of an agent: those that do nothing, and those in which code runs."""

    agent_id: str
    available_vms: list[VmInstance]
    in_use_vms: list[VmInstance]
    pool_config: PoolConfig


class SnapshotCreateRequest(Model):
    """A snapshot by hand."""

    name: str | None = Field(default=None, max_length=100)
    description: str = Field(default="", max_length=2000, description="kept with the snapshot, and listed")
    snapshot_type: Literal["manual", "kept"] = Field(
        default="manual", description="kept: it outlives its machine, `POST /api/vms` can start from it"
    )


class SnapshotCreated(Model):
    """A snapshot that was taken."""

    snapshot_id: str
    name: str
    size_mb: float
    creation_time_ms: float


class SessionCreateRequest(Model):
    """A machine under a name, for a long session."""

    name: str = Field(pattern=NAME)
    vm_type: TemplateName | None = None
    memory_mb: int | None = Field(default=None, ge=128, le=1 << 20)
    vcpus: float | None = Field(default=None, ge=0.1, le=256)
    agent_id: AgentId | None = None


class SessionInfo(Model):
    """A session."""

    name: str
    vm_id: str
    vm_type: str
    agent_id: str
    status: VmStatus
    memory_mb: int
    vcpus: float
    created_at: datetime
    last_activity: datetime
    snapshots: int | None = Field(default=None, description="None: not known without waking it")


class SessionList(Model):
    sessions: list[SessionInfo]
    total: int


class SessionCommand(Model):
    """A command for the session's shell: working directory and variables stay."""

    command: str = Field(min_length=1)
    timeout_seconds: Seconds | None = None


class SessionOutput(Model):
    """What the command printed; `output` is both streams, standard error last."""

    stdout: str
    stderr: str
    output: str
    exit_code: int
    execution_id: str


class SessionSnapshotRequest(Model):
    name: str | None = Field(default=None, max_length=100)


class SessionRollbackRequest(Model):
    snapshot_id: str
    create_pre_rollback_snapshot: bool = False


class ExecutionLimits(Model):
    """Bounds of one execution, narrower than the machine's own."""

    timeout_ms: Milliseconds | None = None
    output_bytes: int | None = Field(default=None, ge=1024, le=64 << 20)


class ExecuteV2Request(Model):
    """One piece of code to run."""

    code: str
    language: str
    agent_id: AgentId | None = None
    vm_id: str | None = None
    timeout_ms: Milliseconds | None = None
    working_dir: str | None = None
    requirements: list[str] = Field(default_factory=list)
    metadata: dict[str, Any] | None = None
    snapshot_strategy: SnapshotStrategy = "none"
    resource_limits: ExecutionLimits | None = None


class ExecuteV2Response(VmExecuteResponse):
    """As of /api/llm/execute, with how it ended in one word."""

    status: ExecutionStatus


class BatchBlock(Model):
    code: str
    language: str
    timeout_ms: Milliseconds | None = None


class BatchRequest(Model):
    """Several pieces of code: in one machine, one after the other, with what they leave behind; or each in a fork of
    its own, at once."""

    code_blocks: list[BatchBlock] = Field(min_length=1, max_length=100)
    agent_id: AgentId | None = None
    vm_id: str | None = None
    execution_mode: Literal["sequential", "parallel"] = "sequential"
    stop_on_failure: bool = False
    snapshot: bool = Field(default=False, description="take one when all is done (sequential only)")


class BatchResult(Model):
    """One block of a batch: its execution, or why it did not run."""

    block: int
    status: Literal["completed", "failed", "timeout", "cancelled", "refused", "skipped"]
    execution: VmExecuteResponse | None = None
    error: BlockError | None = None


class BatchResponse(Model):
    batch_id: str
    results: list[BatchResult]
    total_duration_ms: float
    vm_id: str
    snapshot_id: str | None = None
    note: str = Field(default="", description="what else was wanted and did not come about")


class PoolStats(Model):
    """Machines of all kinds together."""

    ready: int
    starting: int
    in_use: int
    kinds: list[PoolStatus]


class ResourceStats(Model):
    """Use of the host; bytes."""

    sandboxes: int
    max_sandboxes: int
    executions_running: int
    executions_waiting: int
    snapshots: int
    snapshot_bytes: int
    free_memory_bytes: int | None


class PoolStatusResponse(Model):
    pool_stats: PoolStats
    resource_stats: ResourceStats


class VmConfig(Model):
    """What a machine may use; the template's own where left out."""

    memory_mb: int | None = Field(default=None, ge=128, le=1 << 20)
    vcpus: float | None = Field(default=None, ge=0.1, le=256)
    root_fs_size_gb: float | None = Field(default=None, gt=0, le=1024, description="home and work directory")


class AllocateRequest(Model):
    agent_id: AgentId | None = None
    vm_type: TemplateName | None = None
    vm_config: VmConfig = Field(default_factory=VmConfig)


class AllocateResponse(Model):
    """It is ready when the answer comes, so that the estimate is 0."""

    vm_id: str
    status: VmStatus
    estimated_ready_time_ms: float


class RollbackV2Request(Model):
    """How to take a machine back. `selective` takes only `paths` back; memory and processes stay."""

    strategy: RollbackStrategy = "snapshot"
    paths: list[str] | None = Field(default=None, min_length=1, max_length=1000)
    execution_id: str | None = Field(default=None, description="for to-pre-execution; the last one if left out")
    create_pre_rollback_snapshot: bool = False


class RollbackV1Request(Model):
    create_pre_rollback_snapshot: bool = False


class ApprovalList(Model):
    """Questions that wait for a person."""

    approvals: list[ApprovalRequest]
    total: int


class ApprovalAnswer(Model):
    """A yes or a no. `edited_code` takes the place of what was asked about."""

    approve: bool
    edited_code: str | None = None
    reason: str = Field(default="", max_length=2000)


class CancelRequest(Model):
    """Which execution to stop: its id, or the Idempotency-Key that it was asked for with."""

    execution_id: str | None = None
    idempotency_key: str | None = None


class CancelResponse(Model):
    cancelled: bool = Field(description="False: it had ended")


class Health(Model):
    """The process lives."""

    status: Literal["ok"] = "ok"
    version: str
    uptime_seconds: float


class Readiness(Model):
    """A machine answered lately."""

    status: Literal["ready"] = "ready"
    backend: str
    answered_at: datetime
    answer_ms: float


class RunCodeRequest(Model):
    """`Sandbox.run_code` over the wire. `stdin` is base64."""

    code: str
    language: str = "python"
    context_id: str | None = None
    cwd: str | None = None
    envs: dict[EnvName, EnvValue] = Field(default_factory=dict)
    args: list[str] = Field(default_factory=list)
    stdin: str = ""
    timeout_seconds: Seconds | None = None
    requirements: list[str] = Field(default_factory=list)


class ContextCreateRequest(Model):
    language: Language | str = "python"
    cwd: str | None = None
    envs: dict[EnvName, EnvValue] = Field(default_factory=dict)


class CommandRequest(Model):
    """`commands.run` over the wire: a text for `bash -c`, or a list of arguments."""

    cmd: str | list[str]
    cwd: str | None = None
    envs: dict[EnvName, EnvValue] = Field(default_factory=dict)
    timeout_seconds: Seconds | None = None
    background: bool = False


class StdinRequest(Model):
    """Bytes for a command, base64."""

    data: str = ""
    eof: bool = False


class PointRequest(Model):
    """A point of a machine's past: a snapshot (id or name), an execution, or "last-success"."""

    point: str
    timeout_seconds: Seconds | None = 300.0


class ForkRequest(Model):
    count: int = Field(default=1, ge=1, le=100)
    timeout_seconds: Seconds | None = 300.0


class ForkResponse(Model):
    vms: list[VmInstance]


class DiffRequest(Model):
    """Two points; `after` left out: now."""

    before: str
    after: str | None = None


class TimeoutRequest(Model):
    seconds: Seconds | None = Field(description="from now; null: never")


class InterruptRequest(Model):
    context_id: str | None = None


class InterruptResponse(Model):
    reached: int


class RenameRequest(Model):
    path: GuestPath
    new_path: GuestPath


class PathRequest(Model):
    path: GuestPath


class OutputEvent(Model):
    """Event `stdout` or `stderr` of a stream."""

    content: str


class ResultEvent(Model):
    """Event `result` of a stream."""

    result: Result


class FollowedEvent(Model):
    """What happens in a machine, for whoever watches it (GET /api/vms/{id}/events)."""

    kind: Literal["started", "stdout", "stderr", "result", "ended", "refused", "missed", "closed"]
    execution_id: str | None = None
    content: str = ""
    exit_code: int | None = None
    duration_ms: float | None = None


class CommandStarted(Model):
    """Event `started` of a command's stream."""

    pid: int


class Done(Model):
    """It is done, and there is nothing more to say."""

    done: Literal[True] = True


class KillResponse(Model):
    killed: bool = Field(description="False: there was none")


class ContextList(Model):
    contexts: list[ContextInfo]


class EntryList(Model):
    entries: list[EntryInfo]


class ProcessList(Model):
    processes: list[ProcessInfo]


class SnapshotList(Model):
    """Oldest first; `parent_id` makes them a tree."""

    snapshots: list[SnapshotInfo]


class DiffResponse(Model):
    files: list[FileDiff]


class MadeDir(Model):
    created: bool


class KeepRequest(Model):
    name: str | None = Field(default=None, max_length=100)
    keep: bool = False
    description: str = Field(default="", max_length=2000)
