"""Sandboxes that rest while nobody uses them, and machines that take a processor although they are stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from emberbox import Engine, load_settings
from emberbox.engine import ExecuteRequest
from emberbox.machines.contract import MachineStats
from emberbox.machines.gvisor.machine import GvisorMachine
from emberbox.models import Language
from emberbox.sandbox.instance import SandboxInstance
from waiting import PATIENCE, until, wait_for_stop

MINIMAL = "minimal"
BOTH_GVISORS = True
COUNTING = """
import threading, time

turns, going, goes_on = 0, True, threading.Event()
def count():
    global turns
    while going:
        turns += 1
        time.sleep(0.001)
        if turns > first + 100: goes_on.set()
first = 0
thread = threading.Thread(target=count, daemon=True)
thread.start()
"""


@pytest.fixture
async def engine(nothing_left: None, run_dir: Path, tmp_path: Path) -> AsyncIterator[Engine]:
    settings = load_settings(vm_execution={"vm_pool_size": 1}, snapshot_dir=tmp_path / "snapshots")
    async with Engine(settings) as engine:
        yield engine


@pytest.fixture
async def sandbox(engine: Engine) -> SandboxInstance:
    session = await engine.create_sandbox(MINIMAL)
    assert await value(engine, session, "x = 41; x") == "41"
    return session


async def value(engine: Engine, session: SandboxInstance, code: str) -> str | None:
    return (await engine.execute(ExecuteRequest(session, "python", code))).text


def process_of(session: SandboxInstance) -> psutil.Process:
    assert isinstance(session.machine, GvisorMachine)
    return psutil.Process(session.machine._processes[0].pid)


async def stopped(session: SandboxInstance) -> None:
    """Wait until it rests."""
    await asyncio.to_thread(wait_for_stop, process_of(session))


def awake(session: SandboxInstance) -> bool:
    return process_of(session).status() != psutil.STATUS_STOPPED


SPINS = "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()"
PAUSED_IN: dict[str, tuple[Language, str]] = {
    "nothing": ("python", "pass"),
    "a thread that computes": ("python", SPINS),
    "a job that computes": ("bash", "while :; do :; done &"),
    "a job that starts programs": ("bash", "while :; do /bin/true; done &"),
    "a job that prints": ("bash", "while :; do echo x; done &"),
}
WINDOW = 0.5
"""Seconds of the host that are looked at."""


@pytest.mark.parametrize("what", PAUSED_IN)
async def test_a_paused_sandbox_uses_no_processor(engine: Engine, sandbox: SandboxInstance, what: str) -> None:
    """Whatever runs in it: beside a processor that it would take, what the host does for it is nothing."""
    await engine.execute(ExecuteRequest(sandbox, *PAUSED_IN[what]))
    for _ in range(3):
        await sandbox.pause()
        before = sandbox.machine.stats().cpu_seconds
        await asyncio.sleep(WINDOW)
        after = sandbox.machine.stats().cpu_seconds
        assert before is not None
        assert after is not None
        assert after - before < WINDOW / 50
        await sandbox.resume()
        assert await value(engine, sandbox, "6 * 7") == "42"


async def test_a_sandbox_that_is_paused_at_any_moment_goes_on(engine: Engine, sandbox: SandboxInstance) -> None:
    """Right after it has worked, gVisor is still busy with its own affairs: stopped in the wrong place, one of ten
    sandboxes died."""
    await engine.execute(ExecuteRequest(sandbox, "bash", "while :; do /bin/true; done &"))
    for number in range(60):
        await sandbox.pause()
        await sandbox.resume()
        assert await value(engine, sandbox, f"{number} + 1") == str(number + 1)


async def test_forks_rest_until_they_are_used(engine: Engine, sandbox: SandboxInstance) -> None:
    children = await engine.checkpoints.fork(sandbox, 3)
    await asyncio.gather(*map(stopped, children))
    for number, child in enumerate(children):
        assert await value(engine, child, f"x += {number}; x") == str(41 + number)
        assert awake(child)


async def test_a_sandbox_rests_between_its_uses(engine: Engine, sandbox: SandboxInstance) -> None:
    for number in range(2):
        await stopped(sandbox)
        assert sandbox.info().state == "running"
        assert await value(engine, sandbox, "x += 1; x") == str(42 + number)
        assert awake(sandbox)
    before = sandbox.last_used
    await stopped(sandbox)
    assert sandbox.last_used == before, "looking at it is no use of it"
    await sandbox.pause()
    await sandbox.resume()
    assert await value(engine, sandbox, "x") == "43"


async def test_what_runs_in_the_background_goes_on(
    engine: Engine, sandbox: SandboxInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emberbox.sandbox.idle_stop.QUIET_SECONDS", 0.02)
    await value(engine, sandbox, COUNTING)
    looks = sandbox.machine.channel.last_request
    await asyncio.to_thread(until, lambda: sandbox.machine.channel.last_request >= looks + 2, "two looks")
    assert awake(sandbox)
    assert await value(engine, sandbox, "first = turns; goes_on.clear(); goes_on.wait(); first < turns") == "True"
    await value(engine, sandbox, "going = False; thread.join()")
    await stopped(sandbox)


async def test_what_rests_can_be_stopped_copied_and_killed(engine: Engine, sandbox: SandboxInstance) -> None:
    paused, copied, killed = await engine.checkpoints.fork(sandbox, 3)
    await asyncio.gather(*map(stopped, (paused, copied, killed)))
    await paused.pause()
    await paused.resume()
    assert await value(engine, paused, "x") == "41"
    point = await engine.checkpoints.snapshot(copied)
    await engine.checkpoints.rollback(copied, point.snapshot_id)
    assert await value(engine, copied, "x") == "41"
    await killed.kill()


async def test_forks_in_which_something_runs_do_not_rest(engine: Engine, sandbox: SandboxInstance) -> None:
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(4242,), daemon=True).start()"
    await value(engine, sandbox, thread)
    children = await engine.checkpoints.fork(sandbox, 2)
    assert [child.machine._idle_stop for child in children] == [None, None]  # type: ignore[attr-defined]


async def test_forks_with_a_program_in_the_background_do_not_rest(engine: Engine, sandbox: SandboxInstance) -> None:
    begun = asyncio.Event()
    work = sandbox.runner.exec(["sleep", "4242"], on_start=lambda *_: begun.set())
    program = asyncio.ensure_future(work)
    await begun.wait()
    children = await engine.checkpoints.fork(sandbox, 2)
    assert [child.machine._idle_stop for child in children] == [None, None]  # type: ignore[attr-defined]
    program.cancel()
    await asyncio.wait([program])


async def test_one_rollback_follows_another_and_the_old_machines_end(engine: Engine, sandbox: SandboxInstance) -> None:
    point = await engine.checkpoints.snapshot(sandbox)
    old = []
    for _ in range(3):
        old.append(sandbox.machine)
        await engine.checkpoints.rollback(sandbox, point.snapshot_id)
    assert await value(engine, sandbox, "x") == "41"
    async with asyncio.timeout(PATIENCE):
        assert all([await machine.wait() for machine in old])


async def test_a_kill_waits_for_the_machine_before_as_well(
    engine: Engine, sandbox: SandboxInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = await engine.checkpoints.snapshot(sandbox)
    old = sandbox.machine
    assert isinstance(old, GvisorMachine)
    remove = old._remove_files
    going_on = threading.Event()

    def slowly() -> None:
        going_on.wait(PATIENCE)
        remove()

    monkeypatch.setattr(old, "_remove_files", slowly)
    await engine.checkpoints.rollback(sandbox, point.snapshot_id)
    assert await value(engine, sandbox, "x") == "41"
    killed = asyncio.ensure_future(sandbox.kill())
    await sandbox.machine.wait()
    assert old.directory.exists()
    going_on.set()
    await killed
    assert not old.directory.exists()


async def test_a_machine_of_the_pool_that_spins_is_replaced(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    await (await engine.create_sandbox(MINIMAL)).kill()
    await engine.warm(MINIMAL)
    assert engine._sandboxes is not None
    pool = engine._sandboxes.pool
    (machine,) = [entry.machine for entry in pool._idle.values() if entry.machine.state.value == "running"]
    seconds = iter(range(1000))
    monkeypatch.setattr(machine, "stats", lambda: MachineStats(cpu_seconds=float(next(seconds))))
    async with asyncio.timeout(PATIENCE):
        await machine.wait()
    await engine.warm(MINIMAL)
    assert machine not in [entry.machine for entry in pool._idle.values()]
