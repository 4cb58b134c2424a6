"""A durable engine is killed at every step of what it does. The next one finds all that was acknowledged, and leaves
nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from emberbox import Engine, Settings
from emberbox.engine import ExecuteRequest
from emberbox.errors import NoCapacity
from emberbox.host.rundir import processes_of
from emberbox.models import HistoryQueryRequest
from emberbox.sandbox.instance import SandboxInstance
from waiting import until

DEADLINE = 60.0
SERVICE = Path(__file__).with_name("service.py")

pytestmark = pytest.mark.usefixtures("nothing_left")


@dataclass
class Acknowledged:
    """What the service was told before it was killed."""

    sandbox: str = ""
    snapshot: str | None = None
    ran: list[str] = field(default_factory=list)


def killed_in(action: str, *how: str, **environment: str) -> Acknowledged:
    """Let the service be killed in the middle of an action."""
    done = subprocess.run(
        [sys.executable, str(SERVICE), action, *how],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env={**os.environ, **environment},
    )
    known = Acknowledged()
    for line in done.stdout.splitlines():
        facts = json.loads(line)
        known.sandbox = facts.get("sandbox", known.sandbox)
        known.snapshot = facts.get("snapshot", known.snapshot)
        known.ran += [facts["ran"]] if "ran" in facts else []
        assert "survived" not in facts, "the moment never came"
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert known.ran
    return known


async def value(engine: Engine, session: SandboxInstance, code: str) -> str | None:
    run = await engine.execute(ExecuteRequest(session, "python", code, agent_id="alice"))
    assert run.error is None, run.error
    return run.text


async def suspend(engine: Engine, session: SandboxInstance) -> None:
    assert engine._sandboxes is not None
    await engine._sandboxes.end(session)


async def free(session: SandboxInstance) -> None:
    """The code that the service has left still runs, and nobody hears it; its own time-out ends it."""
    async with asyncio.timeout(DEADLINE):
        while (await session.contexts.list())[0].busy:  # noqa: ASYNC110 (nothing tells of its end)
            await asyncio.sleep(0.05)


BOTH = "x, open('f').read()"
ONE, TWO = "(1, 'one')", "(2, 'two')"


async def check_history(engine: Engine, known: Acknowledged) -> dict[str, str]:
    """All that was acknowledged is in it, and nobody changed it; the states of its rows."""
    rows = (await engine.history.query(HistoryQueryRequest(vm_id=known.sandbox))).history
    states: dict[str, str] = {row.execution_id: row.state for row in rows}
    assert [states.get(execution) for execution in known.ran] == ["finished"] * len(known.ran)
    assert (await engine.history.verify()).intact
    return states


async def check_end(settings: Settings, known: Acknowledged) -> None:
    """What one engine has suspended the next one finds, and when that ends it, no file is left."""
    folders = [settings.state_dir / name for name in ("snapshots", "sandboxes")]
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in folders if folder.exists())
    async with Engine(settings, durable=True) as engine:
        session = await engine.get_sandbox(known.sandbox)
        assert await value(engine, session, "import os; os.environ['SECRET']") == "'s3cret'"
        for name in _recorded(settings):
            await engine.kill_sandbox(name)
    assert [path.name for folder in folders for path in folder.rglob("*") if path.name != ".lock"] == []


def _recorded(settings: Settings) -> list[str]:
    return [path.stem for path in (settings.state_dir / "sandboxes").glob("sb-*.json")]


MACHINE, LEDGER = "GvisorMachine", "SandboxRegistry.write"
MOMENTS = [
    ("idle",),
    ("idle_with_snapshot",),
    ("paused",),
    ("without_stderr",),
    ("wake", "GvisorFactory.fork", "after"),
    ("wake", "GvisorMachine.survive_owner", "after"),
    ("wake", "SandboxRegistry.write", "after"),
    ("execute", "HistoryRecorder.record", "before", "is started"),
    ("execute", "HistoryRecorder.record", "after", "is started"),
    ("execute", "HistoryRecorder.record", "before", "is finished"),
    ("noise",),
    ("write", "Channel._write_some", "after", "is half-way"),
    ("snapshot", f"{MACHINE}.checkpoint", "before"),
    ("snapshot", f"{MACHINE}.checkpoint", "after"),
    ("snapshot", "SandboxInstance._checkpoint", "after"),
    ("snapshot", "SnapshotStore.write", "before"),
    ("snapshot", "SnapshotStore.seal", "after"),
    ("snapshot", LEDGER, "before"),
    ("snapshot", LEDGER, "after"),
    ("rollback", "GvisorFactory.fork", "after"),
    ("rollback", "SandboxInstance._wake_copy", "after"),
    ("rollback", f"{MACHINE}.survive_owner", "after"),
    ("rollback", LEDGER, "before"),
    ("rollback", LEDGER, "after"),
    ("rollback", f"{MACHINE}.kill", "before"),
    ("rollback", f"{MACHINE}.kill", "after"),
    ("create", "GvisorFactory.fork", "after"),
    ("create", f"{MACHINE}.survive_owner", "before"),
    ("create", f"{MACHINE}.survive_owner", "after"),
    ("create", LEDGER, "after", "is of bob"),
    ("suspend", f"{MACHINE}.checkpoint", "after"),
    ("suspend", "SnapshotStore.seal", "after"),
    ("suspend", "SnapshotService.snapshot", "after"),
    ("suspend", LEDGER, "before", "is suspended"),
    ("suspend", LEDGER, "after", "is suspended"),
    ("suspend", f"{MACHINE}.kill", "after"),
    ("close", "SnapshotStore.seal", "after"),
    ("close", LEDGER, "after", "is suspended"),
    ("close", f"{MACHINE}.kill", "after"),
    ("close", "Spawner.close", "before"),
]


@pytest.mark.parametrize("how", MOMENTS, ids=[" ".join(how) for how in MOMENTS])
async def test_nothing_acknowledged_is_lost(settings: Settings, how: tuple[str, ...]) -> None:
    known = killed_in(*how)
    async with Engine(settings, durable=True) as engine:
        session = await engine.lease("alice")
        assert session.id == known.sandbox
        assert session.recovered is not None
        if how[0] == "noise":
            await free(session)
        states = await check_history(engine, known)
        expected = {TWO} if known.snapshot else {ONE}
        if how[0] == "rollback":
            expected = {ONE, TWO}  # nobody was told that it had come about
        assert await value(engine, session, BOTH) in expected
        if how[0] == "execute" and how[-1] == "is started":
            assert ("unknown" in states.values()) is (how[2] == "after")
        if how[0] == "write":
            assert "big" not in {entry.name for entry in await session.files.list()}, "half a file is none"
            await session.files.write("big", b"b" * (1 << 20))
            assert await value(engine, session, "import os; os.path.getsize('big')") == str(1 << 20)
        await engine.checkpoints.snapshot(session, "again")
    await check_end(settings, known)


# --- nobody comes, or not for long ------------------------------------------------------------------------------------


async def test_when_nobody_comes_everything_ends(settings: Settings, run_dir: Path) -> None:
    known = killed_in("idle_with_snapshot", EMBERBOX_ADOPTION_SECONDS="0.3")
    until(lambda: not processes_of(f"{run_dir}/") and not list(run_dir.iterdir()), "the end of the spawner")
    async with Engine(settings, durable=True) as engine:
        session = await engine.lease("alice")
        assert session.id == known.sandbox
        assert session.recovered is not None
        assert (session.recovered.how, session.recovered.snapshot_id) == ("restored", known.snapshot)
        assert session.recovered.lost_executions == known.ran[1:], "those after the snapshot"
        run = await engine.execute(ExecuteRequest(session, "python", BOTH, agent_id="alice"))
        assert run.text == ONE
        assert (run.restored_from, run.lost_executions) == (known.snapshot, known.ran[1:])
        assert "the effects of 1 execution before it are lost" in run.notes[0]
        await check_history(engine, known)
    await check_end(settings, known)


async def test_without_a_machine_and_without_a_snapshot_it_is_lost(settings: Settings, run_dir: Path) -> None:
    known = killed_in("idle", EMBERBOX_ADOPTION_SECONDS="0")
    until(lambda: not processes_of(f"{run_dir}/") and not list(run_dir.iterdir()), "the end of the spawner")
    async with Engine(settings, durable=True) as engine:
        session = await engine.lease("alice", template="minimal")
        assert session.id != known.sandbox
        (lost,) = engine.recovered
        assert (lost.sandbox_id, lost.agent_id, lost.how) == (known.sandbox, "alice", "lost")
        assert lost.lost_executions == known.ran
        await check_history(engine, known)
        await engine.kill_sandbox(session.id)
    assert _recorded(settings) == []


async def test_the_spawner_is_killed_as_well(settings: Settings, run_dir: Path) -> None:
    known = killed_in("idle_with_snapshot")
    for pid in processes_of(f"{run_dir}/"):
        if b"spawner_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: pid not in processes_of(f"{run_dir}/"), "the end of the spawner")  # type: ignore[misc]
    async with Engine(settings, durable=True) as engine:
        session = await engine.lease("alice")
        assert session.recovered is not None
        assert session.recovered.how == "restored"
        assert await value(engine, session, BOTH) == ONE
    await check_end(settings, known)


def adopting() -> tuple[int, str]:
    """Exit code and words of an engine that takes over and is killed."""
    done = subprocess.run([sys.executable, "-c", ADOPTS], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


ADOPTS = """
import asyncio, os, signal, sys
from emberbox import Engine, load_settings

