"""The tables, and how a row becomes an entry. Migrations make the tables (`migrations/versions`); a test compares."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import BigInteger, Boolean, Column, Double, Index, MetaData, String, Table, Text

from emberbox.models import CommandHistoryEntry, DecisionRecord, FileChange

HEAD = "0003"
"""The newest migration. A database that has it is opened without Alembic, which is slow to import."""

metadata = MetaData()

# Times are ISO 8601 texts in UTC of one length: they sort as they are, and are hashed as they are, in every database.
ENTRIES = Table(
    "history_entries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),  # of the entry's first link: the order in which they began
    Column("owner", String(64), nullable=False),  # the history that was open in the process that ran it
    Column("parent_id", String(64)),
    Column("vm_id", String(200)),
    Column("agent_id", Text, nullable=False),
    Column("backend", String(64)),
    Column("language", String(100), nullable=False),
    Column("command", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("success", Boolean, nullable=False),
    Column("blocked_by", Text),
    Column("error", Text),
    Column("exit_code", BigInteger),
    Column("termination_reason", String(64)),
    Column("stdout", Text, nullable=False),
    Column("stderr", Text, nullable=False),
    Column("stdout_truncated", Boolean, nullable=False),
    Column("stderr_truncated", Boolean, nullable=False),
    Column("executed_at", String(32), nullable=False),
    Column("duration_ms", Double),
    Column("memory_peak_mb", Double),
    Column("snapshot_id", String(64)),
    Column("changed_files", Text),  # JSON; the order of keys is part of what is hashed
    Column("snapshot_before_id", String(64)),
    Column("rolled_back_to", String(64)),
    Column("decisions", Text),  # JSON, likewise; NULL where there were none
    Index("history_entries_number", "number"),
    Index("history_entries_vm", "vm_id", "number"),
    Index("history_entries_state", "state"),
)

LINKS = Table(
    "history_links",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("entry_id", String(64), nullable=False),
    Column("event", String(16), nullable=False),
    Column("at", String(32), nullable=False),
    Column("content", String(64), nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

_FILES = TypeAdapter(list[FileChange])
_DECISIONS = TypeAdapter(list[DecisionRecord])
_ONLY_IN_MODEL = {"id", "execution_id", "executed_at", "changed_files", "decisions"}
_ONLY_IN_ROW = {"number", "owner", "changed_files", "decisions"}


def timestamp(moment: datetime) -> str:
    """UTC with microseconds, always 32 characters. A time without a zone is local time."""
    try:
        there = moment.astimezone(UTC)
    except (OverflowError, ValueError):  # beyond the first or the last year that there is
        there = moment.replace(tzinfo=UTC)
    return there.isoformat(timespec="microseconds")


def row_of(entry: CommandHistoryEntry, *, number: int, owner: str) -> dict[str, Any]:
    """All columns of an entry."""
    row = entry.model_dump(exclude=_ONLY_IN_MODEL)
    reason = entry.termination_reason
    return row | {
        "id": entry.execution_id,
        "number": number,
        "owner": owner,
        "termination_reason": None if reason is None else reason.value,
        "executed_at": timestamp(entry.executed_at),
        "changed_files": None if entry.changed_files is None else _FILES.dump_json(entry.changed_files).decode(),
        "decisions": _DECISIONS.dump_json(entry.decisions).decode() if entry.decisions else None,
    }


def entry_of(row: Mapping[str, Any]) -> CommandHistoryEntry:
    """The entry of a row."""
    fields = {key: value for key, value in row.items() if key not in _ONLY_IN_ROW}
    files = row["changed_files"]
    changed = None if files is None else _FILES.validate_json(files)
    decided = _DECISIONS.validate_json(row["decisions"]) if row["decisions"] else []
    return CommandHistoryEntry(execution_id=row["id"], changed_files=changed, decisions=decided, **fields)
