"""Sandboxes that outlive their engine: suspended and woken, by hand, when idle, and when the engine closes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from emberbox import Engine, MachineLimits, Settings, TerminationReason, load_settings
from emberbox.engine import ExecuteRequest
from emberbox.errors import (
    ConfigError,
    NoCapacity,
    SessionNotFound,
    SnapshotFailed,
    SnapshotNotFound,
    ValidationFailed,
    VmExecutionError,
    VmNotAvailable,
)
from emberbox.machines.gvisor import machine as gvisor_machine
from emberbox.models import Execution, HistoryQueryRequest
from emberbox.sandbox.durability.registry import SandboxRegistry
from emberbox.sandbox.instance import SandboxInstance, SandboxState
from emberbox.sandbox.listeners import Listeners
from emberbox.sandbox.manager import SandboxManager

BOTH_GVISORS = True

MINIMAL = "minimal"

pytestmark = pytest.mark.usefixtures("nothing_left")


async def run(engine: Engine, session: SandboxInstance, code: str, listeners: Listeners | None = None) -> Execution:
    request = ExecuteRequest(session, "python", code, agent_id=session.agent_id)
    return await engine.execute(request, listeners)


async def text(engine: Engine, session: SandboxInstance, code: str) -> str | None:
    done = await run(engine, session, code)
    assert done.error is None, done.error
    return done.text


def manager_of(engine: Engine) -> SandboxManager:
    assert engine._sandboxes is not None
    return engine._sandboxes


async def suspend(engine: Engine, session: SandboxInstance) -> None:
    """What happens to a sandbox that nobody uses."""
    await manager_of(engine).end(session)


def files(settings: Settings) -> list[str]:
    """All that is kept of sandboxes."""
    folders = [settings.state_dir / name for name in ("snapshots", "sandboxes")]
    return sorted(path.name for f in folders if f.exists() for path in f.iterdir() if path.name != ".lock")


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@asynccontextmanager
async def durable(settings: Settings) -> AsyncIterator[Engine]:
    async with Engine(settings, durable=True) as engine:
        yield engine


# --- closed and opened again ------------------------------------------------------------------------------------------


async def test_the_history_names_the_agent_of_the_sandbox(settings: Settings) -> None:
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        await engine.execute(ExecuteRequest(session, "python", "1"))
        await engine.execute(ExecuteRequest(session, "python", "2", agent_id="bob"))
        found = (await engine.history.query(HistoryQueryRequest(vm_id=session.id))).history
        assert [(entry.command, entry.agent_id) for entry in found] == [("2", "bob"), ("1", "alice")]
        await engine.kill_sandbox(session.id)


async def test_who_asks_for_a_sandbox_that_was_idle_is_told_so(settings: Settings) -> None:
    async with Engine(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        session.idle_seconds = 7.0
        await manager_of(engine).end(session)
        with pytest.raises(VmNotAvailable, match="nobody used it for 7 s"):
            await run(engine, session, "1")


async def test_a_sandbox_goes_on_after_a_restart(settings: Settings) -> None:
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL, envs={"SECRET": "s3cret"})
        await run(engine, session, "x = 1; print(open('f', 'w').write('one'))")
        point = await engine.checkpoints.snapshot(session, "point")
        await run(engine, session, "x = 2; print(open('f', 'w').write('two'))")
        await session.runner.exec(["sh", "-c", "sleep 4242 & "])
        path, name = session.lineage.executions, session.id
    assert session.state is SandboxState.CLOSED
    with pytest.raises(VmNotAvailable, match="was suspended") as error:
        await session.files.read_bytes("f")
    assert "get_sandbox()" in error.value.remediation

    async with durable(settings) as engine:
        assert await engine.list_sandboxes() == [], "it has no machine until somebody asks for it"
        (found,) = engine.recovered
        assert (found.sandbox_id, found.agent_id, found.how, found.lost_executions) == (name, "alice", "dormant", [])
        session = await engine.lease("alice")
        assert (session.id, session.agent_id, session.lineage.executions) == (name, "alice", path)
        assert session.info().recovered == session.recovered
        done = await run(engine, session, "import os; x, open('f').read(), os.environ['SECRET']")
        assert (done.text, done.notes, done.lost_executions) == ("(2, 'two', 's3cret')", [], [])
        assert "4242" in (await session.runner.exec(["pgrep", "-a", "sleep"])).stdout
        infos = await engine.checkpoints.snapshots(session)
        assert (infos[0].name, infos[0].kind) == ("point", "manual")
        assert [(info.parent_id, info.kind) for info in infos[1:]] == [(point.snapshot_id, "shutdown")]
        await engine.checkpoints.rollback(session, "point")
        assert await text(engine, session, "x, open('f').read()") == "(1, 'one')"
        rows = (await engine.history.query(HistoryQueryRequest(vm_id=name))).history
        assert [row.state for row in rows] == ["finished"] * 4
        await engine.kill_sandbox(name)
    assert files(settings) == []


async def test_each_restart_keeps_one_snapshot_of_the_shutdown(settings: Settings) -> None:
    for number in range(3):
        async with durable(settings) as engine:
            session = await engine.lease("alice", template=MINIMAL)
            assert await text(engine, session, f"n = {number}" if not number else "n += 1; n") == (
                str(number) if number else None
            )
    assert len([name for name in files(settings) if name.startswith("snap-")]) == 1
    async with durable(settings) as engine:
        assert await engine.list_sandboxes() == []
        (found,) = engine.recovered
        await engine.kill_sandbox(found.sandbox_id)
        with pytest.raises(SessionNotFound):
            await engine.get_sandbox(found.sandbox_id)
    assert files(settings) == [], "one that is killed while it sleeps leaves nothing"


async def test_code_that_runs_when_the_engine_closes_is_interrupted_and_nothing_before_it_is_lost(
    settings: Settings,
) -> None:
    running = asyncio.Event()
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        await run(engine, session, "x = 1")
        listeners = Listeners(on_stdout=lambda _: running.set())
        under_way = asyncio.ensure_future(run(engine, session, "print('up')\nwhile True: pass", listeners))
        await running.wait()
    cut = await under_way
    assert cut.termination_reason is TerminationReason.INTERRUPTED
    async with durable(settings) as engine:
        session = await engine.lease("alice")
        assert await text(engine, session, "x") == "1"
        states = {r.execution_id: r.state for r in (await engine.history.query(HistoryQueryRequest())).history}
        assert states[cut.execution_id] == "finished"
        await session.kill()
    assert files(settings) == []


async def test_a_paused_sandbox_is_put_aside_as_any_other(settings: Settings) -> None:
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        await run(engine, session, "x = 1")
        await session.pause()
    async with durable(settings) as engine:
        session = await engine.lease("alice")
        assert await text(engine, session, "x") == "1"
        await session.kill()


async def test_only_one_engine_at_a_time(settings: Settings) -> None:
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        async with durable(settings) as second:
            for _ in range(2):
                with pytest.raises(ConfigError, match="Another process keeps the sandboxes") as error:
                    await second.list_sandboxes()
            assert "another `state_dir`" in error.value.remediation
        async with Engine(settings) as third:  # one that keeps nothing is welcome
            assert await third.list_sandboxes() == []
        assert await text(engine, session, "1") == "1"
        await session.kill()


async def test_an_engine_that_could_not_begin_begins_later(settings: Settings, tmp_path: Path) -> None:
    wrong = settings.model_copy(update={"runsc": tmp_path / "none"})
    async with durable(wrong) as engine:
        for _ in range(2):
            with pytest.raises(VmNotAvailable, match="runsc"):
                await engine.list_sandboxes()
        engine.settings = settings
        session = await engine.lease("alice", template=MINIMAL)
        await session.kill()


async def test_who_asks_first_may_be_cancelled(settings: Settings) -> None:
    async with durable(settings) as engine:
        await run(engine, await engine.lease("alice", template=MINIMAL), "x = 1")
    async with durable(settings) as engine:
        first = asyncio.ensure_future(engine.list_sandboxes())
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        session = await engine.lease("alice")
        assert await text(engine, session, "x") == "1"
        await session.kill()
    assert files(settings) == []


# --- whose it is ------------------------------------------------------------------------------------------------------


async def test_each_agent_has_its_own(settings: Settings) -> None:
    async with durable(settings) as engine:
        alice, bob = await asyncio.gather(*(engine.lease(name, template=MINIMAL) for name in ("alice", "bob")))
        again, once_more = await asyncio.gather(engine.lease("alice"), engine.lease("alice", alice.id))
        assert alice is again is once_more
        assert alice is not bob
        assert (alice.agent_id, bob.agent_id) == ("alice", "bob")
        assert (await engine.checkpoints.snapshot(bob)).agent_id == "bob"
        with pytest.raises(SessionNotFound, match="'bob' has no sandbox") as error:
            await engine.lease("bob", alice.id)
        with pytest.raises(SessionNotFound, match="'bob' has no sandbox"):
            await engine.lease("bob", "sb-none")
        await suspend(engine, alice)
        with pytest.raises(SessionNotFound, match="'bob' has no sandbox"):
            await engine.lease("bob", alice.id)
        assert alice.id in str(error.value)
        assert [s.id for s in await engine.list_sandboxes()] == [bob.id], "a stranger does not wake it"
        for name in (alice.id, bob.id):
            await engine.kill_sandbox(name)
    assert files(settings) == []


async def test_a_lease_that_wants_another_sandbox_is_told_so(settings: Settings) -> None:
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL, envs={"A": "1"})
        again = await engine.lease("alice", template=MINIMAL, limits=session.limits, envs={"A": "1"})
        assert again is session
        for wanted, words in (
            ({"template": "default"}, "template 'minimal' .asked for: 'default'."),
            ({"limits": MachineLimits(memory_mb=session.limits.memory_mb // 2)}, "memory_mb"),
            ({"envs": {"A": "2", "B": "3"}}, "another environment .A, B."),
        ):
            with pytest.raises(ValidationFailed, match=words) as error:
                await engine.lease("alice", **wanted)
            assert "create_sandbox" in error.value.remediation
        await engine.kill_sandbox(session.id)
        await engine.kill_sandbox((await engine.lease("alice", template=MINIMAL, envs={"A": "2"})).id)


async def test_an_agent_may_have_so_many_awake_or_asleep(settings: Settings) -> None:
    settings.max_sandboxes_per_agent = 2
    async with durable(settings) as engine:
        made = await asyncio.gather(
            *(engine.create_sandbox(MINIMAL, agent_id="alice") for _ in range(4)), return_exceptions=True
        )
        kinds = sorted(type(outcome).__name__ for outcome in made)
        assert kinds == ["NoCapacity", "NoCapacity", "SandboxInstance", "SandboxInstance"]
        sessions = [outcome for outcome in made if isinstance(outcome, SandboxInstance)]
        await suspend(engine, sessions[0])
        with pytest.raises(NoCapacity, match="has 2 sandboxes already") as error:
            await engine.create_sandbox(MINIMAL, agent_id="alice")
        assert "max_sandboxes_per_agent" in error.value.remediation
        await engine.create_sandbox(MINIMAL, agent_id="bob")
    async with durable(settings) as engine:
        with pytest.raises(NoCapacity):
            await engine.create_sandbox(MINIMAL, agent_id="alice")
        await engine.get_sandbox(sessions[0].id)
        with pytest.raises(NoCapacity):
            await engine.create_sandbox(MINIMAL, agent_id="alice")
        await engine.kill_sandbox(sessions[1].id)
        await engine.create_sandbox(MINIMAL, agent_id="alice")
        for name in [s.id for s in await engine.list_sandboxes()] + [r.sandbox_id for r in engine.recovered]:
            try:
                await engine.kill_sandbox(name)
            except SessionNotFound:
                continue
    assert files(settings) == []


async def test_snapshots_of_an_agent_have_a_bound_and_that_of_a_shutdown_has_none(settings: Settings) -> None:
    settings.max_snapshot_mb_per_agent = 1
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        other = await engine.create_sandbox(MINIMAL, agent_id="alice")
        bob = await engine.lease("bob", template=MINIMAL)
        await run(engine, session, "x = 1")
        await engine.checkpoints.snapshot(session, "point")
        for full_one in (session, other):
            with pytest.raises(SnapshotFailed, match=r"agent 'alice' take .* limit is 1 MiB") as error:
                await engine.checkpoints.snapshot(full_one)
        assert "max_snapshot_mb_per_agent" in error.value.remediation
        await engine.checkpoints.snapshot(bob)
        await run(engine, session, "x = 2")
        await suspend(engine, session)
        with pytest.raises(SnapshotFailed, match="limit is 1 MiB"):
            await engine.checkpoints.snapshot(other)
        session = await engine.lease("alice")
        assert await text(engine, session, "x") == "2"
        for info in await engine.checkpoints.snapshots(session):
            await engine.checkpoints.delete(session, info.snapshot_id)
        await engine.checkpoints.snapshot(other)
        for sandbox in (session, other, bob):
            await sandbox.kill()
    assert files(settings) == []


# --- idle -------------------------------------------------------------------------------------------------------------


async def test_one_that_is_put_aside_is_woken_by_whoever_asks(settings: Settings) -> None:
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        await run(engine, session, "x = 1")
        aside = asyncio.ensure_future(suspend(engine, session))
        while session.state is not SandboxState.CLOSED and not session.suspended:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0)
        first, second = await asyncio.gather(engine.lease("alice"), engine.get_sandbox(session.id))
        assert first is second is not session
        assert await text(engine, first, "x") == "1"
        await aside
        assert await text(engine, first, "x") == "1"
        await first.kill()
    assert files(settings) == []


async def test_one_that_was_used_meanwhile_is_not_put_aside(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        copies = manager_of(engine).snapshots
        seal = copies.store.seal
        loop = asyncio.get_running_loop()

        def used_meanwhile(*args: object) -> None:
            asyncio.run_coroutine_threadsafe(run(engine, session, "x = 'done'"), loop).result(60)
            seal(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(copies.store, "seal", used_meanwhile)
        with pytest.raises(SnapshotFailed, match="has just been used"):
            await suspend(engine, session)
        monkeypatch.undo()
        assert await text(engine, session, "x") == "'done'"
        assert await engine.checkpoints.snapshots(session) == []
        await session.kill()


async def test_the_reaper_puts_aside_what_nobody_uses(settings: Settings) -> None:
    settings.session_idle_seconds = 0.2
    async with durable(settings) as engine:
        leased = await engine.lease("alice", template=MINIMAL)
        other = await engine.create_sandbox(MINIMAL, agent_id="alice")
        async with asyncio.timeout(60):
            await leased.machine.wait()
        assert other.state is SandboxState.READY, "only an agent's own has an end of this kind"
        async with asyncio.timeout(60):
            woken = await engine.lease("alice")
        assert woken.id == leased.id
        await engine.kill_sandbox(other.id)
        await engine.kill_sandbox(leased.id)
    assert files(settings) == []


async def test_an_own_time_goes_on_while_it_sleeps(settings: Settings) -> None:
    async with durable(settings) as engine:
        session = await engine.create_sandbox(MINIMAL, timeout=3600)
        end_at = session.end_at
        await suspend(engine, session)
        woken = await engine.get_sandbox(session.id)
        assert woken.end_at is not None
        assert end_at is not None
        assert abs((woken.end_at - end_at).total_seconds()) < 60
        woken.set_timeout(0.01)
        async with asyncio.timeout(60):
            assert (await woken.machine.wait()).reason is TerminationReason.TIMEOUT
            while files(settings):  # noqa: ASYNC110 (told a moment later, to nobody in particular)
                await asyncio.sleep(0.01)
        with pytest.raises(SessionNotFound):
            await engine.get_sandbox(session.id)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing", "record missing", "record unreadable"])
async def test_a_damaged_snapshot_gives_way_to_the_one_before_it(settings: Settings, damage: str) -> None:
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        await run(engine, session, "x = 1")
        point = await engine.checkpoints.snapshot(session, "point")
        lost = (await run(engine, session, "x = 2")).execution_id
        bob = await engine.lease("bob", template=MINIMAL)
        await run(engine, bob, "x = 'of bob'")
    (shutdown,) = [p for p in _snapshots(settings) if p["sandbox_id"] == session.id and p["kind"] == "shutdown"]
    folder = settings.state_dir / "snapshots" / str(shutdown["snapshot_id"])
    pages = folder / "pages.img"
    if damage == "changed":
        with pages.open("r+b") as file:
            file.seek(pages.stat().st_size // 2)
            file.write(b"damaged")
    elif damage == "truncated":
        os.truncate(pages, 1000)
    elif damage == "missing":
        pages.unlink()
    elif damage == "record missing":
        (folder / "snapshot.json").unlink()
    else:
        (folder / "snapshot.json").write_text("{")

    async with durable(settings) as engine:
        session = await engine.lease("alice")
        assert session.recovered is not None
        assert (session.recovered.snapshot_id, session.recovered.lost_executions) == (point.snapshot_id, [lost])
        done = await run(engine, session, "x")
        assert (done.text, done.lost_executions, done.restored_from) == ("1", [lost], point.snapshot_id)
        assert "goes on from" in done.notes[0]
        assert await text(engine, await engine.lease("bob"), "x") == "'of bob'"
        for agent in ("alice", "bob"):
            await (await engine.lease(agent)).kill()


def _snapshots(settings: Settings) -> list[dict[str, object]]:
    return [json.loads(p.read_text())["info"] for p in (settings.state_dir / "snapshots").glob("*/snapshot.json")]


async def test_a_full_disk_does_not_end_what_nobody_uses(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        await run(engine, session, "x = 1")
        for target, name in ((gvisor_machine.GvisorMachine, "_checkpoint_by_socket"), (SandboxRegistry, "write")):
            monkeypatch.setattr(target, name, full)
            with pytest.raises(SnapshotFailed, match="No space left"):
                await suspend(engine, session)
            monkeypatch.undo()
            assert await text(engine, session, "x") == "1"
        await suspend(engine, session)
        session = await engine.lease("alice")
        assert await text(engine, session, "x") == "1"
        await session.kill()
    assert files(settings) == []


async def test_a_full_disk_at_the_end_leaves_the_snapshot_before(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        await run(engine, session, "x = 1")
        await engine.checkpoints.snapshot(session)
        lost = (await run(engine, session, "x = 2")).execution_id
        monkeypatch.setattr(gvisor_machine.GvisorMachine, "_checkpoint_by_socket", full)
        monkeypatch.setattr(SandboxRegistry, "write", full)
    monkeypatch.undo()
    async with durable(settings) as engine:
        session = await engine.lease("alice")
        assert session.recovered is not None
        assert session.recovered.lost_executions == [lost]
        assert await text(engine, session, "x") == "1"
        await session.kill()


async def test_a_full_disk_refuses_a_new_sandbox_and_leaves_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with durable(settings) as engine:
        await engine.list_sandboxes()
        monkeypatch.setattr(SandboxRegistry, "write", full)
        with pytest.raises(SnapshotFailed, match="cannot be written down: No space left") as error:
            await engine.lease("alice", template=MINIMAL)
        assert "state_dir" in error.value.remediation
        assert await engine.list_sandboxes() == []
        monkeypatch.undo()
        await (await engine.lease("alice", template=MINIMAL)).kill()
    assert files(settings) == []


async def test_a_machine_that_dies_goes_back_as_in_any_engine(settings: Settings) -> None:
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        await run(engine, session, "x = 1")
        await engine.checkpoints.snapshot(session)
        machine = session.machine
        (pid, *_) = [p.pid for p in machine._processes]  # type: ignore[attr-defined]
        os.kill(pid, signal.SIGKILL)
        await machine.wait()
        done = await run(engine, session, "x")
        assert done.text == "1"
        assert session.machine is not machine
    async with durable(settings) as engine:
        session = await engine.lease("alice")
        assert await text(engine, session, "x") == "1"
        await session.kill()
    assert files(settings) == []


# --- kept snapshots ---------------------------------------------------------------------------------------------------


async def test_a_kept_snapshot_outlives_its_sandbox(settings: Settings) -> None:
    async with durable(settings) as engine:
        session = await engine.create_sandbox(MINIMAL, envs={"A": "old", "B": "old"}, metadata={"m": "n"})
        await run(engine, session, "x = 1")
        kept = await engine.checkpoints.snapshot(session, "kept", keep=True)
        passing = await engine.checkpoints.snapshot(session)
        await session.kill()
    assert files(settings) == [kept.snapshot_id]
    assert kept.kept
    assert not passing.kept
    async with Engine(settings) as engine:
        copies = await asyncio.gather(
            engine.create_sandbox(snapshot=kept.snapshot_id, envs={"A": "new"}, agent_id="bob"),
            engine.create_sandbox(snapshot=kept.snapshot_id, metadata={}),
        )
        assert [await text(engine, copy, "x") for copy in copies] == ["1", "1"]
        told = [(await copy.runner.exec(["sh", "-c", "echo $A $B"])).stdout for copy in copies]
        assert told == ["new old\n", "old old\n"], "of what starts from now on"
        assert [copy.metadata for copy in copies] == [{"m": "n"}, {}]
        with pytest.raises(SnapshotNotFound, match="no kept snapshot 'snap-00'"):
            await engine.create_sandbox(snapshot="snap-00")
        with pytest.raises(ValidationFailed, match="template and the limits"):
            await engine.create_sandbox(MINIMAL, snapshot=kept.snapshot_id)
        again = await engine.checkpoints.snapshot(copies[0], keep=True)
        await engine.checkpoints.delete(copies[0], again.snapshot_id)
    assert files(settings) == [kept.snapshot_id]


async def test_a_sandbox_of_a_kept_snapshot_is_what_was_asked_for(settings: Settings) -> None:
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        execution = (await run(engine, session, "x = 1")).execution_id
        kept = (await engine.checkpoints.snapshot(session, keep=True)).snapshot_id
        await engine.create_sandbox(snapshot=kept, durable=False)
        lasting = await engine.create_sandbox(snapshot=kept, agent_id="bob", idle_seconds=70)
    async with durable(settings) as engine:
        assert {found.sandbox_id for found in await engine.list_suspended()} == {session.id, lasting.id}
        lasting = await engine.get_sandbox(lasting.id)
        assert (lasting.agent_id, lasting.idle_seconds, lasting.lineage.newest) == ("bob", 70, execution)
        for name in (session.id, lasting.id):
            await engine.kill_sandbox(name)


async def test_copies_of_a_durable_sandbox_are_durable(settings: Settings) -> None:
    async with durable(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        path = ((await run(engine, session, "x = 1")).execution_id,)
        (fork,) = await engine.checkpoints.fork(session)
        await run(engine, fork, "x = 2")
    async with durable(settings) as engine:
        assert await engine.list_sandboxes() == []
        assert {found.sandbox_id for found in engine.recovered} == {session.id, fork.id}
        fork = await engine.get_sandbox(fork.id)
        assert (fork.agent_id, fork.own, fork.lineage.executions[:1]) == ("alice", False, path)
        assert await text(engine, fork, "x") == "2"
        assert await text(engine, await engine.lease("alice"), "x") == "1"
        for sandbox in await engine.list_sandboxes():
            await sandbox.kill()
    assert files(settings) == []


async def test_an_engine_that_is_not_durable_keeps_nothing(settings: Settings) -> None:
    async with Engine(settings) as engine:
        session = await engine.lease("alice", template=MINIMAL)
        await engine.checkpoints.snapshot(session)
        with pytest.raises(VmExecutionError):
            await engine.lease("bob", session.id)
    assert files(settings) == []
    assert load_settings().session_idle_seconds == 900
