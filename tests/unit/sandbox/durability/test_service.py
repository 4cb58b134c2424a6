"""What becomes of durable sandboxes: which snapshot they go on from, what is found again. Machines are made up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from emberbox import Settings
from emberbox.errors import (
    ExecutionTimeout,
    NoCapacity,
    SessionNotFound,
    SnapshotFailed,
    VmExecutionError,
    VmNotAvailable,
)
from emberbox.images.store import Image, ImageStore
from emberbox.sandbox.durability.records import SandboxRecords, Suspended
from emberbox.sandbox.durability.registry import SandboxRegistry
from emberbox.sandbox.durability.service import Durability
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.options import SandboxOptions
from emberbox.sandbox.pool.pool import MachinePool, PoolOptions
from emberbox.sandbox.pool.state import Rules
from emberbox.sandbox.pool.templates import TemplateSnapshots
from emberbox.sandbox.snapshots.scratch import SnapshotScratch
from emberbox.sandbox.snapshots.service import SnapshotService
from emberbox.sandbox.snapshots.store import SnapshotStore
from emberbox.sandbox.snapshots.tree import Node, SnapshotTree
from emberbox.sandbox.starter import NewSandbox, Starter, StartRules
from machine_fakes import FakeFactory, FakeMachine
from snapshot_fakes import make_node, make_record

# --- which snapshot ---------------------------------------------------------------------------------------------------


def suspended(image: Image, folder: Path, head: int | None, path: str, *paths: str) -> tuple[Suspended, list[Node]]:
    """A sandbox with these executions, and snapshots with those; `head` is an index."""
    nodes = [make_node(image, folder, path=tuple(p)) for p in paths]
    name = None if head is None else nodes[head].info.snapshot_id
    tree = SnapshotTree("sb-1", "alice", folder, 50, durable=True)
    tree.take_back(nodes, name)
    return Suspended(make_record(image, path=list(path), head=name), tree), nodes


@pytest.mark.parametrize(
    ("head", "path", "paths", "order"),
    [
        (1, "ab", ["a", "ab"], [1, 0]),
        (0, "ab", ["a", "ab"], [1, 0]),  # finished just before the end: the record still names the one before it
        (0, "a", ["a", "ab"], [0, 1]),  # rolled back: the newer one is another branch
        (0, "a", ["a", "a"], [0, 1]),  # rolled back to before something that was no execution
        (0, "abc", ["a", "ab", "b"], [0, 2, 1]),
        (None, "abc", ["a", "ab"], [1, 0]),
        (None, "", [], []),
    ],
)
def test_the_best_snapshot_comes_first(
    image: Image, tmp_path: Path, head: int | None, path: str, paths: list[str], order: list[int]
) -> None:
    sandbox, nodes = suspended(image, tmp_path, head, path, *paths)
    assert [nodes.index(node) for node in sandbox.best()] == order


@dataclass
class Place:
    """A state directory, and what keeps its sandboxes."""

    image: Image
    ledger: SandboxRegistry
    store: SnapshotStore
    factory: FakeFactory
    starter: Starter
    snapshots: SnapshotService
    records: SandboxRecords
    durability: Durability

    def snapshot(self, path: str, sandbox_id: str = "sb-1", **fields: Any) -> str:
        node = make_node(self.image, self.store.folder, sandbox_id=sandbox_id, path=tuple(path), **fields)
        self.store.seal(node, {}, {})
        return node.info.snapshot_id

    async def start(self) -> SandboxInstance:
        snapshot = make_node(self.image, self.store.folder.parent / "made").snapshot
        return await self.starter.start(NewSandbox.copy_of(snapshot, SandboxOptions()))

    def files(self) -> set[str]:
        return {path.name for path in self.store.folder.iterdir()} if self.store.folder.exists() else set()

    def recorded(self) -> set[str]:
        return {record.sandbox_id for record in self.ledger.records()}


@pytest.fixture
async def place(settings: Settings, image: Image) -> AsyncIterator[Place]:
    ledger = SandboxRegistry(settings.state_dir / "sandboxes")
    ledger.open()
    store = SnapshotStore(settings.state_dir / "snapshots", ImageStore(settings), lambda: "gvisor 1")
    templates = TemplateSnapshots(settings.cache_dir / "templates", "fake", "fake 1")
    factory: Any = FakeFactory()
    pool = MachinePool(factory, templates, PoolOptions(Rules(size=0)), available=lambda: None)
    snapshots = SnapshotService(pool, SnapshotScratch(settings.cache_dir / "snapshots"), store)
    records = SandboxRecords(ledger, snapshots)
    starter = Starter(pool, templates, snapshots, records, StartRules(15, agent_sandboxes=2, orphan_grace_seconds=5))
    durability = Durability(starter, snapshots, records)
    yield Place(image, ledger, store, factory, starter, snapshots, records, durability)
    await asyncio.gather(pool.close(), *(instance.kill() for instance in starter.instances()))
    ledger.close()


# --- suspended --------------------------------------------------------------------------------------------------------


async def test_its_snapshots_stay_as_they_were(place: Place) -> None:
    sandbox = await place.start()
    first = await place.snapshots.snapshot(sandbox, "first")
    sandbox.began("ex-1", None)
    other = await place.snapshots.snapshot(sandbox, "other")
    await place.snapshots.rollback(sandbox, first)
    await place.durability.suspend(sandbox)
    again = await place.durability.wake(sandbox.id)
    assert again is not sandbox
    tree = place.snapshots.tree(again)
    last = tree.current()
    assert last is not None
    assert tree.nodes() == [first, other, last]
    assert (last.info.kind, tree.parent(last), tree.parent(other), tree.parent(first)) == (
        "shutdown",
        first,
        first,
        None,
    )
    assert again.lineage.is_at(last.moment)
    assert await place.snapshots.rollback(again, other) == []
    assert again.lineage.executions == ("ex-1",)


async def test_one_that_is_killed_while_it_is_suspended_is_gone_for_good(place: Place) -> None:
    sandbox = await place.start()
    machine = place.factory.machines[0]
    machine.may_end.clear()
    kills: list[asyncio.Task[None]] = []
    machine.on_checkpoint = lambda: kills.append(asyncio.create_task(sandbox.kill()))
    with pytest.raises(VmNotAvailable, match="was killed meanwhile"):
        await place.durability.suspend(sandbox)
    machine.may_end.set()
    await asyncio.gather(*kills)
    assert (place.recorded(), place.files(), place.durability.suspended) == (set(), set(), [])


async def test_what_cannot_be_suspended_when_the_service_stops_is_told_of_by_the_next_one(place: Place) -> None:
    lost, killed = await place.start(), await place.start()
    for machine in place.factory.machines:
        machine.checkpoint_fails = True
    place.factory.machines[1].may_end.clear()
    kill = asyncio.create_task(killed.kill())
    await asyncio.sleep(0)  # it has begun
    await place.durability.suspend_all()
    place.factory.machines[1].may_end.set()
    await asyncio.gather(lost.kill(), kill)
    assert place.recorded() == {lost.id}, "one that a client has ended is none of them"


# --- found again ------------------------------------------------------------------------------------------------------


async def test_a_sandbox_with_a_snapshot_sleeps_until_somebody_asks(place: Place) -> None:
    head = place.snapshot("ab")
    place.ledger.write(make_record(place.image, path=["a", "b", "c"], head=head, own=True, idle_seconds=5, machine="x"))
    (found,) = await place.durability.recover({})
    assert (found.how, found.snapshot_id, found.lost_executions) == ("dormant", head, ["c"])
    assert [record.sandbox_id for record in place.durability.suspended] == ["sb-1"]
    first, second = await asyncio.gather(place.durability.wake("sb-1"), place.durability.wake("sb-1"))
    assert first is second
    assert place.factory.forked == [head], "those who ask at once share it"
    assert (first.lineage.executions, first.own, first.idle_seconds) == (("a", "b"), True, 5)
    assert first.recovered is not None
    assert (first.recovered.how, first.recovered.lost_executions) == ("restored", ["c"])
    restoration = first.tell_restoration()
    assert restoration is not None
    assert (restoration.snapshot_id, restoration.lost) == (head, ["c"])
    assert first.tell_restoration() is None, "it is told once"
    (record,) = place.ledger.records()
    assert (record.machine, record.path, record.own, record.idle_seconds) == ("fk-0", ["a", "b"], True, 5)
    with pytest.raises(SessionNotFound):
        await place.durability.wake("sb-1")


async def test_a_machine_that_runs_on_is_taken_over(place: Place) -> None:
    head = place.snapshot("a")
    place.ledger.write(make_record(place.image, path=["a", "b"], head=head, machine="gv-old", good=False))
    machine, stray = FakeMachine("gv-old"), FakeMachine("gv-stray")
    (found,) = await place.durability.recover({"gv-old": machine, "gv-stray": stray})  # type: ignore[dict-item]
    assert (found.how, found.lost_executions) == ("adopted", [])
    (instance,) = place.starter.instances()
    assert instance.lineage.executions == ("a", "b")
    assert (instance.lineage.last_succeeded, instance.recovered) == (False, found)
    now = place.snapshots.tree(instance).current()
    assert now is not None
    assert not instance.lineage.is_at(now.moment), "the execution after that snapshot is no part of it"
    assert (machine.killed, stray.killed) == (False, True)
    assert place.recorded() == {"sb-1"}


@pytest.mark.parametrize("error", [ExecutionTimeout("it does not answer"), OSError(2, "no such file")])
async def test_where_a_machine_does_not_answer_the_snapshot_does(place: Place, error: Any) -> None:
    head = place.snapshot("a")
    place.ledger.write(make_record(place.image, path=["a"], head=head, machine="gv-old"))
    machine = FakeMachine("gv-old")
    machine.channel.error = error
    (found,) = await place.durability.recover({"gv-old": machine})  # type: ignore[dict-item]
    assert found.how == "dormant"
    assert machine.killed
    assert place.recorded() == {"sb-1"}, "the end of that attempt is not the end of the sandbox"
    await place.durability.wake("sb-1")


async def test_without_anything_it_is_lost_and_forgotten(place: Place) -> None:
    place.ledger.write(make_record(place.image, path=["a"]))
    (found,) = await place.durability.recover({})
    assert (found.how, found.lost_executions) == ("lost", ["a"])
    assert place.recorded() == set()


async def test_snapshots_of_nobody_are_removed_and_those_that_are_kept_stay(place: Place) -> None:
    place.snapshot("a", "sb-gone")
    kept = place.snapshot("a", "sb-gone", kept=True)
    await place.durability.recover({})
    assert place.files() == {kept}


async def test_an_unreadable_record_costs_no_snapshot(place: Place, settings: Settings) -> None:
    mine, other = place.snapshot("a", "sb-1"), place.snapshot("a", "sb-2")
    place.ledger.write(make_record(place.image, "sb-1"))
    (settings.state_dir / "sandboxes" / "sb-2.json").write_text("{")
    for _ in range(2):
        found = await place.durability.recover({})
        assert [(r.sandbox_id, r.how) for r in found] == [("sb-1", "dormant")]
        assert place.files() == {mine, other}


async def test_snapshots_that_cannot_be_used_now_are_not_removed(place: Place) -> None:
    """Of another runsc, say: with that one they can be used again."""
    head = place.snapshot("a")
    place.ledger.write(make_record(place.image, path=["a"], head=head))
    place.store._identity = lambda: "gvisor 2"
    (found,) = await place.durability.recover({})
    assert (found.how, found.snapshot_id, found.lost_executions) == ("dormant", None, ["a"])
    with pytest.raises(SnapshotFailed, match=r"cannot go on: .* gvisor 1 on .*, and this is gvisor 2") as error:
        await place.durability.wake("sb-1")
    assert "kill_sandbox()" in error.value.remediation
    assert place.files() == {head}
    assert await place.durability.forget("sb-1")
    assert place.files() == set()


DAMAGED = VmNotAvailable("pages.img is damaged.", retryable=False)


async def test_a_damaged_snapshot_gives_way_to_the_one_before_it(place: Place) -> None:
    older, head = place.snapshot("a"), place.snapshot("ab")
    place.ledger.write(make_record(place.image, path=["a", "b"], head=head))
    await place.durability.recover({})
    place.factory.failures = [DAMAGED]
    instance = await place.durability.wake("sb-1")
    assert place.factory.forked == [head, older]
    of_now = [n.info.snapshot_id for n in place.snapshots.tree(instance).nodes() if instance.lineage.is_at(n.moment)]
    assert of_now == [older]
    assert instance.recovered is not None
    assert (instance.recovered.snapshot_id, instance.recovered.lost_executions) == (older, ["b"])


@pytest.mark.parametrize("error", [NoCapacity("full"), ExecutionTimeout("slow"), VmNotAvailable("busy")])
async def test_a_host_that_is_busy_is_no_reason_to_lose_anything(place: Place, error: VmExecutionError) -> None:
    _, head = place.snapshot("a"), place.snapshot("ab")
    place.ledger.write(make_record(place.image, path=["a", "b"], head=head))
    await place.durability.recover({})
    place.factory.failures = [error]
    with pytest.raises(type(error)):
        await place.durability.wake("sb-1")
    assert (await place.durability.wake("sb-1")).lineage.executions == ("a", "b")
    assert place.factory.forked == [head, head]


async def test_when_all_are_damaged_it_says_so_and_keeps_them(place: Place) -> None:
    names = {place.snapshot("a"), place.snapshot("ab")}
    place.ledger.write(make_record(place.image, path=["a", "b"]))
    await place.durability.recover({})
    place.factory.failures = [DAMAGED, DAMAGED]
    with pytest.raises(SnapshotFailed, match=r"Sandbox sb-1 cannot go on: pages\.img is damaged"):
        await place.durability.wake("sb-1")
    assert place.files() == names
    assert place.recorded() == {"sb-1"}


async def test_what_has_expired_is_not_woken(place: Place) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    place.snapshot("a")
    place.ledger.write(make_record(place.image, path=["a"], end_at=past, machine="gv-old"))
    machine = FakeMachine("gv-old")
    (found,) = await place.durability.recover({"gv-old": machine})  # type: ignore[dict-item]
    assert found.how == "lost"
    assert machine.killed
    assert (place.files(), place.recorded()) == (set(), set())


async def test_one_that_expires_while_it_sleeps_is_not_woken(place: Place) -> None:
    place.snapshot("a", "sb-1")
    other = place.snapshot("a", "sb-2")
    soon = datetime.now(UTC) + timedelta(hours=1)
    for name in ("sb-1", "sb-2"):
        place.ledger.write(make_record(place.image, name, end_at=soon))
    await place.durability.recover({})
    sleeper = place.records.find_suspended("sb-1")
    assert sleeper is not None
    place.records.suspend(replace(sleeper, ends=time.monotonic() - 1))
    assert [record.sandbox_id for record in place.durability.suspended] == ["sb-2"]
    with pytest.raises(SessionNotFound):
        await place.durability.wake("sb-1")
    assert (place.files(), place.recorded()) == ({other}, {"sb-2"})
    instance = await place.durability.wake("sb-2")
    assert instance.end_at is not None
    assert abs((instance.end_at - soon).total_seconds()) < 60


async def test_a_clock_of_the_host_that_jumps_ends_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=30)

    place.snapshot("a")
    place.ledger.write(make_record(place.image, path=["a"], end_at=datetime.now(UTC) + timedelta(hours=1)))
    await place.durability.recover({})
    monkeypatch.setattr("emberbox.sandbox.durability.records.datetime", Later)
    monkeypatch.setattr("emberbox.sandbox.instance.datetime", Later)
    await place.durability.forget_expired()
    instance = await place.durability.wake("sb-1")
    assert instance.ends is not None
    assert 3500 < instance.ends - asyncio.get_running_loop().time() < 3600
    await place.durability.suspend(instance)
    (record,) = place.durability.suspended
    assert record.sandbox_id == "sb-1"


async def test_one_that_is_killed_while_it_wakes_is_not_forgotten_halfway(place: Place) -> None:
    place.snapshot("a")
    place.ledger.write(make_record(place.image, path=["a"]))
    await place.durability.recover({})
    waking = asyncio.ensure_future(place.durability.wake("sb-1"))
    await asyncio.sleep(0)
    assert await place.durability.forget("sb-1") is False, "it has a machine now: that is to be killed"
    assert (await waking).id == "sb-1"
    assert place.recorded() == {"sb-1"}


async def test_a_full_disk_while_it_wakes_leaves_the_older_record(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = place.snapshot("a")
    place.ledger.write(make_record(place.image, path=["a"], head=head))
    await place.durability.recover({})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SandboxRegistry, "write", full)
    instance = await place.durability.wake("sb-1")
    assert instance.lineage.executions == ("a",)
    assert [record.head for record in place.ledger.records()] == [head]
    snapshot = make_node(place.image, place.store.folder).snapshot
    new = NewSandbox.copy_of(snapshot, SandboxOptions(agent_id="bob", sandbox_id="sb-9"))
    with pytest.raises(SnapshotFailed, match=r"sb-9 cannot be written down: No space left") as error:
        await place.starter.start(new)
    assert "state_dir" in error.value.remediation
    assert place.factory.machines[-1].killed
    assert place.starter.instances() == [instance], "one that cannot be written down is none"


async def test_what_an_agent_has_asleep_counts(place: Place) -> None:
    for name in ("sb-1", "sb-2"):
        place.snapshot("a", name)
        place.ledger.write(make_record(place.image, name))
    await place.durability.recover({})
    assert place.snapshots.agent_bytes("alice") > place.snapshots.agent_bytes("bob") == 0
    snapshot = make_node(place.image, place.store.folder).snapshot

    async def start(agent_id: str) -> str:
        return (await place.starter.start(NewSandbox.copy_of(snapshot, SandboxOptions(agent_id=agent_id)))).id

    with pytest.raises(NoCapacity, match="'alice' has 2 sandboxes already"):
        await start("alice")
    await start("bob")
    before = place.snapshots.agent_bytes("alice")
    await place.durability.wake("sb-1")
    assert place.snapshots.agent_bytes("alice") == before
    with pytest.raises(NoCapacity, match="'alice' has 2 sandboxes already"):
        await start("alice")
    await place.durability.forget("sb-2")
    assert place.snapshots.agent_bytes("alice") < before
    await start("alice")
