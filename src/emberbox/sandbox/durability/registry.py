"""Which sandboxes outlive the process: `<state_dir>/sandboxes/<id>.json`, one record each.

A record is written whole (rename), after every change that is acknowledged. One process at a time keeps the sandboxes
of a state directory; it holds a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from datetime import datetime
from pathlib import Path

from pydantic import ConfigDict, Field, ValidationError

from emberbox._files import write_whole
from emberbox.errors import ConfigError
from emberbox.images.template import Template
from emberbox.machines.contract import Death
from emberbox.models import MachineLimits, Model, TerminationReason
from emberbox.sandbox.lineage import Lineage, Restoration, SnapshotPoint
from emberbox.sandbox.log import warn
from emberbox.sandbox.options import SandboxOptions

FORMAT = 1
_LOCK = ".lock"
_UNREADABLE = ".unreadable"
_REMEDY = "its snapshots stay (`emberbox snapshot list`): create a sandbox from one, then delete this file"


class UntoldLoss(Model):
    """A machine died, its sandbox went back to a snapshot, and whoever runs code in it next is to be told."""

    snapshot_id: str | None
    lost: list[str]
    count: int
    reason: TerminationReason
    message: str

    @classmethod
    def of(cls, restoration: Restoration | None) -> UntoldLoss | None:
        """Write one down."""
        if restoration is None:
            return None
        death = restoration.death
        return cls(
            snapshot_id=restoration.snapshot_id,
            lost=restoration.lost,
            count=restoration.lost_count,
            reason=death.reason,
            message=death.message,
        )

    def restoration(self) -> Restoration:
        """Read it."""
        return Restoration(self.snapshot_id, self.lost, Death(self.reason, self.message), self.count)


class SandboxRecord(Model):
    """A sandbox, as far as it must be known to find it again."""

    model_config = ConfigDict(hide_input_in_errors=True)
    """What is wrong with one is told to users and logged; an environment may be secret."""

    format: int = FORMAT
    sandbox_id: str
    agent_id: str
    own: bool = Field(default=False, description="the sandbox that its agent gets without naming one")
    image: str
    built_at: datetime
    guest: str
    template: Template
    limits: MachineLimits
    envs: dict[str, str]
    metadata: dict[str, str]
    started_at: datetime
    end_at: datetime | None = None
    idle_seconds: float | None = None
    machine: str | None = Field(default=None, description="the machine it runs in; None while it runs in none")
    head: str | None = Field(default=None, description="the snapshot that it goes on from")
    path: list[str] = Field(default_factory=list)
    path_count: int = Field(default=0, description="how many executions it consists of; 0: those of the path")
    good: bool = True
    untold: UntoldLoss | None = Field(default=None, description="a death of its machine of which nobody was told")

    def options(self) -> SandboxOptions:
        """Say what the sandbox is to be made with again; `SandboxInstance.found_again` tells it the rest."""
        return SandboxOptions(self.envs, self.metadata, self.agent_id, self.sandbox_id)

    def lineage(self) -> Lineage:
        """Say where its state comes from."""
        moment = SnapshotPoint(tuple(self.path), self.good, count=self.path_count)
        return Lineage.recorded(moment, None if self.untold is None else self.untold.restoration())


class SandboxRegistry:
    """The records of a state directory. Use `open()` before anything else, and `close()` it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock_fd = -1

    def open(self) -> None:
        """Take the lock; harmless when it is taken by this one.

        Raises:
            ConfigError: the folder cannot be made, or another process keeps its sandboxes.
        """
        if self._lock_fd >= 0:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise ConfigError(f"Cannot use {self._folder}: {exc.strerror}.", remediation="Set `state_dir`.") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(fd)
            raise ConfigError(
                f"Another process keeps the sandboxes of {self._folder}.",
                remediation="Stop it, or set another `state_dir` for this one.",
            ) from exc
        self._lock_fd = fd
        for path in self._folder.glob(".sb-*"):  # a write that was cut short
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def write(self, record: SandboxRecord) -> None:
        """Write a record; raises OSError."""
        write_whole(self._folder / f"{record.sandbox_id}.json", record.model_dump_json())

    def remove(self, sandbox_id: str) -> None:
        """Forget a sandbox; harmless when it is not known."""
        with contextlib.suppress(OSError):
            (self._folder / f"{sandbox_id}.json").unlink()

    def records(self) -> list[SandboxRecord]:
        """All that can be read; what cannot is moved away as `<id>.unreadable`, because it is somebody's: see there."""
        found = []
        for path in sorted(self._folder.glob("sb-*.json")):
            try:
                record = SandboxRecord.model_validate_json(path.read_bytes())
                if record.format == FORMAT and f"{record.sandbox_id}.json" == path.name:
                    found.append(record)
                    continue
                why = "it is of another version of Emberbox, or of another sandbox"
            except (OSError, ValidationError) as exc:
                why = str(exc)
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(_UNREADABLE))
            warn("record of a sandbox cannot be read", why, file=str(path.with_suffix(_UNREADABLE)), remedy=_REMEDY)
        return sorted(found, key=lambda record: record.started_at)

    def unreadable(self) -> set[str]:
        """Sandboxes whose records could not be read. Their snapshots stay, and new sandboxes can be made from them."""
        return {path.stem for path in self._folder.glob(f"sb-*{_UNREADABLE}")}
