"""What a keeper decides: which snapshot to go on from, who is idle, what is found again. Machines are made up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emberbox import Settings, load_settings
from emberbox.errors import (
    ExecutionTimeout,
    NoCapacity,
    SessionNotFound,
    SnapshotFailed,
    VmExecutionError,
    VmNotAvailable,
)
from emberbox.images.store import Image, ImageStore
from emberbox.sandbox.durability.registry import SandboxRecord, SandboxRegistry
from emberbox.sandbox.durability.service import Durability, Suspended, idle, reap_idle
from emberbox.sandbox.instance import SandboxInstance, SandboxState
from emberbox.sandbox.options import SandboxOptions
from emberbox.sandbox.snapshots.service import SnapshotQuota, SnapshotService
from emberbox.sandbox.snapshots.store import SnapshotStore
from emberbox.sandbox.snapshots.tree import Node
from snapshot_fakes import make_image, make_node, make_record


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state")


@pytest.fixture
def image(settings: Settings) -> Image:
    return make_image(settings)


# --- which snapshot ---------------------------------------------------------------------------------------------------


def suspended(image: Image, folder: Path, head: int | None, path: str, *paths: str) -> tuple[Suspended, list[Node]]:
    """A sandbox with these executions, and snapshots with those; `head` is an index."""
    nodes = [make_node(image, folder, path=tuple(p)) for p in paths]
    name = None if head is None else nodes[head].info.snapshot_id
    return Suspended(make_record(image, path=list(path), head=name), nodes), nodes


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


# --- who is idle ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class User:
    last_used: float
    idle_seconds: float | None
    runner: Any

    def used(self, now: float) -> None:
        self.last_used = now


def user(*, last_used: float = 0, seconds: float | None = 10, busy: bool = False) -> Any:
    return User(last_used, seconds, SimpleNamespace(busy=busy))


def test_idle_is_what_nobody_used_for_its_time() -> None:
    sessions = [user(), user(last_used=1), user(seconds=None), user(busy=True)]
    assert idle(sessions, 9.9) == []
    assert idle(sessions, 10) == [sessions[0]]
    assert idle(sessions, 1000) == sessions[:2]


def test_work_that_took_long_is_use_up_to_its_end() -> None:
    instance = user(busy=True)
    assert idle([instance], 1000) == []
    instance.runner.busy = False
    assert idle([instance], 1009) == []
    assert idle([instance], 1010) == [instance]


async def test_one_that_cannot_be_put_aside_does_not_spare_the_others() -> None:
    sessions = [user(), user(), user()]
    errors: list[Exception | None] = [SnapshotFailed("full"), OSError(28, "full"), None]
    ended = asyncio.Event()
    expired = 0

    async def end(instance: Any) -> None:
        error = errors[sessions.index(instance)]
        if error is not None:
            raise error
        ended.set()

    async def forget_expired() -> None:
        nonlocal expired
        expired += 1

    reaper = asyncio.create_task(reap_idle(lambda: sessions, end, 0, forget_expired))
    async with asyncio.timeout(30):
        await ended.wait()
    reaper.cancel()
    assert expired


# --- found again ------------------------------------------------------------------------------------------------------


@dataclass
class FakeHost:
    """Makes sessions of nothing, or fails as told."""

    snapshots: SnapshotService
    image: Image
    failures: list[VmExecutionError] = field(default_factory=list)
    adoption: VmExecutionError | OSError | None = None
    live: list[SandboxInstance] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    durability: Durability = field(init=False)

    def instances(self) -> list[SandboxInstance]:
        return self.live

    async def reopen(self, record: SandboxRecord, node: Node) -> SandboxInstance:
        self.tried.append(node.info.snapshot_id)
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        return self._session(record, "gv-new")

    async def adopt(self, record: SandboxRecord, machine: Any) -> SandboxInstance:
        if self.adoption is not None:
            raise self.adoption
        return self._session(record, machine.id)

    def _session(self, record: SandboxRecord, machine: str) -> SandboxInstance:
        nothing: Any = None
        instance = SandboxInstance(
            SimpleNamespace(id=machine),
            self.image,
            record.limits,
            SandboxOptions(record.envs, record.metadata, record.agent_id, record.sandbox_id),
            on_closed=nothing,
            revive=nothing,
            on_changed=self.durability.changed,
        )
        instance.state = SandboxState.READY
        self.live.append(instance)
        return instance


class FakeMachine:
    def __init__(self) -> None:
        self.id = "gv-old"
        self.killed = False

    async def kill(self) -> None:
        self.killed = True


@dataclass
class Place:
    """A keeper in a state directory."""

    settings: Settings
    image: Image
    ledger: SandboxRegistry
    store: SnapshotStore
    host: FakeHost
    durability: Durability

    def snapshot(self, path: str, sandbox_id: str = "sb-1", **fields: Any) -> str:
        node = make_node(self.image, self.store.folder, sandbox_id=sandbox_id, path=tuple(path), **fields)
        self.store.seal(node, {}, {})
        return node.info.snapshot_id

    def files(self) -> set[str]:
        return {path.name for path in self.store.folder.iterdir()} if self.store.folder.exists() else set()

    def recorded(self) -> set[str]:
        return {record.sandbox_id for record in self.ledger.records()}


@pytest.fixture
def place(settings: Settings, image: Image) -> Iterator[Place]:
    ledger = SandboxRegistry(settings.state_dir / "sandboxes")
    ledger.open()
    store = SnapshotStore(settings.state_dir / "snapshots", ImageStore(settings), lambda: "gvisor 1")
    nothing: Any = None
    snapshots = SnapshotService(nothing, nothing, lambda: settings.state_dir, store, SnapshotQuota(), nothing)
    host = FakeHost(snapshots, image)
    host.durability = Durability(host, ledger)
    yield Place(settings, image, ledger, store, host, host.durability)
    ledger.close()


async def test_a_sandbox_with_a_snapshot_sleeps_until_somebody_asks(place: Place) -> None:
    head = place.snapshot("ab")
    place.ledger.write(make_record(place.image, path=["a", "b", "c"], head=head, own=True, idle_seconds=5, machine="x"))
    (found,) = await place.durability.recover({})
    assert (found.how, found.snapshot_id, found.lost_executions) == ("dormant", head, ["c"])
    assert [record.sandbox_id for record in place.durability.suspended] == ["sb-1"]
    first, second = await asyncio.gather(place.durability.wake("sb-1"), place.durability.wake("sb-1"))
    assert first is second
    assert place.host.tried == [head], "those who ask at once share it"
    assert (first.lineage.executions, first.own, first.idle_seconds) == (("a", "b"), True, 5)
    assert first.recovered is not None
    assert (first.recovered.how, first.recovered.lost_executions) == ("restored", ["c"])
    restoration = first.tell_restoration()
    assert restoration is not None
    assert (restoration.snapshot_id, restoration.lost) == (head, ["c"])
    assert first.tell_restoration() is None, "it is told once"
    (record,) = place.ledger.records()
    assert (record.machine, record.path, record.own, record.idle_seconds) == ("gv-new", ["a", "b"], True, 5)
    with pytest.raises(SessionNotFound):
        await place.durability.wake("sb-1")


async def test_a_machine_that_runs_on_is_taken_over(place: Place) -> None:
    head = place.snapshot("a")
    place.ledger.write(make_record(place.image, path=["a", "b"], head=head, machine="gv-old", good=False))
    machine, stray = FakeMachine(), FakeMachine()
    stray.id = "gv-stray"
    (found,) = await place.durability.recover({"gv-old": machine, "gv-stray": stray})  # type: ignore[dict-item]
    assert (found.how, found.lost_executions) == ("adopted", [])
    (instance,) = place.host.live
    assert instance.lineage.executions == ("a", "b")
    assert (instance.lineage.last_succeeded, instance.recovered) == (False, found)
    now = place.host.snapshots.tree(instance).current()
    assert now is not None
    assert not instance.lineage.is_at(now.moment), "the execution after that snapshot is no part of it"
    assert (machine.killed, stray.killed) == (False, True)
    assert place.recorded() == {"sb-1"}


@pytest.mark.parametrize("error", [ExecutionTimeout("it does not answer"), OSError(2, "no such file")])
async def test_where_a_machine_does_not_answer_the_snapshot_does(place: Place, error: Any) -> None:
    head = place.snapshot("a")
    place.ledger.write(make_record(place.image, path=["a"], head=head, machine="gv-old"))
    place.host.adoption = error
    machine = FakeMachine()
    (found,) = await place.durability.recover({"gv-old": machine})  # type: ignore[dict-item]
    assert found.how == "dormant"
    assert machine.killed
    assert place.durability.closed("sb-1") is False, "the end of that attempt is not the end of the sandbox"
    assert place.recorded() == {"sb-1"}
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


async def test_an_unreadable_record_costs_no_snapshot(place: Place) -> None:
    mine, other = place.snapshot("a", "sb-1"), place.snapshot("a", "sb-2")
    place.ledger.write(make_record(place.image, "sb-1"))
    (place.settings.state_dir / "sandboxes" / "sb-2.json").write_text("{")
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
    place.host.failures = [DAMAGED]
    instance = await place.durability.wake("sb-1")
    assert place.host.tried == [head, older]
    of_now = [
        n.info.snapshot_id for n in place.host.snapshots.tree(instance).nodes() if instance.lineage.is_at(n.moment)
    ]
    assert of_now == [older]
    assert instance.recovered is not None
    assert (instance.recovered.snapshot_id, instance.recovered.lost_executions) == (older, ["b"])


@pytest.mark.parametrize("error", [NoCapacity("full"), ExecutionTimeout("slow"), VmNotAvailable("busy")])
async def test_a_host_that_is_busy_is_no_reason_to_lose_anything(place: Place, error: VmExecutionError) -> None:
    _, head = place.snapshot("a"), place.snapshot("ab")
    place.ledger.write(make_record(place.image, path=["a", "b"], head=head))
    await place.durability.recover({})
    place.host.failures = [error]
    with pytest.raises(type(error)):
        await place.durability.wake("sb-1")
    assert (await place.durability.wake("sb-1")).lineage.executions == ("a", "b")
    assert place.host.tried == [head, head]


async def test_when_all_are_damaged_it_says_so_and_keeps_them(place: Place) -> None:
    names = {place.snapshot("a"), place.snapshot("ab")}
    place.ledger.write(make_record(place.image, path=["a", "b"]))
    await place.durability.recover({})
    place.host.failures = [DAMAGED, DAMAGED]
    with pytest.raises(SnapshotFailed, match=r"Sandbox sb-1 cannot go on: pages\.img is damaged"):
        await place.durability.wake("sb-1")
    assert place.files() == names
    assert place.recorded() == {"sb-1"}


async def test_what_has_expired_is_not_woken(place: Place) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    place.snapshot("a")
    place.ledger.write(make_record(place.image, path=["a"], end_at=past, machine="gv-old"))
    machine = FakeMachine()
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
    place.durability._suspended["sb-1"].record.end_at = datetime.now(UTC) - timedelta(seconds=1)
    assert [record.sandbox_id for record in place.durability.suspended] == ["sb-2"]
    with pytest.raises(SessionNotFound):
        await place.durability.wake("sb-1")
    assert (place.files(), place.recorded()) == ({other}, {"sb-2"})
    instance = await place.durability.wake("sb-2")
    assert instance.end_at is not None
    assert abs((instance.end_at - soon).total_seconds()) < 60


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
    with pytest.raises(SnapshotFailed, match=r"sb-9 cannot be written down: No space left") as error:
        place.durability.opened(place.host._session(make_record(place.image, "sb-9"), "gv-9"))
    assert "state_dir" in error.value.remediation


async def test_what_an_agent_has_asleep_counts(place: Place) -> None:
    for name in ("sb-1", "sb-2"):
        place.snapshot("a", name)
        place.ledger.write(make_record(place.image, name))
    await place.durability.recover({})
    assert (place.durability.suspended_count("alice"), place.durability.suspended_count("bob")) == (2, 0)
    assert place.durability.snapshot_bytes("alice") > place.durability.snapshot_bytes("bob") == 0
