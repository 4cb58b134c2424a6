"""What a sandbox holds from its start to its end: a share, a place, its image, a record. Machines are made up."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from emberbox import load_settings
from emberbox.errors import ExecutionTimeout, NoCapacity, SnapshotFailed, VmNotAvailable
from emberbox.images.store import LOCK, Image, ImageStore
from emberbox.machines.contract import Death, Snapshot
from emberbox.models import TerminationReason
from emberbox.sandbox.durability.records import SandboxRecords, Suspended
from emberbox.sandbox.durability.registry import SandboxRegistry
from emberbox.sandbox.instance import SandboxInstance, SandboxState
from emberbox.sandbox.options import SandboxOptions
from emberbox.sandbox.pool.pool import MachinePool, PoolOptions
from emberbox.sandbox.pool.state import Rules
from emberbox.sandbox.pool.templates import TemplateSnapshots
from emberbox.sandbox.snapshots.scratch import SnapshotScratch
from emberbox.sandbox.snapshots.service import SnapshotService
from emberbox.sandbox.snapshots.store import SnapshotStore
from emberbox.sandbox.starter import NewSandbox, Starter, StartRules
from machine_fakes import FakeFactory, FakeMachine
from snapshot_fakes import make_image, make_node

CRASH = Death(TerminationReason.CRASHED, "it crashed")


@dataclass
class World:
    image: Image
    folder: Path
    factory: FakeFactory
    pool: MachinePool
    templates: TemplateSnapshots
    snapshots: SnapshotService
    registry: SandboxRegistry
    records: SandboxRecords
    starter: Starter

    def snapshot(self) -> Snapshot:
        return make_node(self.image, self.folder).snapshot

    async def start(self, agent_id: str = "alice", **options: Any) -> SandboxInstance:
        return await self.starter.start(
            NewSandbox.copy_of(self.snapshot(), SandboxOptions(agent_id=agent_id, **options))
        )

    def places(self) -> int:
        return sum(status.in_use for status in self.pool.status())

    def image_is_held(self) -> bool:
        fd = os.open(self.image.directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def recorded(self) -> list[str]:
        return [record.sandbox_id for record in self.registry.records()]

    def nothing_held(self) -> bool:
        return (self.starter.instances(), self.places(), self.image_is_held(), self.recorded()) == ([], 0, False, [])


AT_ONCE = 3


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    settings = load_settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state")
    registry = SandboxRegistry(tmp_path / "state" / "sandboxes")
    registry.open()
    store = SnapshotStore(tmp_path / "state" / "snapshots", ImageStore(settings), lambda: "fake 1")
    templates = TemplateSnapshots(tmp_path / "templates", "fake", "fake 1")
    factory: Any = FakeFactory()
    pool = MachinePool(factory, templates, PoolOptions(Rules(size=0)), available=lambda: None)
    snapshots = SnapshotService(pool, SnapshotScratch(tmp_path / "scratch"), store)
    records = SandboxRecords(registry, snapshots)
    starter = Starter(pool, templates, snapshots, records, StartRules(15, 2, 5, at_once=AT_ONCE))
    yield World(
        make_image(settings), tmp_path / "made", factory, pool, templates, snapshots, registry, records, starter
    )
    await asyncio.gather(pool.close(), *(instance.kill() for instance in starter.instances()))
    registry.close()


async def test_a_live_one_holds_what_it_needs_until_it_is_killed(world: World) -> None:
    sandbox = await world.start()
    assert (world.starter.find(sandbox.id), world.places(), world.image_is_held()) == (sandbox, 1, True)
    assert world.recorded() == [sandbox.id]
    assert world.factory.machines[0].survives
    await sandbox.kill()
    assert world.starter.find(sandbox.id) is None
    assert world.nothing_held()


async def test_one_whose_machine_dies_lets_go_of_it_as_well(world: World) -> None:
    sandbox = await world.start()
    world.factory.machines[0].die(CRASH)
    await sandbox.settled()
    assert sandbox.state is SandboxState.CLOSED
    assert world.nothing_held()


ERRORS = [VmNotAvailable("no"), ExecutionTimeout("slow"), OSError(28, "full")]


@pytest.mark.parametrize("error", ERRORS, ids=[type(error).__name__ for error in ERRORS])
@pytest.mark.parametrize("when", ["fork", "wake"])
async def test_a_start_that_fails_holds_nothing(world: World, error: Exception, when: str) -> None:
    if when == "fork":
        world.factory.failures = [error] * 3
    else:
        world.factory.prepared = lambda machine: setattr(machine.channel, "error", error)
    for _ in range(3):  # more often than the agent may have sandboxes
        with pytest.raises(type(error)):
            await world.start()
        assert world.nothing_held()
    assert all(machine.killed for machine in world.factory.machines)


async def test_only_so_many_start_at_the_same_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others begin when one of these has started, or has failed."""
    under_way, most = 0, 0
    fork = world.factory.fork

    async def slow_fork(*args: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(5):
            await asyncio.sleep(0)
        under_way -= 1
        return await fork(*args)

    monkeypatch.setattr(world.factory, "fork", slow_fork)
    world.factory.failures = [OSError(28, "full")]
    agents = [f"agent-{number}" for number in range(9)]
    done = await asyncio.gather(*(world.start(agent_id=agent) for agent in agents), return_exceptions=True)
    assert sum(isinstance(one, OSError) for one in done) == 1
    assert len(world.starter.instances()) == 8
    assert most == AT_ONCE


async def test_a_start_that_is_cancelled_holds_nothing(world: World) -> None:
    starting: list[asyncio.Task[SandboxInstance]] = []
    world.factory.prepared = lambda _: starting[0].cancel()
    starting.append(asyncio.create_task(world.start()))
    with pytest.raises(asyncio.CancelledError):
        await starting[0]
    assert world.factory.machines[0].killed
    assert world.nothing_held()


async def test_one_that_starts_is_not_found_yet(world: World) -> None:
    found: list[object] = []
    world.factory.prepared = lambda _: found.extend([*world.starter.instances(), world.starter.find("sb-1")])
    await world.start(sandbox_id="sb-1")
    assert found == [None]
    assert world.starter.find("sb-1") is not None


async def test_one_that_dies_while_it_is_written_down_leaves_no_record(world: World) -> None:
    """A restart would look for it."""

    async def killed() -> None:
        await world.starter.instances()[0].kill()

    tasks: list[asyncio.Task[None]] = []

    def prepare(machine: FakeMachine) -> None:
        machine.on_survive = lambda: tasks.append(asyncio.create_task(killed()))

    world.factory.prepared = prepare
    with pytest.raises(VmNotAvailable, match="is gone"):
        await world.start()
    await asyncio.gather(*tasks)
    assert world.nothing_held()


@pytest.mark.parametrize("when", ["fork", "wake"])
async def test_where_the_templates_snapshot_fails_it_boots_and_keeps_its_place(
    world: World, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    template = world.snapshot()
    monkeypatch.setattr(world.templates, "find", lambda *_: template if template.directory.exists() else None)
    damaged = VmNotAvailable("It is damaged.", retryable=False)
    world.factory.failures = [damaged] if when == "fork" else []

    def prepare(machine: FakeMachine) -> None:
        machine.checkpoint_fails = True  # it boots nevertheless
        if when == "wake" and len(world.factory.machines) == 1:
            machine.channel.error = damaged

    world.factory.prepared = prepare
    sandbox = await world.starter.start(NewSandbox(world.image, world.image.limits))
    assert world.factory.forked == [template.directory.name]
    assert not template.directory.exists(), "it is of no use to others either"
    assert world.factory.machines[-1].channel.asked[0] == "configure", "it was booted"
    assert [machine.killed for machine in world.factory.machines[:-1]] == [True] * (when == "wake")
    assert (world.places(), world.image_is_held()) == (1, True)
    await sandbox.kill()
    assert world.nothing_held()


async def test_a_copy_to_read_in_is_none_of_the_agents_and_waits_for_no_place(world: World) -> None:
    first, _ = await world.start(), await world.start()
    new = NewSandbox.copy_of(world.snapshot(), SandboxOptions(agent_id="alice"), 600, counted=False)
    copy = await world.starter.start(new)
    assert world.places() == 2
    assert copy.id not in world.recorded()
    await first.kill()
    await world.start()
    await copy.kill()
    assert world.places() == 2


async def test_an_agent_has_each_sandbox_once_whatever_becomes_of_it(world: World) -> None:
    first = await world.start()
    record = world.records.record_of(first, machine=None)
    world.records.suspend(Suspended(record, world.snapshots.tree(first)))  # its instance is just about to end
    await world.start()
    with pytest.raises(NoCapacity, match="Agent 'alice' has 2 sandboxes already"):
        await world.start()
    await first.suspend()
    assert world.recorded().count(first.id) == 1
    with pytest.raises(NoCapacity, match="Agent 'alice' has 2 sandboxes already"):
        await world.start()
    again = await world.starter.start(NewSandbox.copy_of(world.snapshot(), record.options()))
    assert again.id == first.id, "it is one of the two"
    await world.start("bob")


async def test_the_local_user_has_as_many_as_there_is_room_for(world: World) -> None:
    for _ in range(3):
        await world.start("local")
    assert world.places() == 3


async def test_the_end_of_one_that_went_before_does_not_take_what_its_successor_holds(world: World) -> None:
    """A suspended sandbox has the same id when it is woken."""
    first = await world.start()
    record = world.records.record_of(first, machine=None)
    world.records.suspend(Suspended(record, world.snapshots.tree(first)))
    await first.suspend()
    second = await world.starter.start(NewSandbox.copy_of(world.snapshot(), record.options()))
    world.records.resumed(second.id)
    await first.kill()
    assert world.starter.find(first.id) is second
    assert (world.places(), world.image_is_held(), world.recorded()) == (1, True, [second.id])


async def test_one_whose_machine_dies_goes_on_from_its_last_snapshot(world: World) -> None:
    sandbox = await world.start()
    node = await world.snapshots.snapshot(sandbox)
    sandbox.began("ex-1", None)
    world.factory.machines[0].die(CRASH)
    await sandbox.settled()
    assert (sandbox.state, sandbox.lineage.executions) == (SandboxState.READY, ())
    assert sandbox.lineage.is_at(node.moment), "the snapshot is one of now"
    told = sandbox.tell_restoration()
    assert told is not None
    assert (told.snapshot_id, told.lost, told.death) == (node.info.snapshot_id, ["ex-1"], CRASH)
    assert (world.starter.instances(), world.places()) == ([sandbox], 1)


# --- what is lost -----------------------------------------------------------------------------------------------------


async def _lose(world: World, *executions: str) -> SandboxInstance:
    """An agent's own sandbox, in which these were run, dies without a snapshot."""
    sandbox = await world.start(own=True)
    for execution in executions:
        sandbox.began(execution, None)
    machine: FakeMachine = sandbox.machine  # type: ignore[assignment]
    machine.die(CRASH)
    await sandbox.settled()
    return sandbox


async def test_in_the_next_sandbox_of_an_agent_its_losses_are_told(world: World) -> None:
    first = await _lose(world, "a")
    assert world.recorded() == [first.id], "until that is written down elsewhere"
    assert (await world.start(own=True, agent_id="bob")).lineage.restoration is None
    assert (await world.start()).lineage.restoration is None, "not one that was asked for by name"
    second = await _lose(world, "b")
    third = await world.start(own=True)
    assert third.lineage.restoration is not None
    assert (third.lineage.restoration.snapshot_id, third.lineage.restoration.lost) == (None, ["a", "b"])
    assert {first.id, second.id}.isdisjoint(world.recorded())
    assert [r.untold.lost for r in world.registry.records() if r.untold] == [["a", "b"]]


async def test_a_sandbox_in_which_nothing_was_run_is_no_loss(world: World) -> None:
    await _lose(world)
    assert world.nothing_held()
    assert (await world.start(own=True)).lineage.restoration is None


async def test_where_the_next_one_cannot_be_written_down_another_tells_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await _lose(world, "a")
    with monkeypatch.context() as full:
        full.setattr(world.registry, "write", _refuses)
        with pytest.raises(SnapshotFailed, match="No space left"):
            await world.start(own=True)
    assert world.recorded() == [first.id]
    again = await world.start(own=True)
    assert again.lineage.restoration is not None
    assert again.lineage.restoration.lost == ["a"]


def _refuses(_: object) -> None:
    raise OSError(28, "No space left on device")
