"""The lazy history of an engine, and the pure parts beside it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from emberbox import Engine, Settings
from emberbox.errors import ExecutionFailed, HistoryError, PolicyBlocked
from emberbox.history import entries
from emberbox.history.recorder import HistoryRecorder
from emberbox.models import HistoryConfig, HistoryQueryRequest, TerminationReason

from .conftest import begun, outcome

EVERYTHING = HistoryQueryRequest()


def recorder(folder: Path, **config: bool) -> HistoryRecorder:
    return HistoryRecorder(HistoryConfig(**config), None, folder)


async def test_nothing_is_made_before_it_is_needed(tmp_path: Path) -> None:
    history = recorder(tmp_path / "state")
    await history.close()
    assert not (tmp_path / "state").exists()


async def test_it_opens_beside_something_else(tmp_path: Path) -> None:
    history = recorder(tmp_path)
    history.prepare()
    await history.close()
    assert (tmp_path / "history.db").exists()


async def test_closing_waits_for_what_is_under_way(tmp_path: Path) -> None:
    history = recorder(tmp_path)
    entry = begun()
    await history.record(entry)
    closing = asyncio.create_task(history.close())
    await asyncio.sleep(0)
    await history.record(entries.finished(entry, outcome(entry)))
    await closing
    assert [e.state for e in (await history.query(EVERYTHING)).history] == ["finished"]


async def test_it_answers_after_the_end_and_holds_nothing(tmp_path: Path) -> None:
    history = recorder(tmp_path)
    entry = begun()
    await history.record(entries.refused(entry, PolicyBlocked("no")))
    await history.close()
    assert (await history.query(EVERYTHING)).total == 1
    assert (await history.get(entry.execution_id)) is not None
    assert (await history.verify()).intact
    assert [path.name for path in (tmp_path / "history.db.owners").iterdir()] == ["opening"]


async def test_what_is_kept_in_memory_goes_with_it(tmp_path: Path) -> None:
    history = recorder(tmp_path / "state", persist_history=False)
    ended = begun()
    await history.record(ended)
    await history.record(entries.finished(ended, outcome(ended)))
    await history.record(entries.refused(begun(), PolicyBlocked("no")))
    assert (await history.query(EVERYTHING)).total == 2
    assert not (tmp_path / "state").exists()
    await asyncio.gather(history.close(), history.record(entries.unknown(begun())), return_exceptions=True)


async def test_a_failed_start_is_told_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    history = recorder(tmp_path / "state")
    for _ in range(2):
        with pytest.raises(HistoryError):
            await history.record(begun())
    (tmp_path / "state").unlink()
    await history.record(entries.refused(begun(), PolicyBlocked("no")))
    await history.close()


def test_only_an_open_history_imports_sqlalchemy() -> None:
    code = (
        "import sys, asyncio, emberbox.cli.execute, emberbox.cli.history\n"
        "from emberbox import Engine, load_settings\n"
        "settings = load_settings()\n"
        "settings.vm_execution.history.enabled = False\n"
        "asyncio.run(Engine(settings).close())\n"
        "asyncio.run(Engine(load_settings()).close())\n"
        "print({'sqlalchemy', 'alembic', 'aiosqlite'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_a_switched_off_history_says_so(settings: Settings) -> None:
    settings.vm_execution.history.enabled = False
    with pytest.raises(HistoryError, match="switched off"):
        _ = Engine(settings).history


# --- entries ----------------------------------------------------------------------------------------------------------


def test_the_output_of_an_answer_that_a_hook_refused_is_withheld() -> None:
    entry = begun()
    left = entries.failed(entry, PolicyBlocked("a secret"), outcome(entry, stdout="hunter2"))
    assert (left.state, left.exit_code, left.success, left.blocked_by) == ("finished", 0, False, "blocked_by_policy")
    assert "hunter2" not in left.model_dump_json()


def test_whoever_raises_leaves_a_reason() -> None:
    entry = begun()
    assert entries.failed(entry, ExecutionFailed("busy")).error == "busy"
    left = entries.failed(entry, asyncio.CancelledError())
    assert (left.termination_reason, left.error) == (TerminationReason.KILLED, "The caller left; the code was killed.")
    assert entries.failed(entry, ValueError("of a listener")).error == "ValueError: of a listener"


def test_refused_code_of_any_length_is_cut() -> None:
    entry = begun(code="x" * 10_000_000)
    assert len(entry.command) < 300_000
    assert entry.command.endswith("(10000000 characters)")
