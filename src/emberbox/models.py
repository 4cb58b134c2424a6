"""Wire and domain types. Everything that crosses a border (SDK, CLI, HTTP, files) is one of these.

Units: `*_ms` are milliseconds, `*_mb` are MiB, `timeout*` without a suffix are seconds, offsets count characters.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

Language = Literal["python", "javascript", "bash", "rust"]
ALL_LANGUAGES: tuple[Language, ...] = get_args(Language)


class Model(BaseModel):
    """Base: unknown keys are an error that names the key."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class TerminationReason(StrEnum):
    """Why an execution ended. Anything but `completed` and `output-truncated` means that the code was cut short or
    could not get what it asked for."""

    COMPLETED = "completed"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    PROCESSES = "processes"
    DISK = "disk"
    OUTPUT_TRUNCATED = "output-truncated"
    KILLED = "killed"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"


# --- configuration ------------------------------------------------------------------------------------------------


class HistoryConfig(Model):
    """What is recorded and when snapshots are taken (REFERENCE: HistoryConfig)."""

    enabled: bool = True
    snapshot_on_execution: bool = False
    snapshot_on_failure: bool = True
    auto_rollback_on_failure: bool = False
    max_history_entries: int = Field(default=100, ge=1)
    persist_history: bool = True
    track_files: bool = Field(default=True, description="note which files each execution changes")
    integration_mode: Literal["http", "direct"] = "http"


class ResourceLimits(Model):
    """The most that one execution may use."""

    max_memory_mb: int = Field(default=2048, ge=64)
    max_execution_time_seconds: int = Field(default=60, ge=1)


class SecuritySettings(Model):
    dangerous_patterns_check: bool = True
    resource_limits: ResourceLimits = ResourceLimits()


class MachineLimits(Model):
    """What one machine may use of the host. Disk is memory here: work directory and /tmp are size-limited and in RAM
    on gVisor, so that `memory_mb` bounds them too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory_mb: int = Field(default=2048, ge=128, le=1 << 20)
    vcpus: float = Field(default=2.0, ge=0.1, le=256)
    processes: int = Field(default=256, ge=16, le=32768, description="processes and threads of user code")
    open_files: int = Field(default=1024, ge=64, le=1 << 20)
    disk_mb: int = Field(default=1024, ge=8, le=1 << 20, description="home and work directory")
    tmp_mb: int = Field(default=256, ge=8, le=1 << 20, description="the directory /tmp")
    output_bytes: int = Field(default=1 << 20, ge=1024, le=64 << 20, description="per stream and execution")


class VmExecutionConfig(Model):
    """Settings of code execution, as they stand in a role file or under `[vm_execution]` of emberbox.toml."""

    enabled: bool = False
    api_base_url: str = "http://localhost:8080"
    vm_pool_size: int = Field(default=1, ge=0)
    default_vm_type: str = "default"
    execution_timeout_ms: int = Field(default=30_000, ge=1)
    allowed_languages: list[Language] = Field(default_factory=lambda: list(ALL_LANGUAGES))
    auto_provision: bool = True
    code_validation: bool = True
    max_code_length: int = Field(default=10_000, ge=1, description="characters")
    disabled_restrictions: list[str] = Field(default_factory=list, description="ids of language rules switched off")
    history: HistoryConfig = HistoryConfig()
    security_settings: SecuritySettings = SecuritySettings()


class LanguageConfig(Model):
    """One language: its names, its files and how its code runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Language
    aliases: tuple[str, ...]
    file_extension: str
    run_command: tuple[str, ...]
    timeout_multiplier: float = Field(default=1.0, gt=0)
    restrictions: tuple[str, ...] = ()


# --- extraction -----------------------------------------------------------------------------------------------------


class CodeBlock(Model):
    """A piece of code found in a text."""

    language: str
    code: str
    execution_confidence: float = Field(ge=0, le=1)
    start_pos: int = Field(ge=0)
    end_pos: int = Field(ge=0)
    metadata: dict[str, Any] = Field(default_factory=dict)


class ExecutionIntent(Model):
    """How strongly a text asks for its code to be run."""

    confidence: float = Field(ge=0, le=1)
    trigger_keywords: list[str] = Field(default_factory=list)
    context_clues: list[str] = Field(default_factory=list)
    suggested_action: Literal["auto-execute", "ask", "show", "none"] = "none"


