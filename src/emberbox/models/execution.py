"""Running code: requests, answers, and what came of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from emberbox.models.base import AgentId, Language, Model, Seconds, TerminationReason
from emberbox.models.configuration import VmExecutionConfig
from emberbox.models.extraction import CodeBlock, ExecutionIntent


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


class VmExecuteRequest(Model):
    """A request to run one piece of code."""

    agent_id: AgentId = "local"
    language: str
    code: str
    vm_id: str | None = None
    requirements: list[str] = Field(default_factory=list, description="packages that the code needs")
    timeout_seconds: Seconds | None = None
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
    traceback: str | None = Field(default=None, description="of the error, as its language shows it")
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
            traceback=None if run.error is None or not run.error.traceback else run.error.traceback,
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

    def execution(self) -> Execution:
        """Give the Execution that this is the wire form of, as far as that has it."""
        error = None
        if self.error is not None:
            name, _, value = self.error.partition(": ")
            error = ExecutionError(name=name, value=value, traceback=self.traceback or "")
        otherwise = {"vm_id", "stdout", "stderr", "error", "traceback", "snapshot_id", "results"}
        return Execution(
            **self.model_dump(exclude=otherwise),
            sandbox_id=self.vm_id,
            logs=Logs(stdout=[self.stdout] if self.stdout else [], stderr=[self.stderr] if self.stderr else []),
            results=self.results,
            error=error,
            snapshot_after=self.snapshot_id,
        )


class ParseExecuteRequest(Model):
    """An LLM's answer, to be searched for code and run."""

    agent_id: AgentId = "local"
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