async def main():
    engine = Engine(load_settings(), durable=True)
    (session,) = await engine.list_sandboxes()
    print(session.recovered.how, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_killed_again_and_again(settings: Settings) -> None:
    """Each takes over from the one before; what none has seen is still there for the last."""
    known = killed_in("idle")
    for _ in range(3):
        assert adopting() == (-signal.SIGKILL, "adopted\n")
    async with Engine(settings, durable=True) as engine:
        session = await engine.lease("alice")
        assert session.recovered is not None
        assert session.recovered.how == "adopted"
        assert await value(engine, session, BOTH) == ONE
        before = await check_history(engine, known)
        assert len(before) == 2
        spawner = session.machine.spawner  # type: ignore[attr-defined]
        for kept in ([session.machine.id], []):
            lock_fd, names = await spawner._kept()
            os.close(lock_fd)
            assert names == kept, "the spawner holds no descriptor of a machine that is gone"
            if kept:
                await suspend(engine, session)
    await check_end(settings, known)


async def test_what_is_taken_over_counts_as_a_sandbox(settings: Settings) -> None:
    """Else each crash of the service would let in as many more as it left."""
    known = killed_in("idle")
    narrow = settings.model_copy(update={"max_sandboxes": 1, "capacity_timeout_seconds": 0.2})
    async with Engine(narrow, durable=True) as engine:
        with pytest.raises(NoCapacity, match="There are 1 sandboxes"):
            await engine.create_sandbox()
        await engine.kill_sandbox(known.sandbox)
        session = await engine.create_sandbox()
        await engine.kill_sandbox(session.id)


async def test_what_was_done_after_the_last_snapshot_is_not_undone_after_a_takeover(settings: Settings) -> None:
    """The machine ran on: its last snapshot is not the state before the next execution."""
    killed_in("idle_with_snapshot")
    async with Engine(settings, durable=True) as engine:
        session = await engine.lease("alice")
        assert session.recovered is not None
        assert session.recovered.how == "adopted"
        wrong = ExecuteRequest(session, "python", "x = 3; open('f', 'w').write('three')", snapshot="pre-execution")
        run = await engine.execute(wrong)
        assert (await engine.checkpoints.rollback(session, run.execution_id)).executions_undone == [run.execution_id]
        assert await value(engine, session, BOTH) == TWO
        await engine.kill_sandbox(session.id)


async def test_one_that_dies_as_soon_as_it_has_connected_is_not_the_last(settings: Settings, run_dir: Path) -> None:
    known = killed_in("idle")
    (place,) = run_dir.iterdir()
    for talks in (b"", b'{"id": 1, "op": "kept"}'):  # the second leaves with the answer unread
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            until(lambda control=control: control.connect_ex(str(place / "adopt")) == 0, "a connection")  # type: ignore[misc]
            if talks:
                assert control.recv(1000)
                control.send(talks)
                select.select([control], [], [], DEADLINE)
    async with Engine(settings, durable=True) as engine:
        session = await engine.lease("alice")
        assert session.recovered is not None
        assert session.recovered.how == "adopted"
        assert await value(engine, session, BOTH) == ONE
    await check_end(settings, known)