class Finding(Model):
    """One reason why a validation refused a piece of code. Lines and columns count from 1."""

    rule: str
    message: str
    line: int = Field(ge=1)
    column: int = Field(ge=1)
    snippet: str = ""
    remediation: str = ""


# --- execution ------------------------------------------------------------------------------------------------------


@dataclass(config=ConfigDict(extra="forbid"))
class Result:
    """A rich result: the last expression of a cell, a `display()` call, or a figure. Binary formats are base64.

    A dataclass, because a field named `json` would hide a method of pydantic's models. `extra` holds other MIME types.
    """

    text: str | None = None
    html: str | None = None
    markdown: str | None = None
    svg: str | None = None
    png: str | None = None
    jpeg: str | None = None
    pdf: str | None = None
    latex: str | None = None
    json: Any = None
    javascript: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict)
    is_main_result: bool = False

    def formats(self) -> list[str]:
        """Names of the formats that this result has, in order of declaration."""
        names = ("text", "html", "markdown", "svg", "png", "jpeg", "pdf", "latex", "json", "javascript")
        return [n for n in names if getattr(self, n) is not None] + list(self.extra)


class Logs(Model):
    """What the code printed, in the order of arrival within each stream."""

    stdout: list[str] = Field(default_factory=list)
    stderr: list[str] = Field(default_factory=list)


class ExecutionError(Model):
    """An uncaught error of the user's code. `traceback` names lines of the user's code only."""

    name: str
    value: str
    traceback: str = ""


class FileChange(Model):
    """A file that is other than before."""

    path: str
    change: Literal["created", "changed", "deleted"]


class Execution(Model):
    """What one execution did, and what was done to its sandbox because of it."""

    execution_id: str
    sandbox_id: str
    backend: str
    language: Language
    context_id: str | None = None
    results: list[Result] = Field(default_factory=list)
    logs: Logs = Field(default_factory=Logs)
    error: ExecutionError | None = None
    exit_code: int
    termination_reason: TerminationReason = TerminationReason.COMPLETED
    context_survived: bool = True
    execution_count: int | None = None
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    results_truncated: bool = False
    memory_peak_mb: float | None = None
    duration_ms: float
    started_at: datetime
    completed_at: datetime
    changed_files: list[FileChange] | None = Field(default=None, description="None: not known")
    snapshot_before: str | None = Field(default=None, description="a snapshot of the state before it")
    snapshot_after: str | None = Field(default=None, description="a snapshot of the state after it")
    rolled_back_to: str | None = Field(default=None, description="the snapshot that a policy took the sandbox back to")
    restored_from: str | None = Field(
        default=None, description="its machine died; the sandbox goes on from this snapshot"
    )
    lost_executions: list[str] = Field(default_factory=list, description="whose effects went with the machine")
    notes: list[str] = Field(default_factory=list, description="what else the caller should know")

    @property
    def text(self) -> str | None:
        """Text of the main result: what an interpreter would have printed for the last expression."""
        return next((r.text for r in self.results if r.is_main_result), None)

    @property
    def stdout(self) -> str:
        return "".join(self.logs.stdout)

    @property
    def stderr(self) -> str:
        return "".join(self.logs.stderr)

    @property
    def succeeded(self) -> bool:
        """Exit code 0, no error, and not cut short."""
        return self.exit_code == 0 and self.error is None and self.termination_reason in _HARMLESS


_HARMLESS = frozenset({TerminationReason.COMPLETED, TerminationReason.OUTPUT_TRUNCATED})


class CommandResult(Model):
    """What one command (`commands.run`) did. `error` is set when its sandbox died under it."""

    exit_code: int
    stdout: str = ""
    stderr: str = ""
    termination_reason: TerminationReason = TerminationReason.COMPLETED
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    error: str | None = None
    duration_ms: float


class ProcessInfo(Model):
    """A command under way in a sandbox."""

    pid: int
    argv: list[str]
    cwd: str = ""
    running_ms: float


class ContextInfo(Model):
    """A code context: an interpreter with its own variables."""

    id: str
    language: Language
    cwd: str = ""
    busy: bool = False


class EntryInfo(Model):
    """A file or directory inside a sandbox. Sizes in bytes, `modified` as UTC."""

    name: str
    path: str
    type: Literal["file", "dir", "symlink", "other"]
    size: int = 0
    mode: int = 0
    modified: datetime | None = None
    target: str | None = Field(default=None, description="where a symbolic link points")


