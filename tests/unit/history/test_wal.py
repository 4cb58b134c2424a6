"""The journal: what was begun is never lost, whenever the process dies, and never recorded twice."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from emberbox.errors import HistoryError
from emberbox.history import entries
from emberbox.history.wal import Journal, read_journal
from emberbox.models import HistoryQueryRequest

from .conftest import History, begun, outcome

DYING = """
import asyncio, os, pathlib, signal, sys
sys.path.insert(0, sys.argv[2])
from tests.unit.history.conftest import History, begun, outcome
from emberbox.history import entries

async def work():
    history = History(pathlib.Path(sys.argv[1]))
    await history.open()
    done = await history.run(code="done")
    entry = begun(code="begun")
    await history.store.record(entry)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(work())
"""


def place(folder: Path) -> tuple[Path, int]:
    path = folder / "journal"
    return path, os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def test_what_was_written_comes_back_in_its_order(tmp_path: Path) -> None:
    path, fd = place(tmp_path)
    journal = Journal(fd)
    written = [begun(code="a\nb\0c\u2028"), begun(code="ü" * 100_000)]
    for entry in written:
        journal.append(entry)
    assert read_journal(path) == written
    journal.settled()
    assert read_journal(path) == []
    journal.append(written[0])
    assert read_journal(path) == written[:1]
    os.close(fd)


def test_a_line_that_was_cut_short_and_one_that_is_none_are_left_out(tmp_path: Path) -> None:
    path, fd = place(tmp_path)
    journal, entry = Journal(fd), begun()
    journal.append(entry)
    os.pwrite(fd, b'{"not": "an entry"}\n' + entry.model_dump_json().encode()[:50], path.stat().st_size)
    assert read_journal(path) == [entry]
    assert read_journal(tmp_path / "none") == []
    os.close(fd)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fd = place(tmp_path)
    journal, first = Journal(fd), begun()
    journal.append(first)
    real = os.pwrite
    calls = 0

    def full(fd: int, data: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(28, "No space left on device")
        return real(fd, bytes(data)[:10], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        journal.append(begun())
    monkeypatch.undo()
    second = begun()
    journal.append(second)
    assert read_journal(path) == [first, second]
    os.close(fd)


async def test_what_a_killed_process_had_only_begun_is_in_the_history(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[3])
    arguments = [sys.executable, "-c", DYING, str(tmp_path), root]
    killed = await asyncio.to_thread(subprocess.run, arguments, timeout=60, check=False)
    assert killed.returncode == -9
    for _ in range(2):  # the second look must not find it again
        history = History(tmp_path)
        await history.open()
        found = (await history.store.query(HistoryQueryRequest())).history
        assert [(entry.command, entry.state) for entry in found] == [("begun", "unknown"), ("done", "finished")]
        assert (await history.store.verify()).intact
        await history.close()


async def test_what_retention_dropped_does_not_come_back(tmp_path: Path) -> None:
    first = History(tmp_path, most=2)
    await first.open()
    for _ in range(5):
        await first.run()
    begun_last = begun()
    await first.store.record(begun_last)
    ids = await first.ids()
    await first.close()
    second = History(tmp_path, most=2)
    await second.open()
    assert await second.ids() == ids
    await second.close()


async def test_a_database_that_fails_stops_what_comes_next_and_gets_all_of_it_later(
    kept: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = kept.store._runner.write
    broken = True

    async def write(work: Any) -> Any:
        if broken:
            raise OperationalError("INSERT", {}, Exception("disk I/O error"))
        return await real(work)

    monkeypatch.setattr(kept.store._runner, "write", write)
    first = begun(code="first")
    await kept.store.record(first)  # in the journal
    with pytest.raises(HistoryError, match="disk I/O error"):
        await kept.store.record(entries.finished(first, outcome(first)))
    with pytest.raises(HistoryError, match="disk I/O error"):
        await kept.store.record(begun(code="never runs"))
    broken = False
    again = await kept.run(code="again")
    assert await kept.ids() == [again, first.execution_id]
    assert (await kept.store.verify()).intact
