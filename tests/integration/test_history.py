"""The history of real sandboxes: what is recorded, what survives a crash, what the command line says of it."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from commandline import emberbox
from emberbox import AsyncSandbox, Engine, Sandbox, Settings, load_settings
from emberbox.engine import ExecuteRequest
from emberbox.errors import ExecutionFailed, HistoryError, PolicyBlocked
from emberbox.models import CommandHistoryEntry, HistoryQueryRequest, TerminationReason
from handles import session_of

MINIMAL = "minimal"

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox.create(MINIMAL) as sandbox:
        yield sandbox


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_success_failure_time_out_and_refusal(sandbox: Sandbox) -> None:
    good = sandbox.run_code("print('out'); 1 + 1")
    bad = sandbox.run_code("import sys; print('err', file=sys.stderr); 1 / 0")
    slow = sandbox.run_code("print('begun', flush=True)\nwhile True: pass", timeout=0.5)
    with pytest.raises(PolicyBlocked):
        sandbox.run_code("import os\nos.system('ls')")

    refused, timed_out, failed, succeeded = sandbox.history()
    assert (succeeded.execution_id, succeeded.id) == (good.execution_id, good.execution_id)
    assert (succeeded.state, succeeded.success, succeeded.exit_code) == ("finished", True, 0)
    assert (succeeded.command, succeeded.language, succeeded.stdout) == ("print('out'); 1 + 1", "python", "out\n")
    assert (succeeded.vm_id, succeeded.agent_id, succeeded.backend) == (sandbox.sandbox_id, "local", sandbox.backend)
    assert succeeded.duration_ms == good.duration_ms
    assert (failed.execution_id, failed.success, failed.exit_code) == (bad.execution_id, False, 1)
    assert failed.error == "ZeroDivisionError: division by zero"
    assert failed.stderr.startswith("err\n")
    assert timed_out.execution_id == slow.execution_id
    assert (timed_out.termination_reason, timed_out.stdout) == (TerminationReason.TIMEOUT, "begun\n")
    assert (refused.state, refused.blocked_by, refused.exit_code) == ("refused", "python.os-system", None)
    assert refused.command == "import os\nos.system('ls')"
    assert sandbox.history(failures_only=True) == [refused, timed_out, failed]
    assert sandbox.history(limit=1) == [refused]
    assert sandbox.history(since=timed_out.executed_at, until=timed_out.executed_at) == [timed_out]
    assert sandbox.history(since=datetime.now(UTC) + timedelta(hours=1)) == []


def test_the_parent_is_the_execution_whose_state_it_went_on_from(sandbox: Sandbox) -> None:
    first = sandbox.run_code("1").execution_id
    point = sandbox.snapshot()
    second = sandbox.run_code("2").execution_id
    (child,) = sandbox.fork()
    with child:
        of_child = child.run_code("3").execution_id
        assert child.history()[0].parent_id == second
    sandbox.rollback(point)
    back = sandbox.run_code("4").execution_id
    parents = {entry.execution_id: entry.parent_id for entry in sandbox.history()}
    assert parents == {first: None, second: first, back: first}
    assert of_child not in parents


def test_it_can_be_read_after_the_end(state: Path) -> None:
    sandbox = Sandbox.create(MINIMAL)
    run = sandbox.run_code("1")
    sandbox.kill()
    assert [entry.execution_id for entry in sandbox.history()] == [run.execution_id]


async def test_a_caller_who_leaves_and_a_sandbox_that_is_killed_leave_finished_entries(settings: Settings) -> None:
    async with Engine(settings) as engine:
        sandbox = await AsyncSandbox.create(MINIMAL, engine=engine)
        for end in ("cancel", "kill"):
            begun = asyncio.Event()

            def heard(_: str, begun: asyncio.Event = begun) -> None:
                begun.set()

            code = "print(1, flush=True)\nwhile True: pass"
            task = asyncio.create_task(sandbox.run_code(code, on_stdout=heard, timeout=60))
            await begun.wait()
            if end == "cancel":
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await sandbox.restart_code_context((await sandbox.list_code_contexts())[0])
            else:
                await sandbox.kill()
                assert (await task).termination_reason is TerminationReason.KILLED
        killed, left = await sandbox.history()
        assert (killed.state, killed.termination_reason) == ("finished", TerminationReason.KILLED)
        assert (left.state, left.error) == ("finished", "The caller left; the code was killed.")
        assert (await engine.history.verify()).intact


async def test_what_the_sandbox_refused_is_recorded(engine: Engine) -> None:
    sandbox = await AsyncSandbox.create(MINIMAL, engine=engine)
    with pytest.raises(ExecutionFailed):
        await sandbox.run_code("1", cwd="/nowhere")
    (entry,) = await sandbox.history()
    assert (entry.state, entry.success) == ("finished", False)
    assert "/nowhere" in (entry.error or "")
    await sandbox.kill()


async def test_many_at_once_are_all_recorded(engine: Engine) -> None:
    sandboxes = [await AsyncSandbox.create(MINIMAL, engine=engine) for _ in range(3)]

    async def work(sandbox: AsyncSandbox) -> list[str]:
        return [(await sandbox.run_code(f"{n}")).execution_id for n in range(30)]

    ran = await asyncio.gather(*(work(sandbox) for sandbox in sandboxes))
    for sandbox, ids in zip(sandboxes, ran, strict=True):
        assert [entry.execution_id for entry in await sandbox.history()] == ids[::-1]
    found = await engine.history.verify()
    assert (found.intact, found.links) == (True, 180)


async def test_blocks_that_are_refused_before_there_is_a_sandbox(engine: Engine) -> None:
    answer = await engine.parse_execute("Run this:\n\n```bash\nrm -rf ../other\n```\n")
    assert len(answer.errors) == 1
    (entry,) = (await engine.history.query(HistoryQueryRequest())).history
    assert (entry.state, entry.vm_id, entry.blocked_by) == ("refused", None, "bash.rm-rf")


# --- settings ---------------------------------------------------------------------------------------------------------


async def test_switched_off_nothing_is_kept(state: Path, settings: Settings) -> None:
    settings.vm_execution.history.enabled = False
    async with Engine(settings) as engine:
        sandbox = await AsyncSandbox.create(MINIMAL, engine=engine)
        assert (await sandbox.run_code("1")).text == "1"
        with pytest.raises(HistoryError, match="switched off"):
            await sandbox.history()
    assert not state.exists()


async def test_not_persisted_it_is_kept_in_memory(state: Path, settings: Settings) -> None:
    settings.vm_execution.history.persist_history = False
    settings.vm_execution.history.max_history_entries = 2
    async with Engine(settings) as engine:
        sandbox = await AsyncSandbox.create(MINIMAL, engine=engine)
        ids = [(await sandbox.run_code("1")).execution_id for _ in range(3)]
        assert [entry.execution_id for entry in await sandbox.history()] == ids[:0:-1]
        assert (await engine.history.verify()).intact
    assert not state.exists()


async def test_what_cannot_be_recorded_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with Engine(load_settings(state_dir=tmp_path / "file/state")) as engine:
        sandbox = await AsyncSandbox.create(MINIMAL, engine=engine)
        with pytest.raises(HistoryError) as error:
            await sandbox.run_code("open('ran', 'w').close()")
        assert "history.enabled" in error.value.remediation
        assert "ran" not in error.value.message.split()
        assert not await sandbox.files.exists("ran")


async def test_an_answer_that_cannot_be_recorded_is_not_given(state: Path, engine: Engine) -> None:
    sandbox = await AsyncSandbox.create(MINIMAL, engine=engine)
    seen: list[str] = []

    def spoil(text: str) -> None:
        seen.append(text)
        with sqlite3.connect(state / "history.db") as connection:
            connection.execute("DROP TABLE history_links")
        connection.close()

    with pytest.raises(HistoryError, match=r"The code ran, .* cannot be written"):
        await engine.execute(ExecuteRequest(session_of(sandbox), "python", "print(1)"), _listeners(spoil))
    assert seen == ["1\n"]


def _listeners(on_stdout: Callable[[str], object]):  # type: ignore[no-untyped-def]
    from emberbox.sandbox.listeners import Listeners

    return Listeners(on_stdout)


# --- crashes and neighbours -------------------------------------------------------------------------------------------

CHILD = """
import sys
from emberbox import Sandbox
sandbox = Sandbox.create("minimal")
print(sandbox.run_code("1").execution_id, flush=True)
sandbox.run_code("print('running', flush=True)\\nwhile True: pass", on_stdout=lambda text: print(text, flush=True))
"""


def test_after_a_kill_what_ran_is_unknown_and_nothing_is_lost() -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    done = child.stdout.readline().strip()
    assert child.stdout.readline() == "running\n"
    child.kill()
    child.wait()
    child.stdout.close()

    rows = json.loads(emberbox("history", "list", "--json").stdout)["history"]
    assert [(row["state"], row["execution_id"] == done) for row in rows] == [("unknown", False), ("finished", True)]
    assert rows[0]["termination_reason"] == "crashed"
    shown = emberbox("history", "show", rows[0]["execution_id"])
    assert "Emberbox died while this was under way" in " ".join(shown.stdout.split())
    assert "while True: pass" in shown.stdout
    assert emberbox("history", "verify").returncode == 0
    load_settings_and_sweep()


def load_settings_and_sweep() -> None:
    """What the killed one left on the host goes when the next engine starts."""

    async def work() -> None:
        async with Engine() as engine:
            await engine.list_sandboxes()

    asyncio.run(work())


NEIGHBOUR = """
import sys
from emberbox import Sandbox
with Sandbox.create("minimal") as sandbox:
    sys.stdin.readline()
    print(*[sandbox.run_code(str(n)).execution_id for n in range(25)], flush=True)
