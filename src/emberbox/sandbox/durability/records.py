"""Which sandboxes outlive the process, and what is written down of each: how it is while it lives, and how it was left
when it is suspended.

A sandbox that is suspended has snapshots and a record, and no machine. `service` suspends and wakes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from emberbox.errors import SnapshotFailed, VmExecutionError
from emberbox.sandbox.durability.registry import SandboxRecord, SandboxRegistry, UntoldLoss
from emberbox.sandbox.instance import SandboxInstance, SandboxState
from emberbox.sandbox.log import warn
from emberbox.sandbox.snapshots.service import SnapshotService
from emberbox.sandbox.snapshots.tree import Node, SnapshotTree

_LIVE = frozenset({SandboxState.READY, SandboxState.PAUSED, SandboxState.RESTORING})


@dataclass(frozen=True, slots=True)
class Suspended:
    """A sandbox without a machine."""

    record: SandboxRecord
    tree: SnapshotTree
    """Its snapshots that can be used."""
    problem: VmExecutionError | None = None
    """Why others cannot be used."""
    ends: float | None = None
    """When its own time is over, by a clock that nobody sets (`time.monotonic`); None: never. Set by `of`."""

    @classmethod
    def of(cls, record: SandboxRecord, tree: SnapshotTree, problem: VmExecutionError | None = None) -> Suspended:
        """Describe one by its record. How long it has left is asked of the host's clock once, so that one that jumps
        later ends nothing."""
        left = None if record.end_at is None else (record.end_at - datetime.now(UTC)).total_seconds()
        return cls(record, tree, problem, None if left is None else time.monotonic() + left)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until its own time is over; None: that is never."""
        return None if self.ends is None else self.ends - time.monotonic()

    def best(self) -> list[Node]:
        """List what to go on from, best first: what has all of its executions, the head before newer ones (one may have
        been finished just before the end, when the record still named the head before it); then the rest."""
        newest = self.tree.nodes()[::-1]
        head = [node for node in newest if node.info.snapshot_id == self.record.head]
        whole = [node for node in (*head, *newest) if list(node.moment.executions) == self.record.path]
        return list({node.info.snapshot_id: node for node in (*whole, *head, *newest)}.values())

    @property
    def expired(self) -> bool:
        """Its own time is over."""
        return self.seconds_left is not None and self.seconds_left <= 0


