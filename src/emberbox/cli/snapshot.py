"""`emberbox snapshot …`: snapshots that outlive their sandboxes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from emberbox.cli.exits import fail
from emberbox.cli.printing import printable
from emberbox.cli.progress import build_progress
from emberbox.engine import Engine
from emberbox.errors import ConfigError, SnapshotFailed, SnapshotNotFound, ValidationFailed, VmExecutionError
from emberbox.sandbox.snapshots.archive import export_snapshot, import_snapshot
from emberbox.sandbox.snapshots.store import SnapshotRecord, SnapshotStore

_COLOURS = {"ready": "green", "unusable": "yellow", "broken": "red"}


@dataclass(frozen=True, slots=True)
class _Row:
    """A snapshot, or the directory of one that cannot be read."""

    snapshot_id: str
    record: SnapshotRecord | None
    problem: VmExecutionError | None

    @property
    def state(self) -> str:
        if self.record is None:
            return "broken"
        return "ready" if self.problem is None else "unusable"

    def as_json(self) -> dict[str, object]:
        facts: dict[str, object] = {"snapshot_id": self.snapshot_id, "state": self.state}
        if self.problem is not None:
            facts["problem"] = self.problem.to_dict()
        if self.record is not None:
            facts |= _facts(self.record)
        return facts


def _facts(record: SnapshotRecord) -> dict[str, object]:
    """What is shown of a record: of the environment only the names."""
    return {
        **record.info.model_dump(mode="json"),
        "imported": record.imported,
        "template": record.template.name,
        "image": record.image,
        "backend": record.backend,
        "processor": record.processor,
        "limits": record.limits.model_dump(mode="json"),
        "executions": record.path,
        "env_names": sorted(record.envs),
        "metadata": record.metadata,
    }


def _guarded(work: Callable[[SnapshotStore], None], *, as_json: bool = False) -> None:
    try:
        work(Engine().kept_snapshots())
    except VmExecutionError as error:
        fail(error, as_json=as_json)
    except OSError as error:
        fail(ConfigError(f"{error.filename or 'A file'}: {error.strerror or error}."), as_json=as_json)


def _row(store: SnapshotStore, snapshot_id: str) -> _Row:
    """Raises SnapshotNotFound."""
    try:
        record = store.record(snapshot_id)
    except SnapshotFailed as exc:
        return _Row(snapshot_id, None, exc)
    try:
        store.node(record)
    except VmExecutionError as exc:
        return _Row(snapshot_id, record, exc)
    return _Row(snapshot_id, record, None)


def list_snapshots(*, as_json: bool) -> None:
    """All of them, oldest first."""

    def work(store: SnapshotStore) -> None:
        rows = []
        for name in store.names():
            try:
                rows.append(_row(store, name))
            except SnapshotNotFound:
                continue  # removed just now
        rows.sort(key=lambda row: "" if row.record is None else row.record.info.created_at.isoformat())
        if as_json:
            print(json.dumps([row.as_json() for row in rows], indent=2))
        elif not rows:
            Console().print("No snapshots are kept. `sandbox.snapshot(keep=True)` keeps one.", soft_wrap=True)
        else:
            Console(highlight=False).print(_table(rows))

    _guarded(work, as_json=as_json)


def _table(rows: list[_Row]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("snapshot", "state", "name", "taken", "size", "template", "of"):
        table.add_column(column, no_wrap=column in ("snapshot", "state", "taken"))
    for row in rows:
        state = Text(row.state, style=_COLOURS[row.state])
        if row.record is None:
            table.add_row(row.snapshot_id, state)
            continue
        info = row.record.info
        table.add_row(
            Text(printable(row.snapshot_id)),
            state,
            Text(printable(info.name)),
            f"{info.created_at.astimezone():%Y-%m-%d %H:%M}",
            f"{info.size_bytes >> 20} MiB",
            Text(printable(row.record.template.name)),
            Text(printable(_owner(row.record))),
        )
    return table


def _owner(record: SnapshotRecord) -> str:
    """Whose it is; what is kept is the user's."""
    if record.imported:
        return "imported"
    return "" if record.info.kept else record.info.sandbox_id


def show_snapshot(snapshot_id: str, *, as_json: bool) -> None:
    """One of them in full."""

    def work(store: SnapshotStore) -> None:
        row = _row(store, snapshot_id)
        if as_json:
            print(json.dumps(row.as_json(), indent=2))
            return
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim")
        table.add_column()
        facts = {"state": row.state, **({} if row.record is None else _words(row.record))}
        if row.problem is not None:
            facts |= {"problem": row.problem.message, "remedy": row.problem.remediation}
        for name, value in facts.items():
            if value:
                table.add_row(name, Text(printable(value)))
        Console(highlight=False).print(table)

    _guarded(work, as_json=as_json)


def _words(record: SnapshotRecord) -> dict[str, str]:
    info = record.info
    return {
        "snapshot": info.snapshot_id,
        "name": info.name,
        "description": info.description,
        "taken": f"{info.created_at.astimezone():%Y-%m-%d %H:%M:%S %z}",
        "size": f"{info.size_bytes >> 20} MiB",
        "kept": "yes, imported" if record.imported else "yes" if info.kept else "as long as its sandbox",
        "sandbox": info.sandbox_id,
        "agent": info.agent_id,
        "kind": info.kind,
        "after": info.execution_id or "",
        "template": record.template.name,
        "image": record.image,
        "back end": f"{record.backend} on {record.processor}",
        "limits": ", ".join(f"{key} {value}" for key, value in record.limits.model_dump().items()),
        "environment": ", ".join(sorted(record.envs)),
        "metadata": ", ".join(f"{key}={value}" for key, value in sorted(record.metadata.items())),
    }


def delete_snapshot(snapshot_id: str, *, force: bool) -> None:
    """Remove one. One that a durable sandbox goes on from only with `force`."""

    def work(store: SnapshotStore) -> None:
        record = _row(store, snapshot_id).record
        if record is not None and not record.info.kept and not force:
            raise ValidationFailed(
                f"Snapshot {snapshot_id} is part of sandbox {record.info.sandbox_id}, which may go on from it.",
                remediation="End that sandbox instead, or give --force.",
            )
        store.remove(snapshot_id)
        Console().print(f"[green]✓[/] deleted {snapshot_id}", soft_wrap=True)

    _guarded(work)


def export(snapshot_id: str, file: Path) -> None:
    """Write one to a file."""

    def work(store: SnapshotStore) -> None:
        with build_progress(snapshot_id, Console(stderr=True)) as progress:
            size = export_snapshot(store, snapshot_id, file, progress)
        console = Console(highlight=False)
        console.print(Text.assemble(("✓", "green"), f" {file}: {size >> 20} MiB"), soft_wrap=True)
        console.print("  It holds the memory of the sandbox, secrets included. Keep it private.", soft_wrap=True)

    _guarded(work)


def import_(file: Path) -> None:
    """Take one in from a file."""

    def work(store: SnapshotStore) -> None:
        with build_progress("import", Console(stderr=True)) as progress:
            record = import_snapshot(store, file, progress)
        Console(highlight=False).print(
            Text.assemble(("✓", "green"), f" {record.info.snapshot_id} ({printable(record.info.name)})"), soft_wrap=True
        )

    _guarded(work)
