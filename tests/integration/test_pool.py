"""The warm pool on real sandboxes: leases, refills, deaths, age, places, memory, and what a leased sandbox is like."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from emberbox import Engine, Execution, NoCapacity, Settings, load_settings
from emberbox.engine import ExecuteRequest
from emberbox.errors import RollbackFailed
from emberbox.machines.contract import MachineState
from emberbox.machines.gvisor.factory import GvisorFactory
from emberbox.machines.gvisor.machine import GvisorMachine
from emberbox.models import PoolStatus
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.pool.pool import MachinePool
from waiting import PATIENCE, wait_for_stop

BOTH_GVISORS = True

MINIMAL = "minimal"


@pytest.fixture
def settings(run_dir: Path, tmp_path: Path) -> Settings:
    pool = {"enabled": True, "vm_pool_size": 2}
    return load_settings(vm_execution=pool, capacity_timeout_seconds=0.3, snapshot_dir=tmp_path / "snapshots")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each machine came to be, in order; the real factory does the work."""
    seen: list[str] = []
    for verb in ("boot", "prepare", "fork"):
        original = getattr(GvisorFactory, verb)

        async def counted(self, *args, verb=verb, original=original):  # type: ignore[no-untyped-def]
            seen.append("fill" if len(args) == 2 and verb == "fork" else verb)
            return await original(self, *args)

        monkeypatch.setattr(GvisorFactory, verb, counted)
    return seen


@pytest.fixture
async def engine(nothing_left: None, settings: Settings) -> AsyncIterator[Engine]:
    """An engine whose template has a snapshot."""
    async with Engine(settings) as engine:
        await (await engine.create_sandbox(MINIMAL)).kill()
        yield engine


def pool_of(engine: Engine) -> MachinePool:
    assert engine._sandboxes is not None
    return engine._sandboxes.pool


def status(engine: Engine) -> PoolStatus:
    (found,) = engine.pool_status()
    return found


def idle(engine: Engine) -> list[GvisorMachine]:
    machines = [entry.machine for entry in pool_of(engine)._idle.values()]
    assert all(isinstance(machine, GvisorMachine) for machine in machines)
    return machines  # type: ignore[return-value]


