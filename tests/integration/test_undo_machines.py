"""Snapshots, rollback and forks of gVisor's machines: what lies on the disk, what fails, and what happens at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from emberbox import AsyncSandbox, Engine, Sandbox, Settings
from emberbox.errors import ExecutionFailed, ForkFailed, RollbackFailed, SnapshotFailed, VmNotAvailable
from emberbox.machines.gvisor import factory as gvisor_factory
from emberbox.machines.gvisor import machine as gvisor_machine
from emberbox.machines.gvisor.control import IMAGE_FILES, Control, ControlError
from emberbox.models import TerminationReason
from handles import session_of

BOTH_GVISORS = True

MINIMAL = "minimal"


@pytest.fixture
def snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the snapshots of this test go, so that one can look at them."""
    folder = tmp_path / "snapshots"
    monkeypatch.setenv("EMBERBOX_SNAPSHOT_DIR", str(folder))
    return folder


@pytest.fixture
def sandbox(nothing_left: None, snapshots: Path) -> Iterator[Sandbox]:
    with Sandbox.create(MINIMAL) as sandbox:
        yield sandbox
    assert files(snapshots) == []


def files(folder: Path) -> list[Path]:
    """Files of snapshots that sandboxes took (those of templates stay for the next sandboxes)."""
    found = [p for p in folder.rglob("*") if p.is_file() and p.name != "lock"]
    return sorted(p for p in found if p.relative_to(folder).parts[0] != "templates")


def test_two_forks_of_the_default_template_differ_in_numpy_and_node(nothing_left: None, snapshots: Path) -> None:
    with Sandbox.create() as sandbox:
        sandbox.run_code("import numpy as np; np.random.seed(1)")
        node = "[Math.random(), require('crypto').randomBytes(8).toString('hex'), require('crypto').randomUUID()]"
        sandbox.run_code(node, "javascript")
        children = sandbox.fork(2)
        numpy = [s.run_code("np.random.random(), np.random.default_rng().random()").text for s in children]
        assert len(set(numpy)) == 2
        assert len({s.run_code(node, "javascript").text for s in [sandbox, *children]}) == 3
        for child in children:
            child.kill()


def test_a_fork_outlives_its_origin(nothing_left: None, snapshots: Path) -> None:
    sandbox = Sandbox.create(MINIMAL)
    sandbox.run_code("x = 42")
    (child,) = sandbox.fork()
    sandbox.kill()
    assert child.run_code("x").text == "42"
    (grandchild,) = child.fork()
    child.kill()
    assert grandchild.run_code("x").text == "42"
    grandchild.kill()
    assert files(snapshots) == []


def test_code_that_runs_is_not_copied(nothing_left: None, snapshots: Path) -> None:
    async def main() -> None:
        async with await AsyncSandbox.create(MINIMAL) as sandbox:
            started = asyncio.Event()
            code = "print('up', flush=True)\nimport time; time.sleep(50)"
            run = asyncio.create_task(sandbox.run_code(code, on_stdout=lambda _: started.set()))
            await started.wait()
            for work in (sandbox.snapshot(), sandbox.fork()):
                with pytest.raises(SnapshotFailed, match="code is running"):
                    await work
            await sandbox.interrupt()
            assert (await run).termination_reason is TerminationReason.INTERRUPTED
            await sandbox.snapshot()
            assert (await sandbox.run_code("1")).text == "1"

    asyncio.run(main())


async def test_requests_during_a_snapshot_wait_and_are_served(nothing_left: None, snapshots: Path) -> None:
    async with await AsyncSandbox.create(MINIMAL) as sandbox:
        await sandbox.run_code("x = 1")
        taking = asyncio.create_task(sandbox.snapshot())
        await asyncio.sleep(0)
        runs = [asyncio.create_task(sandbox.commands.run(["echo", str(n)])) for n in range(5)]
        writes = [asyncio.create_task(sandbox.files.write(f"f{n}", "x")) for n in range(5)]
        point = await taking
        assert [(await run).stdout for run in runs] == [f"{n}\n" for n in range(5)]
        await asyncio.gather(*writes)
        await sandbox.rollback(point)
        assert (await sandbox.run_code("x")).text == "1"


