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
    count: int = 0
    """How many executions its state consists of, also those that `executions` does not name; 0: it names them all."""


@dataclass(frozen=True, slots=True)
class Restoration:
    """A machine died, and its sandbox goes on from a snapshot."""

    snapshot_id: str | None
    """None: there was none, and another sandbox took the place of this one."""
    lost: list[str]
    """Executions whose effects are gone, oldest first, at most the last `REMEMBERED`."""
    death: Death
    count: int = 0
    """How many they are, also those that `lost` does not name; 0: it names them all."""

    @property
    def lost_count(self) -> int:
        """How many executions are lost."""
        return max(self.count, len(self.lost))

    def and_before(self, earlier: Restoration | None) -> Restoration:
        """Add what an earlier one lost, of which nobody was told."""
        if earlier is None:
            return self
        count = earlier.lost_count + self.lost_count
        return replace(self, lost=[*earlier.lost, *self.lost][-REMEMBERED:], count=count)


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
    count: int = 0
    """How many executions it consists of, also those that are forgotten; 0: none is."""

    @classmethod
    def going_on_from(cls, moment: SnapshotPoint) -> Lineage:
        """Begin that of a new sandbox, which has no snapshots of its own yet."""
        return cls(moment.executions, moment.last_succeeded, count=moment.count)

    @classmethod
    def recorded(cls, moment: SnapshotPoint, untold: Restoration | None = None) -> Lineage:
        """Begin that of a sandbox which an earlier process kept. Nobody knows what that one did to it after its last
        snapshot, hence none of those snapshots (all of revision 0) is one of now."""
        return cls(moment.executions, moment.last_succeeded, 1, restoration=untold, count=moment.count)

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
        return replace(self, executions=executions[-REMEMBERED:], snapshots_before=before, count=self.total + 1)

    def aborted(self, execution_id: str) -> Lineage:
        """Take back that an execution began: the machine refused it, and nothing of it was run."""
        left = tuple(run for run in self.executions if run != execution_id)
        return replace(self, executions=left, count=self.total - len(self.executions) + len(left))

    def finished(self, execution_id: str, *, succeeded: bool) -> Lineage:
        """Note how an execution ended; one that was undone meanwhile says nothing about the state."""
        return replace(self, last_succeeded=succeeded) if execution_id in self.executions else self

    def touched(self) -> Lineage:
        """Note that the state is about to change: a snapshot of before is not one of now any more."""
        return replace(self, revision=self.revision + 1)

    def went_back_to(self, moment: SnapshotPoint) -> Lineage:
        """Note that the state is that of a snapshot now."""
        return replace(
            self,
            executions=moment.executions,
            last_succeeded=moment.last_succeeded,
            revision=self.revision + 1,
            count=moment.count,
        )

    def restored(self, moment: SnapshotPoint, snapshot_id: str, death: Death) -> Lineage:
        """Note that the machine died and the sandbox went back to a snapshot without being asked to, of which whoever
        runs code in it next is to be told."""
        restoration = Restoration(snapshot_id, self.undone_by(moment), death, self._undone_count(moment))
        return replace(self.went_back_to(moment), restoration=restoration.and_before(self.restoration))

    def lost(self, death: Death) -> Restoration:
        """Say what is lost with a sandbox that died and has no snapshot."""
        return Restoration(None, list(self.executions), death, self.total).and_before(self.restoration)

    def replaces(self, loss: Restoration) -> Lineage:
        """Note that the sandbox took the place of one that was lost, of which whoever runs code in it next is to be
        told."""
        return replace(self, restoration=loss)

    def told(self) -> Lineage:
        """Note that a caller was told of the restoration."""
        return replace(self, restoration=None)

    # --- what is asked --------------------------------------------------------------------------------------------

    @property
    def moment(self) -> SnapshotPoint:
        """What a snapshot of now carries."""
        return SnapshotPoint(self.executions, self.last_succeeded, self.revision, self.count)

    @property
    def total(self) -> int:
        """How many executions it consists of."""
        return max(self.count, len(self.executions))

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

    def _undone_count(self, moment: SnapshotPoint) -> int:
        """How many these are, also of those that are forgotten: none of the others can be, as long as one stays."""
        undone = len(self.undone_by(moment))
        if undone < len(self.executions):
            return undone
        return max(undone, self.total - max(moment.count, len(moment.executions)))

    def parent_of(self, execution_id: str) -> str | None:
        """Name the execution before one of `executions`; None for the first."""
        place = self.executions.index(execution_id)
        return self.executions[place - 1] if place else None
