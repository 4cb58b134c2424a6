"""Sandboxes, what is in them, their snapshots, and how they are found again."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from emberbox.models.base import GuestPath, Language, Model
from emberbox.models.configuration import MachineLimits


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
    """A file or directory inside a sandbox. Sizes in bytes, `modified` as UTC. Names as of `os.fsdecode`; in JSON, a
    byte that is not UTF-8 is U+0000 and two hex digits."""

    name: GuestPath
    path: GuestPath
    type: Literal["file", "dir", "symlink", "other"]
    size: int = 0
    mode: int = 0
    modified: datetime | None = None
    target: GuestPath | None = Field(default=None, description="where a symbolic link points")


class Recovery(Model):
    """What became of a sandbox when the process that kept it ended.

    `adopted`: its machine ran on. `suspended`: it will go on from a snapshot when it is asked for. `restored`: it does.
    `lost`: there was no snapshot, or its time was over.
    """

    sandbox_id: str
    agent_id: str
    how: Literal["adopted", "dormant", "restored", "lost"]
    snapshot_id: str | None = None
    lost_executions: list[str] = Field(default_factory=list, description="whose effects are gone")


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


SnapshotStrategy = Literal["none", "pre-execution", "post-execution", "on-failure"]
SnapshotKind = Literal["manual", "pre_execution", "post_execution", "failure", "pre_rollback", "shutdown"]


class SnapshotInfo(Model):
    """A sandbox as it was at one moment: files, memory and processes."""

    snapshot_id: str
    name: str
    description: str = Field(default="", description="what its maker said of it")
    sandbox_id: str
    agent_id: str = "local"
    kind: SnapshotKind = "manual"
    parent_id: str | None = Field(default=None, description="the snapshot that this one goes on from")
    execution_id: str | None = Field(default=None, description="the last execution before it")
    good: bool = Field(default=True, description="that execution succeeded, or there was none")
    kept: bool = Field(default=False, description="outlives its sandbox and this process")
    created_at: datetime
    size_bytes: int


class FileDiff(Model):
    """How a file differs between two points. `path` as of EntryInfo."""

    path: GuestPath
    change: Literal["created", "changed", "deleted"]
    size_before: int | None = None
    size_after: int | None = None
    diff: str | None = Field(
        default=None, description="unified diff; None for what is no text, too long, or differs in too much"
    )


class RollbackRequest(Model):
    """Where to take a sandbox back to."""

    target: str = Field(description='a snapshot, an execution (the state before it), or "last-success"')
    paths: list[GuestPath] | None = Field(default=None, description="take back only these files and folders")
    create_pre_rollback_snapshot: bool = False


class RollbackResponse(Model):
    """A rollback that was done."""

    message: str
    snapshot_id: str
    vm_id: str
    pre_rollback_snapshot_id: str | None = None
    rollback_time_ms: float
    files_affected: list[GuestPath] | None = Field(
        default=None, description="of a rollback of paths: what they hold now"
    )
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
