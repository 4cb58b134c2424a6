"""What the history's policies do on real sandboxes: snapshots around executions, rollback of what failed, and what the
caller is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from emberbox import AsyncSandbox, Engine, Sandbox, Settings, load_settings
from emberbox.errors import SnapshotNotFound, ValidationFailed, VmExecutionError
from emberbox.host.rundir import processes_of
from emberbox.models import Execution, FileChange

MINIMAL = "minimal"
FAILING = "x = 99; open('a', 'w').write('spoiled'); 1 / 0"


@pytest.fixture
def with_policy(nothing_left: None, tmp_path: Path) -> Iterator[Any]:
    """Makes sandboxes under a policy."""
    made: list[Sandbox] = []

    def make(**history: bool | int) -> Sandbox:
        settings = load_settings(snapshot_dir=tmp_path / "snapshots", vm_execution={"history": history})
        made.append(Sandbox.create(MINIMAL, settings=settings))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.kill()


def changed(execution: Execution) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for change in execution.changed_files or []:
        found.setdefault(change.change, []).append(change.path)
    return found


# --- policies ---------------------------------------------------------------------------------------------------------


def test_without_a_policy_nothing_is_taken(with_policy: Any) -> None:
    sandbox = with_policy()
    good, bad = sandbox.run_code("x = 1"), sandbox.run_code("1 / 0")
    assert sandbox.list_snapshots() == []
    assert {good.snapshot_before, good.snapshot_after, bad.snapshot_before, bad.snapshot_after} == {None}
    with pytest.raises(SnapshotNotFound, match="after a success") as error:
        sandbox.rollback("last-success")
    assert "snapshot_on_failure" in error.value.remediation


def test_on_failure_the_state_before_it_is_reachable(with_policy: Any) -> None:
    sandbox = with_policy(snapshot_on_failure=True)
    sandbox.run_code("x = 1; open('a', 'w').write('good')")
    sandbox.files.write("b", "written by the host")
    failed = sandbox.run_code(FAILING)
    assert failed.snapshot_before
    assert failed.snapshot_after
    assert sandbox.run_code("x").text == "99", "nothing is rolled back unasked"

    back = sandbox.rollback(failed)
    assert back.snapshot_id == failed.snapshot_before
    assert failed.execution_id in back.executions_undone
    assert sandbox.run_code("x, open('a').read(), open('b').read()").text == "(1, 'good', 'written by the host')"

    wreck = sandbox.branch(failed.snapshot_after)
    assert wreck.run_code("x, open('a').read()").text == "(99, 'spoiled')", "the state after it is there to look at"
    wreck.kill()


def test_on_failure_of_the_very_first_execution(with_policy: Any) -> None:
    sandbox = with_policy(snapshot_on_failure=True)
    failed = sandbox.run_code(FAILING)
    sandbox.rollback(failed.execution_id)
    assert sandbox.run_code("x").error is not None
    assert not sandbox.files.exists("a")


def test_only_what_may_be_needed_is_kept(with_policy: Any) -> None:
    sandbox = with_policy(snapshot_on_failure=True)
    for number in range(5):
        sandbox.run_code(f"x = {number}")
    assert len(sandbox.list_snapshots()) == 1
    sandbox.run_code("1 / 0")
    kinds = [snapshot.kind for snapshot in sandbox.list_snapshots()]
    assert kinds == ["post_execution", "failure"]
    assert [snapshot.good for snapshot in sandbox.list_snapshots()] == [True, False]


def test_last_success(with_policy: Any) -> None:
    sandbox = with_policy(snapshot_on_failure=True)
    sandbox.run_code("x = 1")
    sandbox.run_code(FAILING)
    sandbox.run_code("x = 100; 1 / 0")
    sandbox.rollback("last-success")
    assert sandbox.run_code("x").text == "1"


def test_automatic_rollback(with_policy: Any) -> None:
    sandbox = with_policy(auto_rollback_on_failure=True)
    sandbox.run_code("x = 1; open('a', 'w').write('good')")
    failed = sandbox.run_code(FAILING)
    assert failed.error is not None
    assert failed.error.name == "ZeroDivisionError"
    assert failed.rolled_back_to
    assert any("rolled back" in note for note in failed.notes)
    after = sandbox.run_code("x, open('a').read()")
    assert after.text == "(1, 'good')"

    rows = {row.execution_id: row for row in sandbox.history()}
    assert rows[failed.execution_id].rolled_back_to == failed.rolled_back_to
    assert rows[after.execution_id].parent_id == rows[failed.execution_id].parent_id, (
        "it did not go on from the failure"
    )


def test_a_snapshot_of_every_execution(with_policy: Any) -> None:
    sandbox = with_policy(snapshot_on_execution=True)
    runs = [sandbox.run_code(f"x = {number}; x") for number in range(4)]
    for run, next_run in pairwise(runs):
        assert run.snapshot_after
        assert run.snapshot_after == next_run.snapshot_before
    rows = {row.execution_id: row for row in sandbox.history()}
    assert [rows[run.execution_id].snapshot_id for run in runs] == [run.snapshot_after for run in runs]
    sandbox.rollback(runs[2])
    assert sandbox.run_code("x").text == "1"
    sandbox.rollback(runs[2].snapshot_after)
    assert sandbox.run_code("x").text == "2"


def test_snapshots_of_a_policy_make_room_and_those_by_hand_stay(with_policy: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("EMBERBOX_MAX_SNAPSHOTS", "3")
    sandbox = with_policy(snapshot_on_execution=True)
    mine = sandbox.snapshot("mine")
    for number in range(5):
        assert sandbox.run_code(f"x = {number}").snapshot_after
    found = sandbox.list_snapshots()
    assert len(found) == 3
    assert mine.snapshot_id in [snapshot.snapshot_id for snapshot in found]
    sandbox.rollback("mine")
    assert sandbox.run_code("x").error is not None


def test_snapshots_go_with_the_entries_of_the_history(with_policy: Any) -> None:
    sandbox = with_policy(snapshot_on_execution=True, max_history_entries=2)
    mine = sandbox.snapshot("mine")
    runs = [sandbox.run_code(f"x = {number}") for number in range(5)]
    assert [row.execution_id for row in sandbox.history()] == [runs[4].execution_id, runs[3].execution_id]
    kept = [snapshot.snapshot_id for snapshot in sandbox.list_snapshots()]
    assert kept == [mine.snapshot_id, *(run.snapshot_after for run in runs[2:])], "before and after what is recorded"
    sandbox.rollback(runs[3])
    assert sandbox.run_code("x").text == "2"


async def test_code_in_another_context_is_no_reason_to_refuse(nothing_left: None, settings: Settings) -> None:
    """A snapshot is not possible while something runs; the caller is told, and the code runs."""
    history = settings.vm_execution.history.model_copy(update={"snapshot_on_failure": True})
    settings.vm_execution.history = history
    async with Engine(settings) as engine:
        sandbox = await AsyncSandbox.create(MINIMAL, engine=engine)
        other = await sandbox.create_code_context()
        running = asyncio.Event()
        code = "print('on', flush=True)\nwhile True: pass"
        task = asyncio.create_task(sandbox.run_code(code, context=other, on_stdout=lambda _: running.set()))
        await running.wait()
        run = await sandbox.run_code("6 * 7")
        assert run.text == "42"
        assert any("No snapshot" in note for note in run.notes)
        await sandbox.interrupt(other)
        await task


def kill_machines(run_dir: Path) -> None:
    """As a crash would."""
    for pid in processes_of(f"{run_dir}/"):
        process = psutil.Process(pid)
        if "runsc-sandbox" in process.cmdline()[0]:
            process.kill()


def test_a_dead_machine_is_restored_and_the_caller_is_told_what_was_lost(
    nothing_left: None, run_dir: Path, tmp_path: Path
) -> None:
    settings = load_settings(snapshot_dir=tmp_path / "snapshots")
    with Sandbox.create(MINIMAL, settings=settings) as sandbox:
        sandbox.run_code("x = 1")
        point = sandbox.snapshot("point")
        lost = sandbox.run_code("x = 2")
        kill_machines(run_dir)
        told = sandbox.run_code("x")
        assert told.restored_from == point.snapshot_id
        assert lost.execution_id in told.lost_executions
        assert any("goes on from" in note for note in told.notes)
        again = sandbox.run_code("x")
        assert (again.text, again.notes) == ("1", [])
        assert sandbox.is_running()


def test_a_dead_machine_without_a_snapshot_ends_the_sandbox(nothing_left: None, run_dir: Path) -> None:
    with Sandbox.create(MINIMAL) as sandbox:
        sandbox.run_code("x = 1")
        kill_machines(run_dir)
        with contextlib.suppress(VmExecutionError):
            assert sandbox.run_code("x").text is None
        assert not sandbox.is_running()


# --- files that changed -----------------------------------------------------------------------------------------------


def test_files_that_an_execution_changed(with_policy: Any) -> None:
    sandbox = with_policy()
    assert changed(
        sandbox.run_code("open('a', 'w').close(); import os; os.makedirs('d/e'); open('d/e/f', 'w').close()")
    ) == {"created": ["/home/user/a", "/home/user/d/e/f"]}
    assert changed(sandbox.run_code("1 + 1")) == {}
    assert changed(sandbox.run_code("open('a', 'w').write('x')")) == {"changed": ["/home/user/a"]}
    assert changed(sandbox.run_code("open('a', 'r+').write('y')")) == {"changed": ["/home/user/a"]}, "of the same size"
    assert changed(sandbox.run_code("os.rename('d', 'g'); os.remove('a')")) == {
        "created": ["/home/user/g/e/f"],
        "deleted": ["/home/user/a", "/home/user/d/e/f"],
    }
    assert changed(sandbox.run_code("echo hi > /tmp/t; ln -s t /tmp/l", "bash")) == {"created": ["/tmp/l", "/tmp/t"]}


def test_what_others_changed_is_not_laid_to_an_execution(with_policy: Any) -> None:
    sandbox = with_policy()
    sandbox.run_code("1")
    sandbox.files.write("by-host", "x")
    sandbox.commands.run("echo x > by-command")
    assert changed(sandbox.run_code("open('mine', 'w').close()")) == {"created": ["/home/user/mine"]}


def test_the_history_has_the_files(with_policy: Any) -> None:
    sandbox = with_policy()
    sandbox.run_code("open('a', 'w').close()")
    sandbox.run_code("1")
    found = [row.changed_files for row in sandbox.history()]
    assert found == [[], [FileChange(path="/home/user/a", change="created")]]


def test_files_are_not_looked_at_when_nobody_wants_to_know(with_policy: Any) -> None:
    sandbox = with_policy(track_files=False)
    assert sandbox.run_code("open('a', 'w').close()").changed_files is None


def test_too_many_files_are_unknown_rather_than_slow(with_policy: Any) -> None:
    sandbox = with_policy()
    sandbox.run_code("import os; os.mkdir('many')\nfor n in range(1500): open(f'many/{n}', 'w').close()")
    many = sandbox.run_code("for n in range(1500): open(f'many/{n}', 'w').write('x')")
    assert len(many.changed_files) == 1000
    assert any("500 more files" in note for note in many.notes)
    huge = sandbox.run_code("for n in range(21000): open(f'many/x{n}', 'w').close()", timeout=60)
    assert huge.changed_files is None


# --- between two points -----------------------------------------------------------------------------------------------


def test_differences_between_two_points(with_policy: Any) -> None:
    sandbox = with_policy()
    sandbox.files.write("same", "same")
    sandbox.files.write("text", "one\ntwo\nthree\n")
    sandbox.files.write("data", b"\x00\x01")
    sandbox.files.write("old", "bye\n")
    sandbox.snapshot("a")
    sandbox.run_code("open('text', 'w').write('one\\nTWO\\nthree\\n'); open('data', 'wb').write(bytes(5))")
    sandbox.run_code("import os; os.remove('old'); open('new', 'w').write('hello'); os.utime('same')")
    now = {diff.path.rsplit("/", 1)[1]: diff for diff in sandbox.diff("a")}
    assert {name: diff.change for name, diff in now.items()} == {
        "text": "changed", "data": "changed", "old": "deleted", "new": "created",
    }  # fmt: skip
    assert now["text"].diff is not None
    assert "-two\n+TWO\n" in now["text"].diff
    assert now["new"].diff is not None
    assert now["new"].diff.endswith("+hello\n\\ No newline at end of file\n")
    assert (now["data"].diff, now["data"].size_before, now["data"].size_after) == (None, 2, 5)

    sandbox.snapshot("b")
    sandbox.run_code("open('text', 'w').write('later')")
    between = sandbox.diff("a", "b")
    assert [diff.path for diff in between] == [f"/home/user/{name}" for name in ("data", "new", "old", "text")]
    backwards = {diff.path: diff.change for diff in sandbox.diff("b", "a")}
    assert backwards["/home/user/new"] == "deleted"
    assert sandbox.diff("b", "b") == []


def test_only_some_files_are_taken_back(with_policy: Any) -> None:
    sandbox = with_policy()
    sandbox.files.write("keep", "old")
    sandbox.files.write("d/one", "1", mode=0o755)
    sandbox.commands.run("ln -s one d/link")
    sandbox.run_code("x = 1")
    point = sandbox.snapshot()
    sandbox.run_code("x = 2; open('keep', 'w').write('new'); open('d/one', 'w').write('spoiled'); import os")
    sandbox.run_code("os.remove('d/link'); os.symlink('/etc/passwd', 'd/link'); open('d/extra', 'w').close()")
    sandbox.commands.run("chmod 600 d/one")

    back = sandbox.rollback(point, paths=["d"])
    assert back.files_affected == [f"/home/user/d/{name}" for name in ("extra", "link", "one")]
    assert back.executions_undone == []
    assert sandbox.files.read("d/one") == "1"
    assert sandbox.files.get_info("d/one").mode == 0o755
    assert sandbox.files.get_info("d/link").target == "one"
    assert not sandbox.files.exists("d/extra")
    assert sandbox.files.read("keep") == "new"
    assert sandbox.run_code("x").text == "2", "memory stays"
    assert sandbox.rollback(point, paths=["/home/user/d/one"]).files_affected == []
    with pytest.raises(ValidationFailed, match="neither now nor then"):
        sandbox.rollback(point, paths=["nowhere"])
    with pytest.raises(ValidationFailed, match="list"):
        sandbox.rollback(point, paths=[])


def test_a_file_is_not_taken_back_through_a_link(with_policy: Any) -> None:
    sandbox = with_policy()
    sandbox.files.write("a", "then")
    sandbox.files.write("b", "untouched")
    point = sandbox.snapshot()
    sandbox.commands.run("rm a; ln -s b a")
    sandbox.rollback(point, paths=["a"])
    assert (sandbox.files.read("a"), sandbox.files.read("b")) == ("then", "untouched")


def test_a_snapshot_of_now_before_going_back(with_policy: Any) -> None:
    sandbox = with_policy()
    point = sandbox.snapshot("point")
    sandbox.run_code("x = 2")
    back = sandbox.rollback("point", keep_current=True)
    assert back.snapshot_id == point.snapshot_id
    assert sandbox.run_code("x").error is not None
    assert back.pre_rollback_snapshot_id is not None
    sandbox.rollback(back.pre_rollback_snapshot_id)
    assert sandbox.run_code("x").text == "2"


def test_the_nearest_state_before_an_execution_is_said_to_be_that(with_policy: Any) -> None:
    sandbox = with_policy()
    sandbox.snapshot()
    exact = sandbox.run_code("x = 1")
    assert "undone as well" not in sandbox.rollback(exact).message
    sandbox.files.write("by-host", "x")
    late = sandbox.run_code("x = 2")
    assert "undone as well" in sandbox.rollback(late).message
    assert not sandbox.files.exists("by-host")


async def test_a_rollback_while_code_runs_is_not_undone_by_a_policy(nothing_left: None, settings: Settings) -> None:
    policy = {"auto_rollback_on_failure": True, "snapshot_on_failure": True}
    settings.vm_execution.history = settings.vm_execution.history.model_copy(update=policy)
    async with Engine(settings) as engine:
        sandbox = await AsyncSandbox.create(MINIMAL, engine=engine)
        await sandbox.run_code("x = 'old'")
        point = await sandbox.snapshot()
        await sandbox.run_code("x = 'newer'")
        running = asyncio.Event()
        code = "print('on', flush=True)\nwhile True: pass"
        task = asyncio.create_task(sandbox.run_code(code, on_stdout=lambda _: running.set()))
        await running.wait()
        await sandbox.rollback(point)
        killed = await task
        assert (killed.succeeded, killed.rolled_back_to, killed.snapshot_after) == (False, None, None)
        assert (await sandbox.run_code("x")).text == "'old'"


def test_points_that_are_not_there(with_policy: Any) -> None:
    sandbox = with_policy()
    run = sandbox.run_code("1")
    with pytest.raises(SnapshotNotFound, match="no snapshot of sandbox"):
        sandbox.rollback(run)
    with pytest.raises(SnapshotNotFound, match="no execution"):
        sandbox.rollback("ex-0000000000000000")
    with pytest.raises(SnapshotNotFound, match="nothing-of-that-name"):
        sandbox.diff("nothing-of-that-name")
    with with_policy() as other:
        theirs = other.run_code("1")
        with pytest.raises(SnapshotNotFound, match="no execution"):
            sandbox.rollback(theirs)


def test_the_parent_is_right_after_rollback_branch_and_fork(with_policy: Any) -> None:
    sandbox = with_policy()
    first = sandbox.run_code("1")
    point = sandbox.snapshot()
    second = sandbox.run_code("2")
    (fork,) = sandbox.fork(1)
    branch = sandbox.branch(point)
    runs = {"fork": fork.run_code("3"), "branch": branch.run_code("4")}
    sandbox.rollback(point)
    runs["rollback"] = sandbox.run_code("5")
    parents = {
        name: _parent(box, runs[name]) for name, box in (("fork", fork), ("branch", branch), ("rollback", sandbox))
    }
    assert parents == {
        "fork": second.execution_id, "branch": first.execution_id, "rollback": first.execution_id,
    }  # fmt: skip
    fork.kill()
    branch.kill()


def _parent(sandbox: Sandbox, run: Execution) -> str | None:
    return next(row.parent_id for row in sandbox.history() if row.execution_id == run.execution_id)


@pytest.mark.parametrize("most", [1, 2])
def test_the_snapshot_of_a_failure_does_not_push_out_the_one_to_go_back_to(
    nothing_left: None, tmp_path: Path, most: int
) -> None:
    settings = load_settings(
        snapshot_dir=tmp_path / "snapshots",
        max_snapshots=most,
        vm_execution={"history": {"snapshot_on_failure": True, "auto_rollback_on_failure": True}},
    )
    with Sandbox.create(MINIMAL, settings=settings) as sandbox:
        sandbox.run_code("x = 1")
        failed = sandbox.run_code(FAILING)
        assert failed.rolled_back_to == failed.snapshot_before
        assert sandbox.run_code("x").text == "1"
        assert (failed.snapshot_after is None) is (most == 1)
        assert any("1 snapshots already" in note for note in failed.notes) is (most == 1)
