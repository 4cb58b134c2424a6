"""What a sandbox's state consists of, without any sandbox: single cases, and whatever order of events hypothesis thinks
of, beside a model that knows the state itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from emberbox.machines.contract import Death
from emberbox.models import TerminationReason
from emberbox.sandbox import lineage as module
from emberbox.sandbox.lineage import Lineage, SnapshotPoint

DEATH = Death(TerminationReason.CRASHED, "it died")


def ran(*executions: str, lineage: Lineage | None = None) -> Lineage:
    """After executions that succeeded."""
    lineage = lineage or Lineage()
    for execution in executions:
        lineage = lineage.began(execution).touched().finished(execution, succeeded=True)
    return lineage


def test_an_execution_belongs_to_the_state_from_its_beginning() -> None:
    lineage = ran("a").began("b", "snap-a")
    assert (lineage.executions, lineage.newest) == (("a", "b"), "b")
    assert lineage.snapshots_before == {"b": "snap-a"}
    assert [lineage.parent_of(name) for name in "ab"] == [None, "a"]
    assert not lineage.finished("b", succeeded=False).last_succeeded


def test_one_that_did_not_begin_leaves_no_trace() -> None:
    before = ran("a", "b")
    after = before.began("c").aborted("c")
    assert after == before
    assert after.is_at(before.moment), "a snapshot of before is still one of now"
    assert after.aborted("c") == before, "going back had removed it already"


def test_an_execution_that_was_undone_while_it_ran_says_nothing_about_the_state() -> None:
    good = ran("a")
    lineage = good.began("b").touched().went_back_to(good.moment).finished("b", succeeded=False)
    assert (lineage.executions, lineage.last_succeeded) == (("a",), True)


def test_going_back_names_what_it_undoes_and_ends_what_was_after() -> None:
    early = ran("a")
    failed = ran("b", lineage=early).began("c").finished("c", succeeded=False)
    assert failed.undone_by(early.moment) == ["b", "c"]
    back = failed.went_back_to(early.moment)
    assert (back.executions, back.last_succeeded) == (("a",), True)
    assert back.undone_by(failed.moment) == []
    forward = back.went_back_to(failed.moment)
    assert (forward.executions, forward.last_succeeded) == (("a", "b", "c"), False)
    assert forward.restoration is None, "whoever asked for it knows"


def test_who_rolled_back_finds_the_state_before_what_was_undone() -> None:
    early = ran("a")
    back = early.began("b", "snap-a").touched().went_back_to(early.moment)
    assert back.snapshots_before == {"b": "snap-a"}


def test_of_a_death_somebody_is_told_once() -> None:
    early = ran("a")
    lineage = ran("b", "c", lineage=early).restored(early.moment, "snap-a", DEATH)
    assert lineage.restoration is not None
    assert (lineage.restoration.snapshot_id, lineage.restoration.lost) == ("snap-a", ["b", "c"])
    assert lineage.restoration.death == DEATH
    assert ran("d", lineage=lineage).restoration == lineage.restoration, "nobody was told yet"
    assert lineage.told().restoration is None
    assert lineage.told().executions == ("a",)


def test_of_two_deaths_in_a_row_whoever_is_told_learns_of_both() -> None:
    early = ran("a")
    once = ran("b", lineage=early).restored(early.moment, "snap-a", DEATH)
    twice = once.restored(Lineage().moment, "snap-0", Death(TerminationReason.MEMORY, "memory"))
    assert twice.restoration is not None
    assert twice.restoration.lost == ["b", "a"]
    assert (twice.restoration.snapshot_id, twice.restoration.death.message) == ("snap-0", "memory")


def test_more_are_lost_than_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    early = ran("a")
    lineage = ran(*"bcdefg", lineage=early).restored(early.moment, "snap-a", DEATH)
    assert lineage.restoration is not None
    assert (lineage.restoration.lost, lineage.restoration.lost_count) == (["e", "f", "g"], 6)
    again = ran(*"hijk", lineage=lineage).restored(early.moment, "snap-a", DEATH)
    assert again.restoration is not None
    assert (again.restoration.lost, again.restoration.lost_count) == (["i", "j", "k"], 10)
    late = ran(*"bcdef", lineage=early)
    near = ran("g", lineage=late).restored(late.moment, "snap-f", DEATH)
    assert near.restoration is not None
    assert (near.restoration.lost, near.restoration.lost_count, near.total) == (["g"], 1, 6)


def test_the_past_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    lineage = Lineage()
    for name in "abcde":
        lineage = lineage.began(name, f"before {name}")
    assert lineage.executions == ("c", "d", "e")
    assert list(lineage.snapshots_before) == ["c", "d", "e"]
    for name in "fghij":
        lineage = lineage.began(name, f"before {name}").aborted(name)
    assert len(lineage.snapshots_before) == 3, "what never began takes no memory either"


def test_no_snapshot_of_an_earlier_process_is_one_of_now() -> None:
    taken = ran("a").moment
    stored = SnapshotPoint(taken.executions, taken.last_succeeded)
    adopted = Lineage.recorded(SnapshotPoint(("a",)))
    assert not adopted.is_at(stored), "files may have changed since"
    woken = adopted.went_back_to(stored)
    assert woken.is_at(woken.moment)
    assert not woken.is_at(stored), "nor is any other of that process"


@dataclass
class Taken:
    """A snapshot of the model."""

    moment: SnapshotPoint
    content: int
    past: list[str]
    good: bool


class AnyOrder(RuleBasedStateMachine):
    """What holds whatever happens: the lineage says of the state what the model knows of it."""

    @initialize()
    def begin(self) -> None:
        self.lineage = Lineage()
        self.content = 0
        """Another number for another state."""
        self.untold: list[str] = []
        """Lost with machines, and nobody was told."""
        self.contents = 0
        self.past: list[str] = []
        self.good = True
        self.snapshots: list[Taken] = []
        self.before: dict[str, int] = {}
        """The content before each execution of which a snapshot was there."""
        self.names = 0

    def change(self) -> None:
        self.contents += 1
        self.content = self.contents
        self.lineage = self.lineage.touched()

    def starting(self) -> str:
        self.names += 1
        name = f"ex-{self.names}"
        place = next((i for i, taken in enumerate(self.snapshots) if self.lineage.is_at(taken.moment)), None)
        self.lineage = self.lineage.began(name, None if place is None else str(place))
        if place is not None:
            self.before[name] = self.content
        return name

    @rule(succeeded=st.booleans())
    def execute(self, succeeded: bool) -> None:
        name = self.starting()
        self.change()
        self.past.append(name)
        self.good = succeeded
        self.lineage = self.lineage.finished(name, succeeded=succeeded)

    @rule()
    def refuse(self) -> None:
        self.lineage = self.lineage.aborted(self.starting())

    @rule()
    def write_a_file(self) -> None:
        self.change()

    @rule()
    def snapshot(self) -> None:
        self.snapshots.append(Taken(self.lineage.moment, self.content, list(self.past), self.good))

    def is_now(self, taken: Taken) -> list[str]:
        """The model goes back; the executions that this undoes."""
        undone = [name for name in self.past if name not in taken.past]
        self.content, self.past, self.good = taken.content, list(taken.past), taken.good
        return undone

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data(), running=st.booleans())
    def go_back(self, data: st.DataObject, running: bool) -> None:
        taken = data.draw(st.sampled_from(self.snapshots))
        name = None
        if running:
            name = self.starting()
            self.change()
            self.past.append(name)
        undone = self.lineage.undone_by(taken.moment)
        self.lineage = self.lineage.went_back_to(taken.moment)
        assert undone == self.is_now(taken)
        taken.moment = self.lineage.moment
        if name is not None:
            self.lineage = self.lineage.finished(name, succeeded=False)

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data(), told=st.booleans())
    def die(self, data: st.DataObject, told: bool) -> None:
        taken = data.draw(st.sampled_from(self.snapshots))
        self.lineage = self.lineage.restored(taken.moment, "snap", DEATH)
        assert self.lineage.restoration is not None
        self.untold += self.is_now(taken)
        assert self.lineage.restoration.lost == self.untold
        taken.moment = self.lineage.moment
        if told:
            self.lineage = self.lineage.told()
            self.untold = []

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def follow_a_branch(self, data: st.DataObject) -> None:
        """The copy has the past of its origin, and no snapshots."""
        taken = data.draw(st.sampled_from(self.snapshots))
        self.is_now(taken)
        self.lineage = Lineage.going_on_from(taken.moment)
        self.snapshots, self.before, self.untold = [], {}, []

    @rule(adopted=st.booleans(), data=st.data())
    def restart(self, adopted: bool, data: st.DataObject) -> None:
        """Another process finds it again, with its machine (to which more may have happened) or without."""
        moment = SnapshotPoint(self.lineage.executions, self.lineage.last_succeeded, count=self.lineage.count)
        self.lineage = Lineage.recorded(moment, self.lineage.restoration)
        self.before = {}
        for taken in self.snapshots:
            taken.moment = replace(taken.moment, revision=0)
        self.contents += 1
        self.content = self.contents
        if not adopted and self.snapshots:
            taken = data.draw(st.sampled_from(self.snapshots))
            self.lineage = self.lineage.went_back_to(taken.moment)
            self.is_now(taken)
            taken.moment = self.lineage.moment

    @invariant()
    def the_past_is_that_of_the_state(self) -> None:
        if hasattr(self, "lineage"):
            assert list(self.lineage.executions) == self.past
            assert len(set(self.past)) == len(self.past)
            assert self.lineage.last_succeeded == self.good

    @invariant()
    def a_snapshot_of_now_is_one_of_now(self) -> None:
        if hasattr(self, "lineage"):
            for taken in self.snapshots:
                assert list(taken.moment.executions) == taken.past
                if self.lineage.is_at(taken.moment):
                    assert (taken.content, taken.past, taken.good) == (self.content, self.past, self.good)

    @invariant()
    def before_an_execution_is_the_very_state_before_it(self) -> None:
        if hasattr(self, "lineage"):
            for name, place in self.lineage.snapshots_before.items():
                assert self.snapshots[int(place)].content == self.before[name]


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
