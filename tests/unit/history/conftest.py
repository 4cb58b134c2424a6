"""A history to test with: in a real SQLite file, or in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from emberbox.history import entries
from emberbox.history.store import HistoryStore, open_store
from emberbox.models import CommandHistoryEntry, Execution, HistoryConfig, HistoryQueryRequest, Logs


def begun(vm_id: str | None = "sb-1", code: str = "print(1)", agent_id: str = "local") -> CommandHistoryEntry:
    return entries.started(vm_id=vm_id, agent_id=agent_id, backend="gvisor", language="python", code=code)


def outcome(entry: CommandHistoryEntry, exit_code: int = 0, stdout: str = "1\n", **fields: Any) -> Execution:
    now = datetime.now(UTC)
    return Execution(
        execution_id=entry.execution_id,
        sandbox_id=entry.vm_id or "",
        backend="gvisor",
        language="python",
        exit_code=exit_code,
        duration_ms=1.5,
        memory_peak_mb=20.25,
        logs=Logs(stdout=[stdout]),
        started_at=now,
        completed_at=now,
        **fields,
    )


class History:
    """A store, and what a test does to it."""

    def __init__(self, folder: Path, *, persist: bool = True, most: int = 100) -> None:
        self.folder = folder
        self.config = HistoryConfig(persist_history=persist, max_history_entries=most)
        self.store: HistoryStore

    async def open(self, url: str | None = None) -> HistoryStore:
        self.store = await open_store(self.config, url, self.folder)
        return self.store

    async def close(self) -> None:
        await self.store.close()

    async def run(self, vm_id: str | None = "sb-1", code: str = "print(1)", exit_code: int = 0) -> str:
        entry = begun(vm_id, code)
        await self.store.record(entry)
        await self.store.record(entries.finished(entry, outcome(entry, exit_code)))
        return entry.execution_id

    async def ids(self, **wanted: Any) -> list[str]:
        found = await self.store.query(HistoryQueryRequest(limit=10_000, **wanted))
        return [entry.execution_id for entry in found.history]

    async def sql(self, statement: str, **values: Any) -> None:
        """Do what nobody should: past the store."""
        if self.config.persist_history:
            connection = sqlite3.connect(self.folder / "history.db")
            with connection:
                connection.execute(statement, values)
            connection.close()
        else:

            def work(connection: Connection) -> None:
                connection.execute(text(statement), values)
                connection.commit()

            await self.store._runner.write(work)


@pytest.fixture(params=["file", "memory"])
async def history(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[History]:
    """An open history of at most five entries per sandbox."""
    history = History(tmp_path / "state", persist=request.param == "file", most=5)
    await history.open()
    yield history
    await history.close()


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[History]:
    """An open history in a file."""
    history = History(tmp_path / "state")
    await history.open()
    yield history
    await history.close()
