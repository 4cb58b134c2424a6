"""What the state of a sandbox consists of: a pure value. Events give the next one; no clock, no machine, no asyncio.

A `SandboxInstance` holds one, and replaces it when something happens to it; others read it. A snapshot carries the
`SnapshotPoint` at which it was taken, so that "is this snapshot one of now" and "what does going back to it undo" are
questions about two values. Which snapshot a sandbox goes on from (the head) is the business of its `SnapshotTree`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from emberbox.machines.contract import Death

REMEMBERED = 1000
"""Executions of a sandbox's past; older ones are forgotten."""


@dataclass(frozen=True, slots=True)
class SnapshotPoint:
    """What a sandbox was at when a snapshot was taken."""

    executions: tuple[str, ...] = ()
    """The executions that its state consists of, oldest first."""
    last_succeeded: bool = True
    """The one that ended last succeeded."""
    revision: int = 0
    """Of its state, as its sandbox counts; 0 where an earlier process took the snapshot."""


@dataclass(frozen=True, slots=True)
class Restoration:
    """A machine died, and its sandbox goes on from a snapshot."""

    snapshot_id: str
    lost: list[str]
    """Executions whose effects are gone."""
    death: Death


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where the state of a sandbox comes from."""

    executions: tuple[str, ...] = ()
    """The executions that it consists of, oldest first, at most the last `REMEMBERED`."""
    last_succeeded: bool = True
    """The one that ended last succeeded."""
    revision: int = 0
    """Of the state: another number after whatever may have changed it."""
    snapshots_before: Mapping[str, str] = field(default_factory=dict)
    """For executions, also undone ones: the snapshot of the very state before them, where there was one."""
    restoration: Restoration | None = None
    """What nobody was told yet."""

    @classmethod
    def going_on_from(cls, moment: SnapshotPoint) -> Lineage:
        """Begin that of a new sandbox, which has no snapshots of its own yet."""
        return cls(moment.executions, moment.last_succeeded)

    @classmethod
    def recorded(cls, executions: tuple[str, ...], *, last_succeeded: bool) -> Lineage:
        """Begin that of a sandbox which an earlier process kept. Nobody knows what that one did to it after its last
        snapshot, hence none of those snapshots (all of revision 0) is one of now."""
        return cls(executions, last_succeeded, revision=1)

    # --- what happens ---------------------------------------------------------------------------------------------

    def began(self, execution_id: str, snapshot_id: str | None = None) -> Lineage:
        """Note an execution that is about to begin. `snapshot_id`: the snapshot of this very state, if there is one."""
        executions = (*self.executions, execution_id)
        forgotten = executions[:-REMEMBERED]
        before = {run: snap for run, snap in self.snapshots_before.items() if run not in forgotten}
        if snapshot_id is not None:
            before[execution_id] = snapshot_id
        for oldest in list(before)[:-REMEMBERED]:
            del before[oldest]
        return replace(self, executions=executions[-REMEMBERED:], snapshots_before=before)

    def aborted(self, execution_id: str) -> Lineage:
        """Take back that an execution began: the machine refused it, and nothing of it was run."""
        return replace(self, executions=tuple(run for run in self.executions if run != execution_id))

    def finished(self, execution_id: str, *, succeeded: bool) -> Lineage:
        """Note how an execution ended; one that was undone meanwhile says nothing about the state."""
        return replace(self, last_succeeded=succeeded) if execution_id in self.executions else self

    def touched(self) -> Lineage:
        """Note that the state is about to change: a snapshot of before is not one of now any more."""
        return replace(self, revision=self.revision + 1)

    def went_back_to(self, moment: SnapshotPoint) -> Lineage:
        """Note that the state is that of a snapshot now."""
        return replace(
            self, executions=moment.executions, last_succeeded=moment.last_succeeded, revision=self.revision + 1
        )

    def restored(self, moment: SnapshotPoint, snapshot_id: str, death: Death) -> Lineage:
        """Note that the machine died and the sandbox went back to a snapshot without being asked to, of which whoever
        runs code in it next is to be told."""
        restoration = Restoration(snapshot_id, self.undone_by(moment), death)
        return replace(self.went_back_to(moment), restoration=restoration)

    def told(self) -> Lineage:
        """Note that a caller was told of the restoration."""
        return replace(self, restoration=None)

    # --- what is asked --------------------------------------------------------------------------------------------

    @property
    def moment(self) -> SnapshotPoint:
        """What a snapshot of now carries."""
        return SnapshotPoint(self.executions, self.last_succeeded, self.revision)

    @property
    def newest(self) -> str | None:
        """The execution that began last."""
        return self.executions[-1] if self.executions else None

    def is_at(self, moment: SnapshotPoint) -> bool:
        """Whether nothing can have changed since a snapshot of this sandbox was taken."""
        return moment.revision == self.revision

    def undone_by(self, moment: SnapshotPoint) -> list[str]:
        """List the executions that going back to a snapshot undoes, oldest first."""
        stays = set(moment.executions)
        return [execution for execution in self.executions if execution not in stays]

    def parent_of(self, execution_id: str) -> str | None:
        """Name the execution before one of `executions`; None for the first."""
        place = self.executions.index(execution_id)
        return self.executions[place - 1] if place else None
