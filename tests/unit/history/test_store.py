"""What the store keeps, finds, drops and notices; the same in a file and in memory."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from emberbox.errors import ExecutionFailed, HistoryError, PolicyBlocked
from emberbox.history import entries
from emberbox.history.schema import ENTRIES
from emberbox.history.store import open_store
from emberbox.history.wal import read_journal
from emberbox.models import ExecutionError, HistoryConfig, HistoryQueryRequest, TerminationReason

from .conftest import History, begun, outcome

# --- rows -------------------------------------------------------------------------------------------------------------


async def test_an_entry_comes_back_as_it_was(history: History) -> None:
    entry = begun(code="print('häß')\n" * 3)
    await history.store.record(entry)
    assert await history.store.get(entry.execution_id) == entry
    done = entries.finished(
        entry,
        outcome(
            entry,
            exit_code=1,
            stdout="ü\x00\ud800\n",
            error=ExecutionError(name="E", value="v"),
            termination_reason=TerminationReason.TIMEOUT,
            stdout_truncated=True,
        ),
    )
    await history.store.record(done)
    found = await history.store.get(entry.execution_id)
    assert found == done
    assert (found.state, found.success, found.error, found.stdout) == (
        "finished",
        False,
        "E: v",
        "ü\N{REPLACEMENT CHARACTER}?\n",
    )
    assert (found.duration_ms, found.memory_peak_mb, found.executed_at) == (1.5, 20.25, entry.executed_at)
    assert (await history.store.verify()).intact


async def test_a_refusal_is_an_entry(history: History) -> None:
    entry = begun(vm_id=None)
    error = PolicyBlocked("no", details={"findings": [{"rule": "a.b"}, {"rule": "c.d"}, {"rule": "a.b"}]})
    await history.store.record(entries.refused(entry, error))
    found = await history.store.get(entry.execution_id)
    assert found is not None
    assert (found.state, found.blocked_by, found.error, found.exit_code) == ("refused", "a.b, c.d", "no", None)
    assert (await history.store.verify()).intact


async def test_what_is_not_there(history: History) -> None:
    assert await history.store.get("ex-none") is None
    answer = await history.store.query(HistoryQueryRequest())
    assert (answer.history, answer.total) == ([], 0)
    found = await history.store.verify()
    assert (found.intact, found.links, found.entries, found.head) == (True, 0, 0, "0" * 64)


async def test_filters(history: History) -> None:
    good = await history.run("sb-1")
    bad = await history.run("sb-1", exit_code=3)
    other = await history.run("sb-2")
    running = begun("sb-1", agent_id="somebody")
    await history.store.record(running)
    assert await history.ids() == [running.execution_id, other, bad, good]
    assert await history.ids(vm_id="sb-1") == [running.execution_id, bad, good]
    assert await history.ids(failures_only=True) == [bad]
    assert await history.ids(agent_id="somebody") == [running.execution_id]
    answer = await history.store.query(HistoryQueryRequest(vm_id="sb-1", limit=2))
    assert ([entry.execution_id for entry in answer.history], answer.total) == ([running.execution_id, bad], 3)


async def test_times_include_their_ends_and_zones_are_understood(history: History) -> None:
    ids, moments = [], []
    for minute in range(3):
        entry = begun()
        entry.executed_at = datetime(2026, 3, 29, 0, minute, tzinfo=UTC)
        await history.store.record(entries.refused(entry, PolicyBlocked("no")))
        ids.append(entry.execution_id)
        moments.append(entry.executed_at)
    assert await history.ids(start_date=moments[1]) == [ids[2], ids[1]]
    assert await history.ids(end_date=moments[1]) == [ids[1], ids[0]]
    assert await history.ids(start_date=moments[1], end_date=moments[1]) == [ids[1]]
    assert await history.ids(start_date=moments[2].astimezone() + timedelta(microseconds=1)) == []
    assert await history.ids(start_date=moments[1].astimezone().replace(tzinfo=None)) == [ids[2], ids[1]]


# --- many at once -----------------------------------------------------------------------------------------------------


async def test_many_at_once_lose_nothing(history: History) -> None:
    ids = await asyncio.gather(*(history.run(f"sb-{number}") for number in range(150)))
    assert sorted(await history.ids()) == sorted(ids)
    found = await history.store.verify()
    assert (found.intact, found.links, found.entries) == (True, 300, 150)


async def test_one_that_cannot_be_written_does_not_harm_the_others(history: History) -> None:
    twin = entries.refused(begun(), ExecutionFailed("no"))
    await history.store.record(twin)
    new = entries.refused(begun("sb-2"), ExecutionFailed("no"))
    results = await asyncio.gather(history.store.record(twin), history.store.record(new), return_exceptions=True)
    assert isinstance(results[0], HistoryError)
    assert results[1] is None
    assert await history.ids() == [new.execution_id, twin.execution_id]
    assert (await history.store.verify()).intact


async def test_a_caller_who_leaves_does_not_undo_the_record(history: History) -> None:
    entry = begun()
    task = asyncio.create_task(history.store.record(entry))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await history.run()
    assert entry.execution_id in await history.ids()
    assert (await history.store.verify()).intact


def _writer(folder: str, count: int, barrier: Any) -> None:
    async def work() -> None:
        history = History(Path(folder))
        barrier.wait(60)
        await history.open()  # all make the tables at once
        await asyncio.gather(*(history.run(f"sb-{number % 3}") for number in range(count)))
        for _ in range(10):
            await history.run("sb-x")
        await history.close()

    asyncio.run(work())


async def test_processes_share_a_database(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [context.Process(target=_writer, args=(str(tmp_path / "s"), 20, barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        await asyncio.to_thread(worker.join, 120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    history = History(tmp_path / "s")
    await history.open()
    found = await history.store.verify()
    assert (found.intact, found.links, found.entries) == (True, 3 * 30 * 2, 3 * 30)
    assert {entry.state for entry in (await history.store.query(HistoryQueryRequest(limit=500))).history} == {
        "finished"
    }
    await history.close()


# --- retention --------------------------------------------------------------------------------------------------------


async def test_the_oldest_are_dropped_per_sandbox_and_the_chain_stays_intact(history: History) -> None:
    mine = [await history.run("sb-1") for _ in range(12)]
    other = await history.run("sb-2")
    assert await history.ids(vm_id="sb-1") == mine[:-6:-1]
    assert await history.ids(vm_id="sb-2") == [other]
    found = await history.store.verify()
    assert (found.intact, found.links, found.entries) == (True, 13 * 2 + 7, 6)


async def test_what_runs_is_not_dropped(history: History) -> None:
    first = begun()
    await history.store.record(first)
    for _ in range(8):
        await history.run()
    await history.store.record(entries.finished(first, outcome(first)))
    found = await history.store.get(first.execution_id)
    assert found is not None
    assert found.state == "finished"
    assert len(await history.ids()) == 5
    assert (await history.store.verify()).intact


async def test_a_smaller_limit_counts_from_the_next_execution(tmp_path: Path) -> None:
    history = History(tmp_path)
    await history.open()
    for _ in range(6):
        await history.run()
    await history.close()
    history.config.max_history_entries = 2
    await history.open()
    last = await history.run()
    assert (await history.ids())[0] == last
    assert len(await history.ids()) == 2
    assert (await history.store.verify()).intact
    await history.close()


# --- who tampers is found ---------------------------------------------------------------------------------------------


async def filled(history: History) -> list[str]:
    ids = [await history.run(f"sb-{number}") for number in range(3)]
    assert (await history.store.verify()).intact
    return ids


@pytest.mark.parametrize(
    ("statement", "link", "why"),
    [
        ("UPDATE history_entries SET stdout = 'x' WHERE vm_id = 'sb-1'", 4, "the entry was changed"),
        ("UPDATE history_entries SET executed_at = '2020' WHERE vm_id = 'sb-1'", 4, "the entry was changed"),
        ("UPDATE history_entries SET number = number + 9 WHERE vm_id = 'sb-1'", 4, "the entry was changed"),
        ("DELETE FROM history_entries WHERE vm_id = 'sb-0'", 2, "the entry is missing"),
        ("DELETE FROM history_entries", 2, "the entry is missing"),
        ("DELETE FROM history_links WHERE sequence = 3", 4, "link 3 is missing"),
        ("DELETE FROM history_links WHERE sequence = 6", 5, "the entry was changed"),
        ("UPDATE history_links SET content = 'x' WHERE sequence = 3", 3, "the link was changed"),
        ("UPDATE history_links SET event = 'pruned' WHERE sequence = 6", 6, "the link was changed"),
        ("UPDATE history_links SET hash = 'x' WHERE sequence = 2", 2, "the link was changed"),
        ("UPDATE history_links SET previous = 'x' WHERE sequence = 2", 2, "it does not follow from the link before it"),
        ("DELETE FROM history_links", None, "no link knows this entry"),
    ],
)
async def test_a_change_is_found_and_named(history: History, statement: str, link: int | None, why: str) -> None:
    ids = await filled(history)
    await history.sql(statement)
    found = await history.store.verify()
    assert not found.intact
    assert found.first_bad is not None
    assert (found.first_bad.sequence, found.first_bad.why) == (link, why)
    assert found.first_bad.execution_id in ids


async def test_links_that_changed_places_are_found(history: History) -> None:
    await filled(history)
    for old, new in ((2, 99), (3, 2), (99, 3)):
        await history.sql("UPDATE history_links SET sequence = :new WHERE sequence = :old", old=old, new=new)
    bad = (await history.store.verify()).first_bad
    assert bad is not None
    assert bad.sequence == 2


async def test_an_entry_that_came_back_after_retention_is_found(history: History) -> None:
    ids = [await history.run() for _ in range(6)]
    names = ", ".join(column.name for column in ENTRIES.columns if column.name != "id")
    await history.sql(
        f"INSERT INTO history_entries (id, {names}) SELECT :old, {names} FROM history_entries WHERE id = :new",  # noqa: S608
        old=ids[0],
        new=ids[1],
    )
    bad = (await history.store.verify()).first_bad
    assert bad is not None
    assert (bad.execution_id, bad.why) == (ids[0], "the entry is there although it was dropped")


async def test_a_noted_head_shows_that_the_end_was_cut_off(history: History) -> None:
    await filled(history)
    head = (await history.store.verify()).head
    assert (await history.store.verify(head)).intact
    await history.run("sb-9")
    assert (await history.store.verify(head)).intact
    await history.sql("DELETE FROM history_links WHERE sequence > 4")
    await history.sql("DELETE FROM history_entries WHERE number > 4")
    assert (await history.store.verify()).intact  # by itself the rest is a chain
    found = await history.store.verify(head)
    assert not found.intact
    assert found.first_bad is not None
    assert "no link has the noted hash" in found.first_bad.why


async def test_an_answer_to_a_removed_entry_is_an_error(history: History) -> None:
    entry = begun()
    await history.store.record(entry)
    await history.store.record(entries.finished(entry, outcome(entry)))
    await history.sql("DELETE FROM history_entries")
    with pytest.raises(HistoryError, match="somebody removed it"):
        await history.store.record(entries.finished(entry, outcome(entry)))


# --- crashes ----------------------------------------------------------------------------------------------------------


async def test_what_a_dead_process_left_is_unknown_and_what_a_live_one_runs_is_not(tmp_path: Path) -> None:
    live, dead = History(tmp_path), History(tmp_path)
    await live.open()
    await dead.open()
    running, lost = begun(), begun()
    await live.store.record(running)
    await dead.store.record(lost)
    await dead.close()
    assert set(await live.ids()) == {lost.execution_id, running.execution_id}  # the database has it before it is read

    third = History(tmp_path)
    await third.open()
    found = await third.store.get(lost.execution_id)
    assert found is not None
    assert (found.state, found.termination_reason) == ("unknown", TerminationReason.CRASHED)
    assert "is unknown" in (found.error or "")
    assert found.command == lost.command
    assert await third.ids(failures_only=True) == [lost.execution_id]
    still = await third.store.get(running.execution_id)
    assert still is not None
    assert still.state == "started"
    await live.store.record(entries.finished(running, outcome(running)))
    assert (await third.store.verify()).intact
    await third.close()
    await live.close()
    assert [path.name for path in (tmp_path / "history.db.owners").iterdir()] == ["opening"]


# --- files ------------------------------------------------------------------------------------------------------------


async def test_only_the_owner_may_read_it(kept: History) -> None:
    await kept.run()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in kept.folder.rglob("*") if path.is_file()}
    assert {"history.db", "history.db-wal"} <= set(modes)
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(kept.folder.stat().st_mode) == 0o700


async def test_it_is_written_ahead(kept: History) -> None:
    """What begins is in the journal when `record` returns, and soon in the database; what ended is in the database."""
    other = sqlite3.connect(kept.folder / "history.db")
    entry = begun()
    await kept.store.record(entry)
    (journal,) = [path for path in (kept.folder / "history.db.owners").iterdir() if path.name != "opening"]
    assert read_journal(journal) == [entry]
    await kept.ids()
    assert other.execute("SELECT state FROM history_entries").fetchall() == [("started",)]
    await kept.store.record(entries.finished(entry, outcome(entry)))
    assert other.execute("SELECT state FROM history_entries").fetchall() == [("finished",)]
    assert read_journal(journal) == []
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()


@pytest.mark.parametrize("persist", [True, False])
async def test_a_closed_store_says_so(tmp_path: Path, persist: bool) -> None:
    store = await open_store(HistoryConfig(persist_history=persist), None, tmp_path)
    await store.close()
    with pytest.raises(HistoryError, match="closed"):
        await store.record(begun())


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HistoryError, match=r"history\.db cannot be opened") as error:
        await open_store(HistoryConfig(), None, tmp_path / "file/state")
    assert "EMBERBOX_STATE_DIR" in error.value.remediation
    assert not error.value.retryable


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "history.db").write_text("nonsense" * 1000)
    with pytest.raises(HistoryError, match="not a database") as error:
        await open_store(HistoryConfig(), None, tmp_path)
    assert "Move the file away" in error.value.remediation


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "history_url is not one"),
        ("cobol://x", "history_url is not one"),
    ],
)
async def test_a_url_that_cannot_be_used(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(HistoryError, match=words) as error:
        await open_store(HistoryConfig(), url, tmp_path)
    assert "postgresql+asyncpg://" in error.value.remediation


async def test_the_extra_of_postgresql_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emberbox.history.database.find_spec", lambda name: None)
    with pytest.raises(HistoryError, match="asyncpg is not installed") as error:
        await open_store(HistoryConfig(), "postgresql://u@h/d", tmp_path)
    assert "emberbox[postgresql]" in error.value.remediation


async def test_an_own_url(tmp_path: Path) -> None:
    history = History(tmp_path / "unused")
    await history.open(f"sqlite:///{tmp_path}/own/h.db")
    await history.run()
    await history.close()
    assert (tmp_path / "own/h.db").exists()
    assert not (tmp_path / "unused").exists()