async def test_a_rollback_ends_what_runs_and_says_so(nothing_left: None, snapshots: Path) -> None:
    async with await AsyncSandbox.create(MINIMAL) as sandbox:
        point = await sandbox.snapshot()
        started = asyncio.Event()
        code = "print('up', flush=True)\nwhile True: pass"
        run = asyncio.create_task(sandbox.run_code(code, on_stdout=lambda _: started.set()))
        await started.wait()
        await sandbox.rollback(point)
        ended = await run
        assert ended.termination_reason is TerminationReason.KILLED
        assert ended.error is not None
        assert "rolled back" in ended.error.value
        assert (await sandbox.run_code("1")).text == "1"


def test_a_paused_sandbox_can_be_killed(nothing_left: None) -> None:
    with Sandbox.create(MINIMAL) as sandbox:
        sandbox.pause()
    assert not sandbox.is_running()


def test_there_is_a_limit_of_snapshots(nothing_left: None, snapshots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERBOX_MAX_SNAPSHOTS", "1")
    with Sandbox.create(MINIMAL) as sandbox:
        first = sandbox.snapshot()
        with pytest.raises(SnapshotFailed, match="has 1 snapshots already"):
            sandbox.snapshot()
        sandbox.delete_snapshot(first)
        sandbox.snapshot()


@pytest.mark.parametrize("harm", ["missing", "empty", "garbage"])
@pytest.mark.parametrize("name", IMAGE_FILES)
def test_damaged_snapshots_leave_the_sandbox_as_it_was(sandbox: Sandbox, snapshots: Path, name: str, harm: str) -> None:
    sandbox.run_code("x = 'alive'")
    point = sandbox.snapshot()
    (path,) = (p for p in files(snapshots) if p.name == name)
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if harm == "empty" else b"\xff" * path.stat().st_size)
    with pytest.raises(RollbackFailed):
        sandbox.rollback(point)
    assert sandbox.run_code("x").text == "'alive'"
    with pytest.raises(VmNotAvailable):
        sandbox.branch(point)
    assert sandbox.run_code("x").text == "'alive'"


