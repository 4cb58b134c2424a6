"""Which execution the state of a sandbox comes from: the parent of the next one. In memory, gone with the sandbox."""

from __future__ import annotations

from weakref import WeakKeyDictionary


class Lineage:
    """The last execution of each sandbox, also after rollback, fork and branch."""

    def __init__(self) -> None:
        self._last: WeakKeyDictionary[object, str | None] = WeakKeyDictionary()
        self._snapshots: WeakKeyDictionary[object, dict[str, str | None]] = WeakKeyDictionary()

    def last(self, sandbox: object) -> str | None:
        """The execution that a sandbox goes on from."""
        return self._last.get(sandbox)

    def ran(self, sandbox: object, execution_id: str) -> None:
        self._last[sandbox] = execution_id

    def marked(self, sandbox: object, snapshot_id: str) -> None:
        """A snapshot was taken."""
        self._snapshots.setdefault(sandbox, {})[snapshot_id] = self.last(sandbox)

    def went_back(self, sandbox: object, snapshot_id: str) -> None:
        """It was rolled back to a snapshot."""
        self._last[sandbox] = self._snapshots.get(sandbox, {}).get(snapshot_id)

    def forgot(self, sandbox: object, snapshot_id: str) -> None:
        """A snapshot was deleted."""
        self._snapshots.get(sandbox, {}).pop(snapshot_id, None)

    def copied(self, sandbox: object, copy: object, snapshot_id: str | None = None) -> None:
        """A sandbox was forked from this one as it is now, or from a snapshot of it."""
        past = self._snapshots.get(sandbox, {})
        self._last[copy] = self.last(sandbox) if snapshot_id is None else past.get(snapshot_id)