class SandboxInfo(Model):
    """A sandbox as it is now."""

    sandbox_id: str
    template: str
    backend: str
    state: str
    started_at: datetime
    end_at: datetime | None
    limits: MachineLimits
    metadata: dict[str, str] = Field(default_factory=dict)
    agent_id: str = "local"
    recovered: Recovery | None = Field(default=None, description="how it was found again after a restart")


SnapshotKind = Literal["manual", "pre_execution", "post_execution", "failure", "pre_rollback", "shutdown"]


class SnapshotInfo(Model):
    """A sandbox as it was at one moment: files, memory and processes."""

    snapshot_id: str
    name: str
    sandbox_id: str
    agent_id: str = "local"
    kind: SnapshotKind = "manual"
    parent_id: str | None = Field(default=None, description="the snapshot that this one goes on from")
    execution_id: str | None = Field(default=None, description="the last execution before it")
    good: bool = Field(default=True, description="that execution succeeded, or there was none")
    kept: bool = Field(default=False, description="outlives its sandbox and this process")
    created_at: datetime
    size_bytes: int


class Recovery(Model):
    """What became of a sandbox when the process that kept it ended.

    `adopted`: its machine ran on. `dormant`: it will go on from a snapshot when it is asked for. `restored`: it does.
    `lost`: there was no snapshot, or its time was over.
    """

    sandbox_id: str
    agent_id: str
    how: Literal["adopted", "dormant", "restored", "lost"]
    snapshot_id: str | None = None
    lost_executions: list[str] = Field(default_factory=list, description="whose effects are gone")


class FileDiff(Model):
    """How a file differs between two points."""

    path: str
    change: Literal["created", "changed", "deleted"]
    size_before: int | None = None
    size_after: int | None = None
    diff: str | None = Field(default=None, description="unified diff; None for what is no text, or too long")


class RollbackRequest(Model):
    """Where to take a sandbox back to."""

    target: str = Field(description='a snapshot, an execution (the state before it), or "last-success"')
    paths: list[str] | None = Field(default=None, description="take back only these files and folders")
    create_pre_rollback_snapshot: bool = False


class RollbackResponse(Model):
    """A rollback that was done."""

    message: str
    snapshot_id: str
    vm_id: str
    pre_rollback_snapshot_id: str | None = None
    rollback_time_ms: float
    files_affected: list[str] | None = Field(default=None, description="of a rollback of paths: what they hold now")
    executions_undone: list[str] = Field(default_factory=list)
    processes_terminated: int = 0
    rolled_back_at: datetime


class PoolStatus(Model):
    """Machines of one kind of sandbox: those made ahead, and those in use."""

    template: str
    limits: MachineLimits
    ready: int = Field(description="clones of the template that wait to be leased")
    starting: int = Field(description="clones on their way")
    in_use: int = Field(description="sandboxes")
    high: int = Field(description="clones that there shall be; 0: nothing is pooled (yet)")
    low: int = Field(description="below it, the pool is filled again")
    blanks: int = Field(description="empty machines for forks and rollbacks")


class SandboxMetrics(Model):
    """Use of resources; bytes and seconds. None where the host cannot tell."""

    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    memory_limit_bytes: int
    cpu_seconds: float | None = None
    disk_used_bytes: int
    disk_total_bytes: int
    processes: int


class VmExecuteRequest(Model):
    """A request to run one piece of code."""

    agent_id: str = "local"
    language: str
    code: str
    vm_id: str | None = None
    requirements: list[str] = Field(default_factory=list, description="packages that the code needs")
    timeout_seconds: float | None = Field(default=None, gt=0)
    working_dir: str | None = None
    metadata: dict[str, Any] | None = None


