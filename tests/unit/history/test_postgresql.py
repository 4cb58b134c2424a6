"""The same history in a real PostgreSQL server of this test's own; skipped where none is installed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from emberbox.errors import HistoryError
from emberbox.history import entries
from emberbox.models import HistoryQueryRequest

from .conftest import History, begun, outcome


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    named = shutil.which("initdb")
    return found[-1].parent if found else Path(named).parent if named else None


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a fresh server that listens on a socket only. It refuses to be root: then it is user `postgres`."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed here")
    become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="ebp-", dir="/tmp"))
    if become:
        shutil.chown(folder, "postgres", "postgres")

    def run(*argv: str) -> None:
        subprocess.run([*become, *argv], check=True, cwd="/", stdout=subprocess.DEVNULL, timeout=120)

    data = folder / "data"
    try:
        run(f"{programs}/initdb", "-D", str(data), "-U", "ember", "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        run(f"{programs}/pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://ember@/postgres?host={folder}"
        finally:
            run(f"{programs}/pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


async def sql(url: str, *statements: str) -> None:
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


@pytest.fixture
async def url(server: str) -> str:
    """An empty database."""
    await sql(server, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return server


@pytest.fixture
async def history(url: str, tmp_path: Path) -> AsyncIterator[History]:
    history = History(tmp_path, most=5)
    await history.open(url)
    yield history
    await history.close()


async def test_entries_filters_and_retention(history: History) -> None:
    entry = begun(code="print('häß\x00')")
    await history.store.record(entry)
    done = entries.finished(entry, outcome(entry, exit_code=2))
    await history.store.record(done)
    assert await history.store.get(entry.execution_id) == done
    others = [await history.run("sb-2") for _ in range(8)]
    assert await history.ids(vm_id="sb-2") == others[:-6:-1]
    assert await history.ids(failures_only=True) == [entry.execution_id]
    assert await history.ids(start_date=entry.executed_at, end_date=entry.executed_at) == [entry.execution_id]
    found = await history.store.verify()
    assert (found.intact, found.links, found.entries) == (True, 18 + 3, 6)


async def test_what_is_there_stays_at_the_next_open(history: History, url: str) -> None:
    ran = await history.run()
    await history.close()
    await history.open(url)
    assert await history.ids() == [ran]


async def test_a_change_is_found(history: History, url: str) -> None:
    await history.run()
    changed = await history.run()
    await sql(url, f"UPDATE history_entries SET stdout = 'x' WHERE id = '{changed}'")  # noqa: S608
    bad = (await history.store.verify()).first_bad
    assert bad is not None
    assert (bad.sequence, bad.execution_id) == (4, changed)


def _writer(folder: str, url: str, barrier: Any) -> None:
    async def work() -> None:
        history = History(Path(folder))
        barrier.wait(60)
        await history.open(url)
        await asyncio.gather(*(history.run(f"sb-{number % 3}") for number in range(20)))
        for _ in range(10):
            await history.run("sb-x")
        await history.close()

    asyncio.run(work())


async def test_processes_share_a_database(url: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [context.Process(target=_writer, args=(str(tmp_path), url, barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        await asyncio.to_thread(worker.join, 120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    history = History(tmp_path)
    await history.open(url)
    found = await history.store.verify()
    assert (found.intact, found.links, found.entries) == (True, 3 * 30 * 2, 3 * 30)
    await history.close()


async def test_what_a_dead_one_left_is_unknown_and_what_a_live_one_runs_is_not(history: History, url: str) -> None:
    dead = History(history.folder)
    await dead.open(url)
    running, lost = begun(), begun()
    await history.store.record(running)
    await dead.store.record(lost)
    await dead.close()
    third = History(history.folder)
    await third.open(url)
    states = {e.execution_id: e.state for e in (await third.store.query(HistoryQueryRequest())).history}
    assert states == {running.execution_id: "started", lost.execution_id: "unknown"}
    assert (await third.store.verify()).intact
    await third.close()


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    history = History(tmp_path)
    with pytest.raises(HistoryError, match="cannot be opened") as error:
        await history.open(f"postgresql://ember:secret@/postgres?host={tmp_path}")
    assert "Is the server" in error.value.remediation
    assert "secret" not in error.value.message