def test_forks_that_fail_do_not_lose_the_others(
    sandbox: Sandbox, snapshots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.run_code("x = 1")
    original = gvisor_factory.GvisorFactory.fork
    calls = 0

    async def sometimes(self: gvisor_factory.GvisorFactory, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise VmNotAvailable("the second one does not start")
        return await original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(gvisor_factory.GvisorFactory, "fork", sometimes)
    with pytest.raises(ForkFailed, match="1 of 3 forks") as error:
        sandbox.fork(3)
    assert [child.run_code("x").text for child in error.value.children] == ["1", "1"]
    assert "second one" in error.value.errors[0].message
    for child in error.value.children:
        child.kill()


def test_without_the_control_socket_the_commands_do_it(
    sandbox: Sandbox, snapshots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Control, *_: object) -> None:
        raise ControlError("another version")

    monkeypatch.setattr(Control, "checkpoint", refuse)
    monkeypatch.setattr(Control, "restore", refuse)
    sandbox.run_code("x = 'kept'")
    point = sandbox.snapshot()
    sandbox.run_code("x = 'lost'")
    sandbox.rollback(point)
    assert sandbox.run_code("x").text == "'kept'"
    (child,) = sandbox.fork()
    assert child.run_code("x").text == "'kept'"
    child.kill()


def test_a_full_disk_fails_the_snapshot_and_nothing_else(
    sandbox: Sandbox, snapshots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.run_code("x = 1")

    def full(self: object, building: Path) -> None:
        (building / IMAGE_FILES[0]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gvisor_machine.GvisorMachine, "_checkpoint_by_socket", full)
    with pytest.raises(SnapshotFailed, match="No space left"):
        sandbox.snapshot()
    assert files(snapshots) == []
    monkeypatch.undo()
    assert sandbox.run_code("x").text == "1"


async def test_cancelled_copies_leave_nothing(nothing_left: None, settings: Settings, tmp_path: Path) -> None:
    settings.snapshot_dir = tmp_path / "snapshots"
    async with Engine(settings) as engine:
        origin = await engine.create_sandbox(MINIMAL)
        for steps in (1, 5, 20, 60):
            forking = asyncio.create_task(engine.checkpoints.fork(origin, 3))
            for _ in range(steps):
                await asyncio.sleep(0.002)
            forking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await forking
            assert [s.id for s in await engine.list_sandboxes()] == [origin.id]
        assert (await engine.checkpoints.fork(origin, 1))[0].state.value == "running"
    assert files(tmp_path / "snapshots") == []


async def test_a_kill_during_a_rollback_wins(nothing_left: None, snapshots: Path) -> None:
    async with await AsyncSandbox.create(MINIMAL) as sandbox:
        point = await sandbox.snapshot()
        rollback = asyncio.create_task(sandbox.rollback(point))
        await asyncio.sleep(0.03)
        await session_of(sandbox).kill()
        with pytest.raises(VmNotAvailable, match="is gone"):
            await rollback
        assert not await sandbox.is_running()
        with pytest.raises(VmNotAvailable):
            await sandbox.run_code("1")


async def test_a_kill_during_a_fork_does_not_lose_the_children(nothing_left: None, snapshots: Path) -> None:
    sandbox = await AsyncSandbox.create(MINIMAL)
    await sandbox.run_code("x = 42")
    forking = asyncio.create_task(sandbox.fork(1))
    async with asyncio.timeout(20):
        while not list(snapshots.glob("*/fork-*/checkpoint.img")):
            await sandbox.commands.list()
    await session_of(sandbox).kill()
    (child,) = await forking
    assert (await child.run_code("x")).text == "42"
    await child.kill()
    await sandbox.kill()
    assert files(snapshots) == []


def test_forks_of_a_sandbox_with_settings_of_its_own_outlive_it(
    nothing_left: None, settings: Settings, tmp_path: Path
) -> None:
    settings.snapshot_dir = tmp_path
    sandbox = Sandbox.create(MINIMAL, settings=settings)
    (child,) = sandbox.fork()
    sandbox.kill()
    assert child.run_code("40 + 2").text == "42"
    child.kill()


def test_pause_is_refused_while_something_runs_against_the_clock(nothing_left: None) -> None:
    async def main() -> None:
        async with await AsyncSandbox.create(MINIMAL) as sandbox:
            started = asyncio.Event()
            code = "print('up', flush=True)\nimport time; time.sleep(50)"
            run = asyncio.create_task(sandbox.run_code(code, on_stdout=lambda _: started.set()))
            await started.wait()
            with pytest.raises(ExecutionFailed, match="time-out is running"):
                await sandbox.pause()
            await sandbox.interrupt()
            await run
            await sandbox.pause()

    asyncio.run(main())


async def test_a_snapshot_asked_for_during_a_rollback_knows_what_that_undid(
    nothing_left: None, snapshots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(Settings()) as engine:
        sandbox = await AsyncSandbox.create(MINIMAL, engine=engine)
        await sandbox.run_code("x = 1")
        before = await sandbox.snapshot()
        await sandbox.run_code("x = 2")
        session = session_of(sandbox)
        going_back, under_way = asyncio.Event(), session._wake_copy

        async def wake(*args: object) -> None:
            going_back.set()
            await under_way(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(session, "_wake_copy", wake)
        rollback = asyncio.create_task(sandbox.rollback(before))
        await going_back.wait()
        during = await sandbox.snapshot("during")
        await rollback
        third = await sandbox.run_code("x")
        assert third.text == "1"
        assert (await sandbox.rollback(during)).executions_undone == [third.execution_id]
        assert (await sandbox.rollback(before)).executions_undone == [], "what was undone before is undone once more"
        await sandbox.kill()
