"""Whose snapshots there are, and what they take together. Machines are made up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from emberbox import load_settings
from emberbox.errors import ExecutionTimeout, RollbackFailed, SnapshotFailed, VmNotAvailable
from emberbox.images.store import Image, ImageStore
from emberbox.machines.contract import Death
from emberbox.models import TerminationReason
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.options import SandboxOptions
from emberbox.sandbox.pool.pool import MachinePool, PoolOptions
from emberbox.sandbox.pool.state import Rules
from emberbox.sandbox.pool.templates import TemplateSnapshots
from emberbox.sandbox.snapshots.scratch import SnapshotScratch
from emberbox.sandbox.snapshots.service import SnapshotQuota, SnapshotService
from emberbox.sandbox.snapshots.store import SnapshotStore
from machine_fakes import FakeFactory, FakeMachine
from snapshot_fakes import make_image


@dataclass
class Events:
    """Counts how often a sandbox said that it had changed."""

    changes: int = 0

    def closed(self, instance: SandboxInstance) -> None:
        pass

    async def died(self, instance: SandboxInstance, death: Death) -> bool:
        return False

    def changed(self, instance: SandboxInstance) -> None:
        self.changes += 1


@dataclass
class Shelf:
    image: Image
    factory: FakeFactory
    snapshots: SnapshotService
    events: Events
    sandboxes: list[SandboxInstance]

    async def start(self, **options: Any) -> SandboxInstance:
        machine: Any = FakeMachine(f"fk-start-{len(self.sandboxes)}")
        wanted = SandboxOptions(**{"agent_id": "alice", "durable": False, **options})
        instance = SandboxInstance(machine, self.image, self.image.limits, wanted, self.events)
        await instance.start_copy(15)
        self.sandboxes.append(instance)
        return instance


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Shelf]:
    settings = load_settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state")
    store = SnapshotStore(tmp_path / "state" / "snapshots", ImageStore(settings), lambda: "fake 1")
    templates = TemplateSnapshots(tmp_path / "templates", "fake", "fake 1")
    factory: Any = FakeFactory()
    pool = MachinePool(factory, templates, PoolOptions(Rules(size=0)), available=lambda: None)
    scratch = SnapshotScratch(tmp_path / "scratch")
    quota = SnapshotQuota(per_sandbox=2, agent_bytes=18)  # three of a made-up machine
    made = Shelf(make_image(settings), factory, SnapshotService(pool, scratch, store, quota), Events(), [])
    yield made
    await asyncio.gather(pool.close(), *(sandbox.kill() for sandbox in made.sandboxes))
    scratch.release()


async def test_what_an_agent_has_is_one_sum_also_of_what_is_suspended(shelf: Shelf) -> None:
    first, second = await shelf.start(durable=True), await shelf.start()
    other = await shelf.start(agent_id="bob")
    for sandbox in (first, first, second):
        await shelf.snapshots.snapshot(sandbox)
    await first.suspend()
    assert (shelf.snapshots.agent_bytes("alice"), shelf.snapshots.agent_bytes("bob")) == (18, 0)
    with pytest.raises(SnapshotFailed, match="The snapshots of agent 'alice' take"):
        await shelf.snapshots.snapshot(second)
    await shelf.snapshots.snapshot(other)
    await shelf.snapshots.forget(first.id)
    await shelf.snapshots.snapshot(second)


@pytest.mark.parametrize("durable", [False, True])
async def test_kept_snapshots_count_when_their_sandbox_has_ended(shelf: Shelf, durable: bool) -> None:
    kept = []
    for _ in range(3):
        sandbox = await shelf.start(durable=durable)
        kept.append(await shelf.snapshots.snapshot(sandbox, keep=True))
        await sandbox.kill()
        shelf.snapshots.closed(sandbox.id)
    another, other = await shelf.start(durable=durable), await shelf.start(agent_id="bob")
    with pytest.raises(SnapshotFailed, match="The snapshots of agent 'alice' take"):
        await shelf.snapshots.snapshot(another)
    await shelf.snapshots.snapshot(other)
    shelf.snapshots.store.remove(kept[0].info.snapshot_id)
    await shelf.snapshots.snapshot(another)


async def test_a_handle_of_before_a_suspension_touches_no_snapshot(shelf: Shelf) -> None:
    """Else what it asks in vain would push out what the sandbox is to be woken with."""
    sandbox = await shelf.start(durable=True)
    nodes = [await shelf.snapshots.snapshot(sandbox, kind="post_execution") for _ in range(2)]
    tree = shelf.snapshots.tree(sandbox)
    await sandbox.suspend()
    with pytest.raises(VmNotAvailable, match="the sandbox was suspended"):
        await shelf.snapshots.snapshot(sandbox)
    assert tree.nodes() == nodes
    assert all(node.snapshot.directory.exists() for node in nodes)
    assert shelf.snapshots.tree(sandbox).nodes() == []
    again = await shelf.start(durable=True, sandbox_id=sandbox.id)
    assert shelf.snapshots.tree(again).nodes() == nodes


async def test_one_that_has_ended_has_none_and_is_not_remembered(shelf: Shelf) -> None:
    sandbox = await shelf.start()
    node = await shelf.snapshots.snapshot(sandbox)
    await sandbox.kill()
    shelf.snapshots.closed(sandbox.id)
    assert not node.snapshot.directory.exists()
    for _ in range(2):
        assert shelf.snapshots.tree(sandbox).nodes() == []
    assert shelf.snapshots._trees == {}


async def test_a_rollback_leaves_a_snapshot_of_now(shelf: Shelf) -> None:
    sandbox = await shelf.start()
    node = await shelf.snapshots.snapshot(sandbox)
    sandbox.began("ex-1", None)
    await shelf.snapshots.snapshot(sandbox)
    changes = shelf.events.changes
    assert await shelf.snapshots.rollback(sandbox, node) == ["ex-1"]
    assert sandbox.lineage.is_at(node.moment)
    assert shelf.snapshots.tree(sandbox).current() is node
    assert shelf.events.changes > changes, "it has itself written down"


async def test_a_rollback_that_fails_changes_nothing(shelf: Shelf) -> None:
    sandbox = await shelf.start()
    node = await shelf.snapshots.snapshot(sandbox)
    sandbox.began("ex-1", None)
    newer = await shelf.snapshots.snapshot(sandbox)
    shelf.factory.failures = [VmNotAvailable("It is damaged.")]
    with pytest.raises(RollbackFailed, match="could not be rolled back: It is damaged"):
        await shelf.snapshots.rollback(sandbox, node)
    assert sandbox.lineage.executions == ("ex-1",)
    assert shelf.snapshots.tree(sandbox).current() is newer


async def test_where_the_last_snapshot_fails_a_dead_one_goes_on_from_the_one_before_it(shelf: Shelf) -> None:
    sandbox = await shelf.start()
    node = await shelf.snapshots.snapshot(sandbox)
    await shelf.snapshots.snapshot(sandbox)
    shelf.factory.failures = [VmNotAvailable("It is damaged.", retryable=False)]
    death = Death(TerminationReason.CRASHED, "it crashed")
    assert await shelf.snapshots.revive(sandbox, death)
    assert len(shelf.factory.forked) == 2
    assert sandbox.lineage.is_at(node.moment)
    shelf.factory.failures = [VmNotAvailable("It is damaged.", retryable=False)]
    assert await shelf.snapshots.revive(sandbox, death) is False


@pytest.mark.parametrize(("durable", "goes_on"), [(False, True), (True, False)])
async def test_where_no_machine_comes_up_from_the_last_one(
    shelf: Shelf, durable: bool, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ends with this process takes the snapshot before it; a durable one can wait, and loses nothing more."""
    monkeypatch.setattr("emberbox.sandbox.snapshots.service._PAUSES", (0.0,))
    sandbox = await shelf.start(durable=durable)
    node = await shelf.snapshots.snapshot(sandbox)
    await shelf.snapshots.snapshot(sandbox)
    shelf.factory.failures = [ExecutionTimeout("It does not answer.")] * 2
    assert await shelf.snapshots.revive(sandbox, Death(TerminationReason.CRASHED, "it crashed")) is goes_on
    assert sandbox.lineage.is_at(node.moment) is goes_on
    assert len(shelf.factory.forked) == 2 + goes_on


async def test_what_kills_the_machine_in_its_place_may_pass(shelf: Shelf) -> None:
    """The same snapshot is tried again; an older one has less, and would be killed as well."""
    sandbox = await shelf.start()
    await shelf.snapshots.snapshot(sandbox)
    node = await shelf.snapshots.snapshot(sandbox)
    shelf.factory.failures = [VmNotAvailable("It was killed."), ExecutionTimeout("It does not answer.")]
    assert await shelf.snapshots.revive(sandbox, Death(TerminationReason.CRASHED, "it crashed"))
    assert len(shelf.factory.forked) == 3
    assert sandbox.lineage.is_at(node.moment)