class VmExecuteResponse(Model):
    """The answer to a VmExecuteRequest."""

    execution_id: str
    vm_id: str
    language: str
    exit_code: int
    stdout: str
    stderr: str
    duration_ms: float
    started_at: datetime
    completed_at: datetime
    error: str | None = None
    backend: str
    results: list[Result] = Field(default_factory=list)
    termination_reason: TerminationReason = TerminationReason.COMPLETED
    context_survived: bool = True
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    memory_peak_mb: float | None = None
    changed_files: list[FileChange] | None = None
    snapshot_before: str | None = None
    snapshot_id: str | None = Field(default=None, description="of the state after it")
    rolled_back_to: str | None = None
    restored_from: str | None = None
    lost_executions: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @classmethod
    def of(cls, run: Execution) -> VmExecuteResponse:
        """The wire form of an Execution."""
        error = None if run.error is None else f"{run.error.name}: {run.error.value}"
        return cls(
            execution_id=run.execution_id,
            vm_id=run.sandbox_id,
            language=run.language,
            exit_code=run.exit_code,
            stdout=run.stdout,
            stderr=run.stderr,
            duration_ms=run.duration_ms,
            started_at=run.started_at,
            completed_at=run.completed_at,
            error=error,
            backend=run.backend,
            results=run.results,
            termination_reason=run.termination_reason,
            context_survived=run.context_survived,
            stdout_truncated=run.stdout_truncated,
            stderr_truncated=run.stderr_truncated,
            memory_peak_mb=run.memory_peak_mb,
            changed_files=run.changed_files,
            snapshot_before=run.snapshot_before,
            snapshot_id=run.snapshot_after,
            rolled_back_to=run.rolled_back_to,
            restored_from=run.restored_from,
            lost_executions=run.lost_executions,
            notes=run.notes,
        )


class ParseExecuteRequest(Model):
    """An LLM's answer, to be searched for code and run."""

    agent_id: str = "local"
    llm_response: str
    auto_execute: bool = True
    auto_execute_threshold: float = Field(default=0.7, ge=0, le=1)
    vm_config: VmExecutionConfig | None = None


class BlockError(Model):
    """Why a block was not run (or its run failed before it began). `block` is the block's index in `code_blocks`."""

    block: int | None = None
    code: str
    message: str
    remediation: str = ""


class ParseExecuteResponse(Model):
    """What was found in an LLM's answer, what ran, and what was refused."""

    code_blocks: list[CodeBlock] = Field(default_factory=list)
    intent: ExecutionIntent
    execution_results: list[VmExecuteResponse] = Field(default_factory=list)
    errors: list[BlockError] = Field(default_factory=list)


# --- history --------------------------------------------------------------------------------------------------------

HistoryState = Literal["started", "finished", "refused", "unknown"]


class CommandHistoryEntry(Model):
    """One execution as the history has it. `command` is the code.

    `state`: `started` (it runs), `finished`, `refused` (it never ran; `blocked_by` says why), or `unknown`: Emberbox
    died while it ran, so that nobody knows how far it came.
    """

    id: str
    execution_id: str
    parent_id: str | None = Field(default=None, description="the execution whose state this one went on from")
    vm_id: str | None = Field(description="the sandbox; None for what was refused before there was one")
    agent_id: str = "local"
    backend: str | None = None
    language: str
    command: str
    state: HistoryState
    success: bool = False
    blocked_by: str | None = Field(default=None, description="rules of the policy, or the code of the error")
    error: str | None = Field(default=None, description="the uncaught error, or why it did not run")
    exit_code: int | None = None
    termination_reason: TerminationReason | None = None
    stdout: str = ""
    stderr: str = ""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    executed_at: datetime
    duration_ms: float | None = None
    memory_peak_mb: float | None = None
    snapshot_before_id: str | None = Field(default=None, description="a snapshot of the state before it")
    snapshot_id: str | None = Field(default=None, description="a snapshot of the state after it")
    rolled_back_to: str | None = Field(default=None, description="the snapshot that the sandbox was taken back to")
    changed_files: list[FileChange] | None = None


class HistoryQueryRequest(Model):
    """Which entries are wanted. Times include their ends; a time without a zone is local time."""

    vm_id: str | None = None
    agent_id: str | None = None
    limit: int = Field(default=50, ge=1, le=10_000)
    failures_only: bool = False
    start_date: datetime | None = None
    end_date: datetime | None = None


class HistoryQueryResponse(Model):
    """Entries, newest first; `total` counts all that match, beyond the limit as well."""

    history: list[CommandHistoryEntry] = Field(default_factory=list)
    total: int = 0


class BadLink(Model):
    """Where the audit chain is broken. `sequence` is None for an entry that no link knows."""

    sequence: int | None
    execution_id: str | None
    why: str


class HistoryVerification(Model):
    """What `verify` found. `head` is the hash of the last link: note it elsewhere, and the past cannot be rewritten
    without your noticing."""

    intact: bool
    links: int
    entries: int
    head: str
    first_bad: BadLink | None = None