async def until(engine: Engine, condition: Callable[[], bool]) -> None:
    """Wait for the pool to come so far; it is told of every change."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    while not condition():
        assert loop.time() < end, f"the pool stays as it is: {engine.pool_status()}"
        await pool_of(engine)._change(end)


async def run(engine: Engine, session: SandboxInstance, code: str, language: str = "python") -> Execution:
    return await engine.execute(ExecuteRequest(session, language, code))


class Clock:
    """A clock that is set by hand."""

    def __init__(self, engine: Engine) -> None:
        self._pool = pool_of(engine)
        self._ahead = 0.0
        self._pool._clock = lambda: time.monotonic() + self._ahead

    def forward(self, seconds: float) -> None:
        self._ahead += seconds
        self._pool.tick()


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_a_warm_pool_hands_out_machines_that_are_ready(engine: Engine, made: list[str]) -> None:
    await engine.warm(MINIMAL)
    assert (status(engine).ready, status(engine).high, status(engine).low) == (2, 2, 1)
    waiting = {machine.id for machine in idle(engine)}
    made.clear()
    # at once: the pool is filled again in the background, and a second one might get what is new
    sandboxes = await asyncio.gather(*(engine.create_sandbox(MINIMAL) for _ in range(2)))
    assert {session.machine.id for session in sandboxes} == waiting
    assert [verb for verb in made if verb == "fork"] == [], "nothing was started for them"
    assert [(await run(engine, session, "40 + 2")).text for session in sandboxes] == ["42", "42"]
    assert status(engine).in_use == 2
    for session in sandboxes:
        await session.kill()
    assert status(engine).in_use == 0


async def test_the_pool_is_filled_again_in_the_background(engine: Engine) -> None:
    await engine.warm(MINIMAL)
    sandboxes = [await engine.create_sandbox(MINIMAL) for _ in range(2)]
    used = {session.machine.id for session in sandboxes}
    await until(engine, lambda: status(engine).ready == 2)
    assert not used & {machine.id for machine in idle(engine)}, "a machine that was used never comes back"
    for session in sandboxes:
        await session.kill()
    assert status(engine).ready == 2


async def test_one_sandbox_starts_no_pool_and_the_second_one_does(engine: Engine, made: list[str]) -> None:
    assert (status(engine).ready, status(engine).starting, status(engine).high) == (0, 0, 0)
    second = await engine.create_sandbox(MINIMAL)
    await until(engine, lambda: status(engine).ready == 2)
    assert made.count("fork") == 3
    assert made.count("prepare") == 0, "blanks are for those who fork"
    await second.kill()


async def test_more_can_be_asked_for_than_the_settings_say(engine: Engine) -> None:
    await engine.warm(MINIMAL, count=3)
    assert (status(engine).ready, status(engine).high) == (3, 3)


async def test_the_first_warm_of_a_template_takes_its_snapshot(
    nothing_left: None, settings: Settings, tmp_path: Path, made: list[str]
) -> None:
    settings.snapshot_dir = tmp_path
    async with Engine(settings) as engine:
        await engine.warm(MINIMAL, count=1)
        assert made[0] == "boot"
        assert "fork" in made
        assert status(engine).ready == 1


async def test_a_pool_of_size_none_makes_nothing_ahead(nothing_left: None, settings: Settings, made: list[str]) -> None:
    settings.vm_execution.vm_pool_size = 0
    async with Engine(settings) as engine:
        for _ in range(3):
            session = await engine.create_sandbox(MINIMAL)
            (child,) = await engine.checkpoints.fork(session)
            await child.kill()
            await session.kill()
        pool_of(engine).tick()
        assert pool_of(engine)._state.machines == 0
    assert "prepare" not in made


# --- machines that wait -----------------------------------------------------------------------------------------------


async def test_machines_that_wait_use_no_cpu(engine: Engine) -> None:
    await engine.warm(MINIMAL)
    await until(engine, lambda: status(engine).blanks == 1)
    for machine in idle(engine):
        sandbox, gofer = (psutil.Process(process.pid) for process in machine._processes)
        await asyncio.to_thread(wait_for_stop, sandbox)
        used = sandbox.cpu_times()
        assert gofer.status() == psutil.STATUS_SLEEPING
        assert sandbox.cpu_times() == used


async def test_a_machine_that_dies_while_it_waits_is_replaced(engine: Engine) -> None:
    await engine.warm(MINIMAL)
    clock = Clock(engine)
    victim = next(machine for machine in idle(engine) if machine.state is MachineState.RUNNING)
    os.kill(victim._processes[0].pid, signal.SIGKILL)
    await until(engine, lambda: status(engine).ready == 1)
    clock.forward(10)  # beyond the pause after a failure
    await until(engine, lambda: status(engine).ready == 2)
    assert victim.id not in {machine.id for machine in idle(engine)}


async def test_a_sick_machine_is_not_handed_out(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    await engine.warm(MINIMAL)
    sick, well = (machine for machine in idle(engine) if machine.state is MachineState.RUNNING)

    async def stays_stopped() -> None:
        os.kill(sick._processes[0].pid, signal.SIGSTOP)

    monkeypatch.setattr(sick, "resume", stays_stopped)
    monkeypatch.setattr("emberbox.sandbox.pool.pool._HEALTHY_SECONDS", 0.2)
    session = await engine.create_sandbox(MINIMAL)
    assert session.machine.id == well.id
    await sick.wait()
    assert (await run(engine, session, "40 + 2")).text == "42"


async def test_machines_that_grow_old_are_replaced(engine: Engine) -> None:
    await engine.warm(MINIMAL)
    clock = Clock(engine)
    before = {machine.id for machine in idle(engine)}
    clock.forward(engine.settings.pool_max_age_seconds + 1)
    async with asyncio.timeout(PATIENCE):
        while before & {machine.id for machine in idle(engine)} or status(engine).ready < 2:
            clock.forward(1)
            await until(engine, lambda: status(engine).ready == 2)
    assert status(engine).ready == 2


async def test_a_template_that_does_not_start_is_no_busy_loop(
    engine: Engine, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: GvisorMachine, **_: bool) -> None:
        await self.kill()

    clock = Clock(engine)
    monkeypatch.setattr(GvisorMachine, "pause", refuse)
    monkeypatch.setattr(GvisorMachine, "resume", refuse)
    pool = pool_of(engine)
    session = await engine.create_sandbox(MINIMAL)
    shelf = next(iter(pool._state.shelves.values()))
    for failures in (2, 4, 6):  # two start at once
        clock.forward(30)
        await until(engine, lambda failures=failures: shelf.failures >= failures)  # type: ignore[misc]
        assert shelf.paused_until > pool._clock()
    assert (await run(engine, session, "40 + 2")).text == "42"


# --- what a leased sandbox is like ------------------------------------------------------------------------------------


async def test_nothing_of_the_warm_up_is_seen(engine: Engine) -> None:
    await engine.warm(MINIMAL)
    fresh = Engine(engine.settings.model_copy(deep=True))
    fresh.settings.vm_execution.vm_pool_size = 0
    code = (
        "import sys, os, builtins\n"
        "(sorted(set(globals()) - {'sys', 'os', 'builtins'}), sorted(dir(builtins)), sorted(os.environ.items()),"
        " [name for name in dir(sys) if name.startswith('last')], os.getcwd(), sys.argv)"
    )
    look = "find /tmp /dev/shm ~ -newer /proc/1 | sort; set | grep -c ."
    async with fresh:
        seen = []
        for maker in (engine, fresh):
            session = await maker.create_sandbox(MINIMAL)
            assert await session.contexts.list() == []
            first = await run(maker, session, code)
            files = await run(maker, session, look, "bash")
            assert first.execution_count == 1
            seen.append((first.text, files.stdout))
            await session.kill()
    assert seen[0] == seen[1]


async def test_a_leased_sandbox_has_its_own_environment(engine: Engine) -> None:
    await engine.warm(MINIMAL)
    for name in ("one", "two"):
        session = await engine.create_sandbox(MINIMAL, envs={"NAME": name})
        assert (await run(engine, session, "import os; os.environ['NAME']")).text == f"'{name}'"
        assert (await run(engine, session, "echo $NAME", "bash")).stdout == f"{name}\n"
        await session.kill()


async def test_two_leased_sandboxes_never_draw_the_same_numbers(engine: Engine) -> None:
    await engine.warm(MINIMAL)
    python = (
        "import os, random, uuid, secrets\nrandom.random(), os.urandom(8).hex(), str(uuid.uuid4()), secrets.token_hex()"
    )
    drawn: set[str] = set()
    for _ in range(2):
        session = await engine.create_sandbox(MINIMAL)
        drawn |= set(str((await run(engine, session, python)).text).strip("()").split(", "))
        drawn.add((await run(engine, session, "echo $RANDOM$RANDOM$RANDOM", "bash")).stdout)
        await session.kill()
    assert len(drawn) == 10


async def test_interpreters_that_were_warm_before_the_copy_draw_different_numbers(
    nothing_left: None, settings: Settings, tmp_path: Path
) -> None:
    settings.snapshot_dir = tmp_path
    async with Engine(settings) as engine:
        found = await engine.image()
        warm = {"warm": ["python", "javascript", "bash"], "warmup": "import random, numpy.random"}
        image = replace(found, template=found.template.model_copy(update=warm))
        manager = await engine._open()
        await manager.warm(image, image.limits)
        python = "import random, numpy; (random.random(), numpy.random.random(), numpy.random.default_rng().random())"
        node = "[Math.random(), require('crypto').randomBytes(8).toString('hex'), require('crypto').randomUUID()]"
        drawn: list[str] = []
        for _ in range(2):
            session = await manager.create(image, image.limits)
            drawn += str((await run(engine, session, python)).text).strip("()").split(", ")
            drawn += str((await run(engine, session, node, "javascript")).text).strip("[ ]").split(",")
            drawn.append((await run(engine, session, "echo $RANDOM$RANDOM$RANDOM", "bash")).stdout)
            await session.kill()
        assert len(drawn) == 14
        assert len(set(drawn)) == 14, drawn


async def test_a_machine_that_waited_knows_the_time(engine: Engine) -> None:
    await engine.warm(MINIMAL, count=1)
    stopped = time.time()
    await asyncio.to_thread(psutil.cpu_percent, 1.5)  # time passes for it
    session = await engine.create_sandbox(MINIMAL)
    before = time.time()
    told = float(str((await run(engine, session, "import time; time.time()")).text))
    after = time.time()
    assert before - stopped >= 1.5
    assert before - 0.05 <= told <= after + 0.05


# --- blanks -----------------------------------------------------------------------------------------------------------


async def test_rollbacks_and_forks_use_blanks(engine: Engine, made: list[str]) -> None:
    session = await engine.create_sandbox(MINIMAL)
    await run(engine, session, "x = 'before'")
    point = await engine.checkpoints.snapshot(session)
    for verb in ("fork", "fill", "fill"):
        made.clear()
        await run(engine, session, "x = 'after'")
        await engine.checkpoints.rollback(session, point.snapshot_id)
        assert verb in made
        assert (await run(engine, session, "x")).text == "'before'"
        await until(engine, lambda: status(engine).blanks == 1)
    made.clear()
    (child,) = await engine.checkpoints.fork(session)
    assert "fill" in made
    assert (await run(engine, child, "x")).text == "'before'"


async def test_a_blank_that_is_dead_costs_time_and_nothing_else(engine: Engine) -> None:
    session = await engine.create_sandbox(MINIMAL)
    await engine.warm(MINIMAL)
    await until(engine, lambda: status(engine).blanks == 1)
    (blank,) = (machine for machine in idle(engine) if machine.state is MachineState.PREPARED)
    point = await engine.checkpoints.snapshot(session)
    pool = pool_of(engine)
    # dead, and nobody has noticed
    next(entry for entry in pool._idle.values() if entry.machine is blank).watcher.cancel()
    os.kill(blank._processes[0].pid, signal.SIGKILL)
    await blank.wait()
    await engine.checkpoints.rollback(session, point.snapshot_id)
    assert (await run(engine, session, "40 + 2")).text == "42"


async def test_a_blank_and_a_damaged_snapshot_are_a_failed_rollback(engine: Engine) -> None:
    session = await engine.create_sandbox(MINIMAL)
    await engine.warm(MINIMAL)
    await run(engine, session, "x = 'alive'")
    for harm in ("missing", "empty"):
        point = await engine.checkpoints.snapshot(session)
        (path,) = Path(engine.settings.snapshot_dir or "").rglob(f"{point.snapshot_id}/pages_meta.img")
        if harm == "missing":
            path.unlink()
        else:
            path.write_bytes(b"")
        await until(engine, lambda: status(engine).blanks == 1)
        with pytest.raises(RollbackFailed):
            await engine.checkpoints.rollback(session, point.snapshot_id)
        assert (await run(engine, session, "x")).text == "'alive'"


async def test_a_blank_of_other_limits_is_not_filled(engine: Engine) -> None:
    session = await engine.create_sandbox(MINIMAL)
    point, _ = await session.checkpoint(Path(engine.settings.run_dir) / "elsewhere")
    factory = engine._factory
    assert isinstance(factory, GvisorFactory)
    blank = await factory.prepare(session.image, session.limits.model_copy(update={"disk_mb": 64}))
    machine = await factory.fork(point, blank)
    assert machine is not blank
    assert blank.state is MachineState.DEAD
    assert machine.state is MachineState.RUNNING
    await machine.kill()
    for path in [*point.directory.iterdir()]:
        path.unlink()
    point.directory.rmdir()


# --- places and memory ------------------------------------------------------------------------------------------------


async def test_without_a_place_there_is_a_clear_error(nothing_left: None, settings: Settings) -> None:
    settings.max_sandboxes = 1
    async with Engine(settings) as engine:
        first = await engine.create_sandbox(MINIMAL)
        with pytest.raises(NoCapacity, match="There are 1 sandboxes") as error:
            await engine.create_sandbox(MINIMAL)
        assert error.value.code == "no_capacity"
        assert error.value.retryable
        assert "max_sandboxes" in error.value.remediation
        with pytest.raises(NoCapacity):
            await engine.checkpoints.branch(first, (await engine.checkpoints.snapshot(first)).snapshot_id)
        await first.kill()
        await (await engine.create_sandbox(MINIMAL)).kill()


async def test_a_rollback_does_not_wait_for_a_place(nothing_left: None, settings: Settings) -> None:
    settings.max_sandboxes = 1
    async with Engine(settings) as engine:
        session = await engine.create_sandbox(MINIMAL)
        await run(engine, session, "x = 1")
        point = await engine.checkpoints.snapshot(session)
        pool_of(engine)._available = lambda: 0
        await run(engine, session, "x = 2")
        await engine.checkpoints.rollback(session, point.snapshot_id)
        assert (await run(engine, session, "x")).text == "1"


async def test_who_came_first_is_served_first_and_who_leaves_loses_nothing(
    nothing_left: None, settings: Settings
) -> None:
    settings.max_sandboxes = 1
    settings.capacity_timeout_seconds = PATIENCE
    async with Engine(settings) as engine:
        session = await engine.create_sandbox(MINIMAL)
        served: list[int] = []

        async def wait_for_one(number: int) -> None:
            mine = await engine.create_sandbox(MINIMAL)
            served.append(number)
            await mine.kill()

        state = pool_of(engine)._state
        tasks = []
        for number in range(4):
            tasks.append(asyncio.create_task(wait_for_one(number)))
            await until(engine, lambda number=number: state.waiting == number + 1)  # type: ignore[misc]
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        assert state.waiting == 3
        await session.kill()
        await asyncio.gather(tasks[0], *tasks[2:])
        assert served == [0, 2, 3]
        assert (state.sandboxes, state.waiting) == (0, 0)


async def test_a_pool_gives_its_places_to_sandboxes(nothing_left: None, settings: Settings) -> None:
    settings.max_sandboxes = 3
    async with Engine(settings) as engine:
        await engine.warm(MINIMAL)
        sandboxes = [await engine.create_sandbox(MINIMAL) for _ in range(3)]
        pool_of(engine).tick()
        assert pool_of(engine)._state.machines == 0
        assert status(engine).in_use == 3
        assert [(await run(engine, session, "40 + 2")).text for session in sandboxes] == ["42"] * 3


async def test_when_memory_is_short_the_pool_gives_way_and_sandboxes_wait(engine: Engine) -> None:
    await engine.warm(MINIMAL)
    pool = pool_of(engine)
    pool._available = lambda: engine.settings.min_free_memory_mb << 20
    pool.tick()
    assert status(engine).ready == 2, "just enough"
    pool._available = lambda: (engine.settings.min_free_memory_mb << 20) - 1
    while pool._state.machines:
        pool.tick()
    assert status(engine).ready == 0
    with pytest.raises(NoCapacity, match="less than 256 MiB of memory"):
        await engine.create_sandbox(MINIMAL)
    with pytest.raises(NoCapacity):
        await engine.warm(MINIMAL)
    pool._available = lambda: 1 << 40
    await (await engine.create_sandbox(MINIMAL)).kill()
    await until(engine, lambda: status(engine).ready == 2)


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 3, 30, 100])
async def test_an_engine_that_is_closed_while_it_fills_leaves_nothing(
    nothing_left: None, settings: Settings, turns: int
) -> None:
    async with Engine(settings) as engine:
        await (await engine.create_sandbox(MINIMAL)).kill()
        filling = asyncio.create_task(engine.warm(MINIMAL, count=3))
        for _ in range(turns):
            await asyncio.sleep(0.002)
    with pytest.raises(Exception, match=r"pool|closed"):
        await filling


async def test_a_creation_that_is_cancelled_leaves_nothing(engine: Engine) -> None:
    for turns in (0, 1, 2, 5, 10):
        await engine.warm(MINIMAL)
        creating = asyncio.create_task(engine.create_sandbox(MINIMAL))
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        creating.cancel()
        try:
            await (await creating).kill()
        except asyncio.CancelledError:
            pass
        assert await engine.list_sandboxes() == []
        assert status(engine).in_use == 0


async def test_signals_go_without_a_round_trip_and_descriptors_are_closed(engine: Engine) -> None:
    def pidfds() -> int:
        # the entry of the listing itself is gone by now
        return sum("pidfd" in str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink())

    await engine.warm(MINIMAL, count=1)
    await until(engine, lambda: status(engine).blanks == 1)
    before = pidfds()
    session = await engine.create_sandbox(MINIMAL)
    machine = session.machine
    assert isinstance(machine, GvisorMachine)
    assert all(process.pidfd >= 0 for process in machine._processes)
    await session.kill()
    await until(engine, lambda: status(engine).ready == 1)
    assert pidfds() == before
    assert all(process.pidfd < 0 for process in machine._processes)
