"""What was executed."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from emberbox.models.base import Model, TerminationReason
from emberbox.models.execution import FileChange
from emberbox.models.hooks import DecisionRecord

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
    decisions: list[DecisionRecord] = Field(default_factory=list, description="of hooks, policy and people")


class HistoryQueryRequest(Model):
    """Which entries are wanted. Times include their ends; a time without a zone is local time."""

    vm_id: str | None = None
    agent_id: str | None = None
    agent_ids: list[str] | None = Field(default=None, description="only of these agents; None: of all")
    limit: int = Field(default=50, ge=1, le=10_000)
    failures_only: bool = False
    start_date: datetime | None = None
    end_date: datetime | None = None
    before: str | None = Field(default=None, max_length=64, description="only older ones than this execution")


class HistoryQueryResponse(Model):
    """Entries, newest first; `total` counts all that match, beyond the limit as well.

    A server's answer may end before the limit, where it would be too long. `next` is the execution that it ends with,
    if there are more: the same question with `before=` it goes on there.
    """

    history: list[CommandHistoryEntry] = Field(default_factory=list)
    total: int = 0
    next: str | None = Field(default=None, description="there are more: ask again with `before` this")


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
