"""Snapshots of one sandbox: a tree, each node a directory that machines can be forked from.

They live as long as their sandbox. Who forks from one holds it, so that it is not removed meanwhile.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from emberbox.errors import SnapshotFailed, SnapshotNotFound
from emberbox.machines.base import Snapshot
from emberbox.models import SnapshotInfo


@dataclass(slots=True)
class _Node:
    info: SnapshotInfo
    snapshot: Snapshot
    users: int = 0
    doomed: bool = False


@dataclass(slots=True)
class SnapshotTree:
    """The snapshots of a sandbox, in the order in which they were taken.

    Args:
        sandbox_id: whose they are.
        folder: where their directories go; removed with the last of them.
        most: how many there may be.
    """

    sandbox_id: str
    folder: Path
    most: int
    head: str | None = None
    """The snapshot that the sandbox goes on from: taken last, or rolled back to."""
    _nodes: dict[str, _Node] = field(default_factory=dict)

    def new_directory(self) -> Path:
        """Where the next snapshot goes.

        Raises:
            SnapshotFailed: there are as many as there may be, or the folder cannot be made.
        """
        if len(self._nodes) >= self.most:
            raise SnapshotFailed(
                f"Sandbox {self.sandbox_id} has {self.most} snapshots already.",
                remediation="Delete one with delete_snapshot(), or raise max_snapshots in the settings.",
            )
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise SnapshotFailed(f"Cannot make {self.folder}: {exc.strerror}.") from exc
        return self.folder / f"snap-{secrets.token_hex(6)}"

    def add(self, snapshot: Snapshot, name: str | None) -> SnapshotInfo:
        """Take a finished snapshot in; it becomes the head."""
        info = SnapshotInfo(
            snapshot_id=snapshot.directory.name,
            name=name or snapshot.directory.name,
            sandbox_id=self.sandbox_id,
            parent_id=self.head,
            created_at=datetime.now(UTC),
            size_bytes=snapshot.size_bytes,
        )
        self._nodes[info.snapshot_id] = _Node(info, snapshot)
        self.head = info.snapshot_id
        return info

    def went_back_to(self, snapshot_id: str) -> None:
        """The sandbox goes on from this one, unless it was removed meanwhile."""
        if snapshot_id in self._nodes:
            self.head = snapshot_id

    def infos(self) -> list[SnapshotInfo]:
        return [node.info for node in self._nodes.values()]

    @contextmanager
    def use(self, snapshot_id: str) -> Iterator[Snapshot]:
        """Hold a snapshot while something is forked from it."""
        node = self._find(snapshot_id)
        node.users += 1
        try:
            yield node.snapshot
        finally:
            node.users -= 1
            if node.doomed and not node.users:
                self._erase(node)

    def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot; its children get its parent. Files in use go when they are not used any more."""
        node = self._find(snapshot_id)
        parent = node.info.parent_id
        for other in self._nodes.values():
            if other.info.parent_id == snapshot_id:
                other.info.parent_id = parent
        if self.head == snapshot_id:
            self.head = parent
        del self._nodes[snapshot_id]
        node.doomed = True
        if not node.users:
            self._erase(node)

    def clear(self) -> None:
        """Remove them all."""
        for snapshot_id in list(self._nodes):
            self.remove(snapshot_id)

    def _find(self, snapshot_id: str) -> _Node:
        node = self._nodes.get(snapshot_id)
        if node is None:
            raise SnapshotNotFound(f"Sandbox {self.sandbox_id} has no snapshot {snapshot_id!r:.80}.")
        return node

    def _erase(self, node: _Node) -> None:
        shutil.rmtree(node.snapshot.directory, ignore_errors=True)
        if not self._nodes:
            shutil.rmtree(self.folder, ignore_errors=True)