class SandboxRecords:
    """The durable sandboxes of one engine.

    Args:
        registry: an open one.
        snapshots: of the sandboxes; a record names the one that its sandbox goes on from.
    """

    def __init__(self, registry: SandboxRegistry, snapshots: SnapshotService) -> None:
        self._registry = registry
        self._snapshots = snapshots
        self._live: set[str] = set()
        """Those that are written down as they change."""
        self._suspended: dict[str, Suspended] = {}
        """Those without a machine, or that are just being given one or losing it."""
        self._left: set[str] = set()
        """Those whose record stays for the next process to tell of, though they could not be suspended."""

    # --- live ones ------------------------------------------------------------------------------------------------

    def opened(self, instance: SandboxInstance) -> None:
        """Write a new sandbox down.

        Raises:
            SnapshotFailed: the disk refused.
        """
        if instance.id not in self._suspended:  # else it is being woken: its record is right until that is done
            self.write(self.record_of(instance, machine=instance.machine.id))
            self._live.add(instance.id)

    def changed(self, instance: SandboxInstance) -> None:
        """Write a sandbox down as it is now. Where the disk refuses, the older record stays: a restart would find the
        sandbox with it, or say what was lost."""
        if instance.id in self._live and instance.state in _LIVE:
            try:
                self.write(self.record_of(instance, machine=instance.machine.id))
            except SnapshotFailed as exc:
                warn("sandbox not written down", exc, sandbox=instance.id)

    def closed(self, sandbox_id: str) -> bool:
        """Note that an instance has ended; False when its sandbox goes on, suspended."""
        self._live.discard(sandbox_id)
        if sandbox_id in self._suspended or sandbox_id in self._left:
            return False
        self._registry.remove(sandbox_id)
        return True

    def died(self, instance: SandboxInstance) -> bool:
        """Have a sandbox go on as a suspended one: its machine died, and no other came up. False: it has no snapshot
        to go on from."""
        tree = self._snapshots.tree(instance)
        if not tree.nodes():
            return False
        record = self.record_of(instance, machine=None)
        try:
            self.write(record)
        except SnapshotFailed as exc:  # the older record names a machine that is not there, which is as good
            warn("sandbox not written down", exc, sandbox=instance.id)
        instance.goes_on_without_machine()
        self.suspend(Suspended(record, tree, ends=instance.ends))
        return True

    def leave(self, sandbox_id: str) -> None:
        """Have the record of a sandbox stay when that ends, so that the next process says what became of it."""
        self._live.discard(sandbox_id)
        self._suspended.pop(sandbox_id, None)
        self._left.add(sandbox_id)

    def forget_left(self, sandbox_ids: Iterable[str]) -> None:
        """Remove the records of sandboxes that `leave` left: somebody is told, or written down to be told."""
        for sandbox_id in sandbox_ids:
            self._left.discard(sandbox_id)
            self._registry.remove(sandbox_id)

    def record_of(self, instance: SandboxInstance, *, machine: str | None) -> SandboxRecord:
        """Describe a sandbox as it is now, in this machine."""
        image = instance.image
        return SandboxRecord(
            sandbox_id=instance.id,
            agent_id=instance.agent_id,
            own=instance.own,
            image=image.directory.name,
            built_at=image.manifest.built_at,
            guest=image.guest_dir.name,
            template=image.template,
            limits=instance.limits,
            envs=instance.envs,
            metadata=instance.metadata,
            started_at=instance.started_at,
            end_at=instance.end_at,
            idle_seconds=instance.idle_seconds,
            machine=machine,
            head=self._snapshots.tree(instance).head,
            path=list(instance.lineage.executions),
            path_count=instance.lineage.count,
            good=instance.lineage.last_succeeded,
            untold=UntoldLoss.of(instance.lineage.restoration),
        )

    def write(self, record: SandboxRecord) -> None:
        """Write a record.

        Raises:
            SnapshotFailed: the disk refused.
        """
        try:
            self._registry.write(record)
        except OSError as exc:
            raise SnapshotFailed(
                f"Sandbox {record.sandbox_id} cannot be written down: {exc.strerror or exc}.",
                remediation="Make space on the file system of `state_dir`.",
            ) from exc

    # --- suspended ones -------------------------------------------------------------------------------------------

    @property
    def suspended(self) -> list[SandboxRecord]:
        """Sandboxes without a machine, but for those whose own time is over."""
        return [sandbox.record for sandbox in self._suspended.values() if not sandbox.expired]

    def expired(self) -> list[str]:
        """Name the suspended ones whose own time is over."""
        return [sandbox_id for sandbox_id, sandbox in self._suspended.items() if sandbox.expired]

    def find_suspended(self, sandbox_id: str) -> Suspended | None:
        """Find one that has no machine, or is just being given one or losing it."""
        return self._suspended.get(sandbox_id)

    def suspend(self, sandbox: Suspended) -> None:
        """Note that a sandbox has a record and snapshots to go on from: the end of its instance is not its own."""
        self._live.discard(sandbox.record.sandbox_id)
        self._suspended[sandbox.record.sandbox_id] = sandbox

    def resumed(self, sandbox_id: str) -> None:
        """Note that a suspended sandbox has a machine again: it is written down as it changes."""
        del self._suspended[sandbox_id]
        self._live.add(sandbox_id)

    def forget(self, sandbox_id: str) -> bool:
        """Note the end of a suspended sandbox; False when there is none of this id."""
        if self._suspended.pop(sandbox_id, None) is None:
            return False
        self._registry.remove(sandbox_id)
        return True

    def load(self) -> tuple[list[SandboxRecord], set[str]]:
        """Read what earlier processes wrote down; the second are the sandboxes whose records cannot be read. Blocks."""
        return self._registry.records(), self._registry.unreadable()