"""


def test_two_engines_in_two_processes_share_a_history() -> None:
    pipe = subprocess.PIPE
    children = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR], stdin=pipe, stdout=pipe, text=True) for _ in "ab"]
    said = []
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        said.append(child.communicate(timeout=120)[0].split())
        assert child.returncode == 0
    rows = json.loads(emberbox("history", "list", "--json", "--limit", "100").stdout)["history"]
    assert sorted(row["execution_id"] for row in rows) == sorted(said[0] + said[1])
    assert {row["state"] for row in rows} == {"finished"}
    found = json.loads(emberbox("history", "verify", "--json").stdout)
    assert (found["intact"], found["links"], found["entries"]) == (True, 100, 50)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded() -> list[CommandHistoryEntry]:
    """Three executions: good, bad, refused; newest first."""
    with Sandbox.create(MINIMAL) as sandbox:
        sandbox.run_code("print('hello \x1b[31m')\nprint('and on')")
        sandbox.run_code("1 / 0")
        with pytest.raises(PolicyBlocked):
            sandbox.run_code("eval('1')")
        return sandbox.history()


def test_history_list(recorded: list[CommandHistoryEntry]) -> None:
    lines = emberbox("history", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["execution", *(entry.execution_id for entry in recorded)]
    assert "refused: python.eval" in lines[1]
    assert "exit 1" in lines[2]
    assert "exit 0" in lines[3]
    assert all("\x1b" not in line for line in lines)

    def listed(*arguments: str) -> list[str]:
        rows = json.loads(emberbox("history", "list", "--json", *arguments).stdout)["history"]
        return [row["execution_id"] for row in rows]

    ids = [entry.execution_id for entry in recorded]
    assert listed() == ids
    assert listed("--limit", "1") == ids[:1]
    assert listed("--failures") == ids[:2]
    assert listed("--sandbox", "sb-other") == []
    assert listed("--agent", "local") == ids
    assert listed("--since", "1h") == ids
    assert listed("--until", "1h") == []
    assert listed("--since", recorded[1].executed_at.isoformat()) == ids[:2]
    assert "1 of 3" in emberbox("history", "list", "--limit", "1").stdout
    wrong = emberbox("history", "list", "--since", "yesterday")
    assert wrong.returncode == 2
    assert "2h" in wrong.stderr


def test_history_show(recorded: list[CommandHistoryEntry]) -> None:
    done = emberbox("history", "show", recorded[2].execution_id)
    assert done.returncode == 0
    assert "print('and on')" in done.stdout
    assert "hello \N{REPLACEMENT CHARACTER}[31m\nand on" in done.stdout
    assert str(recorded[2].vm_id) in done.stdout
    shown = json.loads(emberbox("history", "show", "--json", recorded[2].execution_id).stdout)
    assert CommandHistoryEntry.model_validate(shown) == recorded[2]
    missing = emberbox("history", "show", "ex-none")
    assert missing.returncode == 2
    assert "emberbox history list" in missing.stderr


def test_history_verify(recorded: list[CommandHistoryEntry], state: Path) -> None:
    good = emberbox("history", "verify")
    assert good.returncode == 0
    assert "intact: 5 links, 3 entries" in good.stdout
    head = json.loads(emberbox("history", "verify", "--json").stdout)["head"]
    assert head in good.stdout
    assert emberbox("history", "verify", "--head", head).returncode == 0
    assert emberbox("history", "verify", "--head", "0123").returncode == 1

    with sqlite3.connect(state / "history.db") as connection:
        connection.execute("UPDATE history_entries SET command = 'x' WHERE id = ?", (recorded[2].execution_id,))
    connection.close()
    broken = emberbox("history", "verify")
    assert broken.returncode == 1
    assert f"broken at link 2 (execution {recorded[2].execution_id}): the entry was changed" in broken.stdout
    bad = json.loads(emberbox("history", "verify", "--json").stdout)["first_bad"]
    assert (bad["sequence"], bad["execution_id"]) == (2, recorded[2].execution_id)


def test_the_command_line_without_a_history(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Nothing is recorded" in emberbox("history", "list").stdout
    shutil.rmtree(state)
    state.write_text("in the way")
    done = emberbox("history", "verify")
    assert done.returncode == 2
    assert "EMBERBOX_STATE_DIR" in done.stderr
    ran = emberbox("exec", "-t", MINIMAL, "-l", "python", "-c", "print('ran')")
    assert ran.returncode == 2
    assert "ran" not in ran.stdout
    monkeypatch.setenv("EMBERBOX_VM_EXECUTION__HISTORY__ENABLED", "false")
    assert emberbox("exec", "-t", MINIMAL, "-l", "python", "-c", "print('ran')").stdout == "ran\n"
    assert "switched off" in emberbox("history", "list").stderr
