"""Snapshots of one sandbox: a tree, each node a directory that machines can be forked from.

They live as long as their sandbox. Who forks from one holds it, so that it is not removed meanwhile. Those that a
policy took make room for newer ones; those that somebody asked for do not.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from emberbox.errors import SnapshotFailed, SnapshotNotFound
from emberbox.machines.contract import Snapshot
from emberbox.models import SnapshotInfo, SnapshotKind
from emberbox.sandbox.lineage import SnapshotPoint

RECORD = "snapshot.json"
"""In the directory of a snapshot that outlives the process (see `store`)."""


@dataclass(slots=True)
class Node:
    """One snapshot of a tree."""

    info: SnapshotInfo
    snapshot: Snapshot
    moment: SnapshotPoint
    users: int = 0
    stopping: bool = False
    ephemeral: bool = False
    """It is there until the next one like it is taken."""

    def revisited(self, moment: SnapshotPoint) -> None:
        """Note that its sandbox went back to it, and at which moment it is since: this is a snapshot of now."""
        self.moment = moment

    def verified(self, digests: Mapping[str, str] | None) -> None:
        """Note the digests of its files as they were written."""
        self.snapshot = replace(self.snapshot, digests=digests)

    def stays(self) -> None:
        """Note that it does not make room for the next one like it."""
        self.ephemeral = False


@dataclass(slots=True)
class SnapshotTree:
    """The snapshots of a sandbox, in the order in which they were taken.

    Args:
        sandbox_id: whose they are.
        agent_id: whose sandbox that is.
        folder: where their directories go.
        most: how many there may be, beside the one of a shutdown.
    """

    sandbox_id: str
    agent_id: str
    folder: Path
    most: int
    durable: bool = False
    """Its sandbox outlives the process, and so do they."""
    head: str | None = None
    """The snapshot that the sandbox goes on from: taken last, or rolled back to."""
    _nodes: dict[str, Node] = field(default_factory=dict)

    def new_directory(self, kind: SnapshotKind = "manual") -> Path:
        """Where the next snapshot goes. The oldest one of a policy makes room for it if need be.

        Raises:
            SnapshotFailed: there are as many as there may be, or the folder cannot be made.
        """
        while kind != "shutdown" and sum(n.info.kind != "shutdown" for n in self._nodes.values()) >= self.most:
            policys = (n for n in self._nodes.values() if n.info.kind not in {"manual", "shutdown"})
            spare = next((node for node in policys if not node.users), None)
            if spare is None:
                raise SnapshotFailed(
                    f"Sandbox {self.sandbox_id} has {self.most} snapshots already.",
                    remediation="Delete one with delete_snapshot(), or raise max_snapshots in the settings.",
                )
            self.remove(spare.info.snapshot_id)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise SnapshotFailed(f"Cannot make {self.folder}: {exc.strerror}.") from exc
        return self.folder / f"snap-{secrets.token_hex(6)}"

    def add(
        self,
        snapshot: Snapshot,
        name: str | None = None,
        kind: SnapshotKind = "manual",
        moment: SnapshotPoint | None = None,
    ) -> Node:
        """Take a finished snapshot in; it becomes the head."""
        moment = moment or SnapshotPoint()
        info = SnapshotInfo(
            snapshot_id=snapshot.directory.name,
            name=name or snapshot.directory.name,
            sandbox_id=self.sandbox_id,
            agent_id=self.agent_id,
            kind=kind,
            parent_id=self.head,
            execution_id=moment.executions[-1] if moment.executions else None,
            good=moment.last_succeeded,
            created_at=datetime.now(UTC),
            size_bytes=snapshot.size_bytes,
        )
        self.head = info.snapshot_id
        return self.put(Node(info, snapshot, moment))

    def put(self, node: Node) -> Node:
        self._nodes[node.info.snapshot_id] = node
        return node

    def take_back(self, nodes: Sequence[Node], head: str | None) -> None:
        """Take in those that were there before, oldest first. What stands for one that is gone is the nearest state
        above it."""
        for node in nodes:
            if node.info.parent_id not in self._nodes:
                node.info.parent_id = self._nearest(node.moment.executions)
            self.put(node)
        self.head = head if head in self._nodes else next(reversed(self._nodes), None)

    def _nearest(self, executions: tuple[str, ...]) -> str | None:
        """The newest of those from whose state one comes to another, without any that could be nearer."""
        pasts = [(node, node.moment.executions) for node in self._nodes.values()]
        above = [node for node, past in pasts if past == executions[: len(past)]]
        best = max(reversed(above), key=lambda node: len(node.moment.executions), default=None)
        return None if best is None else best.info.snapshot_id

    def went_back_to(self, snapshot_id: str) -> None:
        """Note that the sandbox goes on from this one, unless it was removed meanwhile."""
        if snapshot_id in self._nodes:
            self.head = snapshot_id

    def nodes(self) -> list[Node]:
        """All of them, oldest first."""
        return list(self._nodes.values())

    def infos(self) -> list[SnapshotInfo]:
        return [node.info for node in self._nodes.values()]

    @property
    def size_bytes(self) -> int:
        """Of all of them."""
        return sum(node.info.size_bytes for node in self._nodes.values())

    def find(self, wanted: str) -> Node:
        """A snapshot by its id, or the newest of a name; raises SnapshotNotFound."""
        node = self._nodes.get(wanted) or next(
            (node for node in reversed(self._nodes.values()) if node.info.name == wanted), None
        )
        if node is None:
            raise SnapshotNotFound(f"Sandbox {self.sandbox_id} has no snapshot {wanted!r:.80}.")
        return node

    def current(self) -> Node | None:
        """The snapshot that the sandbox goes on from, or the nearest one above it that is still there."""
        return None if self.head is None else self._nodes.get(self.head)

    def parent(self, node: Node) -> Node | None:
        """The snapshot that this one goes on from."""
        return None if node.info.parent_id is None else self._nodes.get(node.info.parent_id)

    def last_good(self) -> Node | None:
        """The newest state after a success: above the head first, else of any branch."""
        node = self.current()
        while node is not None:
            if node.info.good:
                return node
            node = self.parent(node)
        return next((node for node in reversed(self._nodes.values()) if node.info.good), None)

    def ends_with(self, execution_id: str | None) -> Node | None:
        """The newest snapshot that was taken right after an execution (None: before the first one)."""
        return next((node for node in reversed(self._nodes.values()) if node.info.execution_id == execution_id), None)

    @contextmanager
    def use(self, node: Node) -> Iterator[Snapshot]:
        """Hold a snapshot while something is forked from it."""
        node.users += 1
        try:
            yield node.snapshot
        finally:
            node.users -= 1
            if node.stopping and not node.users:
                erase(node)

    def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot; its children get its parent. Files in use go when they are not used any more."""
        node = self._nodes.get(snapshot_id)
        if node is None:
            raise SnapshotNotFound(f"Sandbox {self.sandbox_id} has no snapshot {snapshot_id!r:.80}.")
        parent = node.info.parent_id
        for other in self._nodes.values():
            if other.info.parent_id == snapshot_id:
                other.info.parent_id = parent
        if self.head == snapshot_id:
            self.head = parent
        del self._nodes[snapshot_id]
        node.stopping = True
        if not node.users:
            erase(node)

    def put_in_place(self, node: Node) -> None:
        """Have a snapshot take the place of those that were to be there until the next one only; it is one of them."""
        for other in [other for other in self._nodes.values() if other.ephemeral and other is not node]:
            self.remove(other.info.snapshot_id)
        node.ephemeral = True

    def clear(self) -> None:
        """Remove them all, but those that are to be kept where they are."""
        for node in self.nodes():
            if self.durable and node.info.kept:
                del self._nodes[node.info.snapshot_id]
            else:
                self.remove(node.info.snapshot_id)


def erase(node: Node) -> None:
    """Remove its files: the record first, so that what is left half-way is no snapshot."""
    (node.snapshot.directory / RECORD).unlink(missing_ok=True)
    shutil.rmtree(node.snapshot.directory, ignore_errors=True)
