"""Whatever happens, the chain is intact; whatever single thing is changed behind its back, it is not."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emberbox.errors import PolicyBlocked
from emberbox.history import entries
from emberbox.history.schema import ENTRIES, LINKS
from emberbox.models import CommandHistoryEntry, HistoryQueryRequest, HistoryVerification

from .conftest import History, begun, outcome

SANDBOXES = st.sampled_from(["sb-1", "sb-2", None])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), SANDBOXES, st.text(max_size=20)),
        st.tuples(st.just("finish"), st.integers(0, 50), st.integers(0, 1)),
        st.tuples(st.just("refuse"), SANDBOXES, st.text(max_size=20)),
        st.tuples(st.just("leave"), st.integers(0, 50), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
        st.tuples(st.just("many"), SANDBOXES, st.integers(1, 5)),
    ),
    max_size=25,
)
QUICK = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


class Model:
    """What must be there."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.running: list[CommandHistoryEntry] = []
        self.states: dict[str, str] = {}

    async def step(self, kind: str, first: Any, second: Any) -> None:
        store = self.history.store
        if kind == "start":
            entry = begun(first, second)
            await store.record(entry)
            self.running.append(entry)
            self.states[entry.execution_id] = "started"
        elif kind == "refuse":
            entry = begun(first, second)
            await store.record(entries.refused(entry, PolicyBlocked("no")))
            self.states[entry.execution_id] = "refused"
        elif kind in ("finish", "leave") and self.running:
            entry = self.running.pop(first % len(self.running))
            left = entries.failed(entry, asyncio.CancelledError())
            done = left if kind == "leave" else entries.finished(entry, outcome(entry, second))
            await store.record(done)
            self.states[entry.execution_id] = "finished"
        elif kind == "many":
            for ran in await asyncio.gather(*(self.history.run(first) for _ in range(second))):
                self.states[ran] = "finished"
        elif kind == "reopen" and self.history.config.persist_history:
            await self.history.close()
            await self.history.open()
            self.states |= {entry.execution_id: "unknown" for entry in self.running}
            self.running.clear()


async def play(history: History, steps: list[tuple[str, Any, Any]]) -> Model:
    await history.open()
    model = Model(history)
    for step in steps:
        await model.step(*step)
    return model


@pytest.mark.parametrize("persist", [True, False])
@QUICK
@given(steps=STEPS)
def test_any_sequence_keeps_the_chain_and_the_entries(persist: bool, steps: list[tuple[str, Any, Any]]) -> None:
    async def work(folder: Path) -> None:
        history = History(folder, persist=persist, most=4)
        model = await play(history, steps)
        try:
            found = await history.store.verify()
            assert found.intact, found.first_bad
            there = (await history.store.query(HistoryQueryRequest(limit=10_000))).history
            assert {entry.execution_id for entry in model.running} <= {entry.execution_id for entry in there}
            assert all(model.states[entry.execution_id] == entry.state for entry in there)
            nowhere = [name for name, state in model.states.items() if name not in {e.execution_id for e in there}]
            assert found.entries + len(nowhere) == len(model.states)
            assert found.links >= len(model.states)
        finally:
            await history.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(work(Path(folder)))


def tamper(path: Path, table: Any, row: int, column: int, removes: bool) -> bool:
    """Change one value of one row, or remove the row; False if there is none."""
    connection = sqlite3.connect(path)
    rows = connection.execute(f"SELECT rowid, * FROM {table.name} ORDER BY rowid").fetchall()  # noqa: S608
    if rows:
        chosen = rows[row % len(rows)]
        name = table.columns.keys()[column % len(table.columns)]
        old = chosen[1 + list(table.columns.keys()).index(name)]
        new = old + 1000 if isinstance(old, int) else f"{old}x" if isinstance(old, str) else 0.125
        new = 1 - old if name in ("success", "stdout_truncated", "stderr_truncated") else new
        with connection:
            if removes:
                connection.execute(f"DELETE FROM {table.name} WHERE rowid = ?", (chosen[0],))  # noqa: S608
            else:
                connection.execute(f"UPDATE {table.name} SET {name} = ? WHERE rowid = ?", (new, chosen[0]))  # noqa: S608
    connection.close()
    return bool(rows)


@QUICK
@given(
    steps=STEPS,
    table=st.sampled_from([ENTRIES, LINKS]),
    row=st.integers(0, 100),
    column=st.integers(0, 23),
    removes=st.booleans(),
)
def test_any_single_change_is_found(
    steps: list[tuple[str, Any, Any]], table: Any, row: int, column: int, removes: bool
) -> None:
    async def work(folder: Path) -> HistoryVerification | None:
        history = History(folder, most=4)
        await play(history, steps)
        try:
            if not tamper(folder / "history.db", table, row, column, removes):
                return None
            return await history.store.verify()
        finally:
            await history.close()

    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(work(Path(folder)))
    if found is not None:
        assert not found.intact
        assert found.first_bad is not None
        assert found.first_bad.execution_id is not None
