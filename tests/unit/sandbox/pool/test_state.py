"""The warm pool's decisions, without any machine: single cases, and whatever order of events hypothesis thinks of."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from emberbox.sandbox.pool.state import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    Admit,
    Closing,
    Created,
    Event,
    HandOut,
    Instruction,
    Kill,
    Kind,
    Lost,
    MemoryRead,
    Occupied,
    PoolState,
    Released,
    Rules,
    Start,
    Started,
    Take,
    Tick,
    Wanted,
    WarmUp,
)

KEYS = ("a", "b", "c")


class Pool:
    """A state with a clock, and starts that succeed when told to."""

    def __init__(self, **rules: float) -> None:
        self.state = PoolState(Rules(**{"starts_at_once": 10, "cooldown": 0.0, "blanks": 0, **rules}))  # type: ignore[arg-type]
        self.now = 0.0

    def __call__(self, event: Event) -> list[Instruction]:
        return self.state.handle(event, self.now)

    def starts(self, event: Event) -> list[int]:
        return [i.token for i in self(event) if isinstance(i, Start)]

    def filled(self, key: str, count: int) -> list[int]:
        tokens = self.starts(WarmUp(key, count))
        for token in tokens:
            self(Started(token))
        return tokens


def test_one_sandbox_alone_starts_no_pool() -> None:
    pool = Pool(size=2)
    assert pool(Wanted(1, "a")) == [Admit(1)]
    assert pool(Created("a")) == []
    assert len(pool.starts(Created("a"))) == 2


def test_without_a_size_nothing_is_pooled() -> None:
    pool = Pool(size=0, blanks=1)
    for event in (Created("a"), Created("a"), WarmUp("a"), Take(Kind.BLANK, "a")):
        assert [i for i in pool(event) if isinstance(i, Start)] == []
    assert not pool.state.needs_tick


def test_it_is_filled_again_below_the_low_mark_and_up_to_the_high_one() -> None:
    pool = Pool(size=4)
    tokens = pool.filled("a", 4)
    assert pool(Take(Kind.CLONE, "a")) == [HandOut(tokens[0])]
    assert pool(Take(Kind.CLONE, "a")) == [HandOut(tokens[1])]
    given, *starts = pool(Take(Kind.CLONE, "a"))
    assert given == HandOut(tokens[2])
    assert len(starts) == 3


def test_an_empty_pool_gives_nothing() -> None:
    assert Pool()(Take(Kind.CLONE, "a")) == [HandOut(None)]


def test_a_pool_of_one_is_filled_after_each() -> None:
    pool = Pool(size=1)
    (token,) = pool.filled("a", 1)
    assert [type(i) for i in pool(Take(Kind.CLONE, "a"))] == [HandOut, Start]
    assert pool(Lost(token)) == [], "what was given is no longer the pool's"


def test_blanks_are_made_only_for_those_who_copy() -> None:
    pool = Pool(size=1, blanks=2)
    assert pool(Take(Kind.BLANK, "a", more=False)) == [HandOut(None)]
    given, *starts = pool(Take(Kind.BLANK, "a"))
    assert given == HandOut(None)
    assert [i.kind for i in starts if isinstance(i, Start)] == [Kind.BLANK, Kind.BLANK]


def test_after_a_lease_there_is_calm_that_is_not_drawn_out() -> None:
    pool = Pool(size=3, cooldown=1.0)
    pool.filled("a", 3)
    pool.now = 10.0
    pool(Take(Kind.CLONE, "a"))
    pool.now = 10.9
    assert [type(i) for i in pool(Take(Kind.CLONE, "a"))] == [HandOut], "below the low mark, but calm"
    pool.now = 11.0
    assert len(pool.starts(Tick())) == 2


def test_old_machines_are_replaced_one_after_the_other() -> None:
    pool = Pool(size=3, max_age=100.0)
    first, second, _ = pool.filled("a", 3)
    pool.now = 99.0
    assert pool(Tick()) == []
    pool.now = 100.0
    killed, start = pool(Tick())
    assert killed == Kill(first)
    assert isinstance(start, Start)
    assert pool(Tick()) == [], "the next one when this one is replaced"
    pool(Started(start.token))
    assert pool(Tick())[0] == Kill(second)


def test_failures_pause_longer_and_longer_but_not_for_ever() -> None:
    pool = Pool(size=1)
    (token,) = pool.starts(WarmUp("a"))
    pauses = []
    for _ in range(12):
        began = pool.now
        assert pool(Lost(token)) == []
        while not (starts := pool.starts(Tick())):
            pool.now += FIRST_PAUSE / 2
        pauses.append(pool.now - began)
        (token,) = starts
    assert pauses[:4] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE


def test_a_machine_that_dies_while_it_waits_is_replaced() -> None:
    pool = Pool(size=4)
    tokens = pool.filled("a", 4)
    pool(Lost(tokens[2]))
    pool.now += FIRST_PAUSE
    assert len(pool.starts(Tick())) == 1


def test_without_a_template_there_is_no_pool_until_the_next_sandbox() -> None:
    pool = Pool(size=1)
    pool(Created("a"))
    (token,) = pool.starts(Created("a"))
    pool(Lost(token, parked=True))
    pool.now += 1000
    assert pool(Tick()) == []
    assert len(pool.starts(Created("a"))) == 1


def test_sandboxes_wait_in_the_order_in_which_they_came() -> None:
    pool = Pool(max_sandboxes=1)
    assert pool(Wanted(1, "a")) == [Admit(1)]
    for ticket in (2, 3, 4):
        assert pool(Wanted(ticket, "b")) == []
    assert pool(Released(3)) == [], "it gave up waiting"
    assert pool(Released(1)) == [Admit(2)]
    assert pool(Released(2)) == [Admit(4)]


def test_what_an_earlier_process_left_takes_a_place_whether_or_not_there_is_one() -> None:
    pool = Pool(size=1, max_sandboxes=2)
    (token,) = pool.filled("a", 1)
    assert pool(Occupied(1, "a")) == []
    assert pool(Occupied(2, "a")) == [Kill(token)], "the machines of the pool make room"
    assert pool(Occupied(3, "b")) == []
    assert pool.state.sandboxes == 3
    assert pool(Wanted(4, "a")) == []
    assert pool(Released(1)) == [], "as many as there may be are left"
    assert pool(Released(3)) == [Admit(4)]


def test_the_pool_makes_room_for_sandboxes() -> None:
    pool = Pool(size=3, max_sandboxes=3)
    tokens = pool.filled("a", 3)
    assert pool(Wanted(1, "b")) == [Admit(1), Kill(tokens[0])]
    assert pool(Released(1)) == []
    assert len(pool.starts(Take(Kind.CLONE, "a"))) == 2, "there is room again"


def test_a_sandbox_that_will_take_a_machine_does_not_cost_another() -> None:
    pool = Pool(size=3, max_sandboxes=3)
    tokens = pool.filled("a", 3)
    assert pool(Wanted(1, "a")) == [Admit(1)]
    assert pool(Take(Kind.CLONE, "a")) == [HandOut(tokens[0])]


def test_when_memory_is_short_nobody_starts_and_the_pool_gives_up_its_machines() -> None:
    pool = Pool(size=4)
    pool.filled("a", 4)
    assert [type(i) for i in pool(MemoryRead(enough=False))] == [Kill, Kill]
    assert pool(Wanted(1, "a")) == []
    while pool.state.machines:
        assert all(isinstance(i, Kill) for i in pool(MemoryRead(enough=False)))
    admitted, *starts = pool(MemoryRead(enough=True))
    assert admitted == Admit(1)
    assert len(starts) == 4


def test_only_so_many_kinds_are_pooled() -> None:
    pool = Pool(size=1)
    tokens = []
    for number in range(9):
        pool.now += 1
        tokens += pool.filled(f"k{number}", 1)
    assert pool.state.machines == 8
    assert pool(Take(Kind.CLONE, "k0")) == [HandOut(None)], "the one that was not asked for longest"


@pytest.mark.parametrize("late", [Started(1), Lost(1)])
def test_after_the_end_nothing_is_kept(late: Event) -> None:
    pool = Pool(size=1)
    assert pool.starts(WarmUp("a")) == [1]
    assert pool(Closing()) == [Kill(1)]
    assert pool(late) == ([Kill(1)] if isinstance(late, Started) else [])
    assert pool(Created("a")) == pool(WarmUp("a")) == pool(Wanted(1, "a")) == pool(Tick()) == []


class AnyOrder(RuleBasedStateMachine):
    """What holds whatever happens."""

    @initialize(
        size=st.integers(0, 5), most=st.integers(1, 8), at_once=st.integers(1, 4), cooldown=st.sampled_from([0.0, 0.1])
    )
    def begin(self, size: int, most: int, at_once: int, cooldown: float) -> None:
        self.bounds = Rules(size=size, max_sandboxes=most, starts_at_once=at_once, cooldown=cooldown, max_age=50.0)
        self.state = PoolState(self.bounds)
        self.now = 0.0
        self.starting: dict[int, Start] = {}
        self.ready: dict[int, Start] = {}
        self.gone: set[int] = set()
        self.highs: dict[str, int] = {}
        self.waiting: list[int] = []
        self.admitted: set[int] = set()
        self.tickets = 0
        self.enough = True

    def handle(self, event: Event, *, late: int | None = None) -> list[Instruction]:
        done = self.state.handle(event, self.now)
        for instruction in done:
            match instruction:
                case Kill(token) if token == late:
                    pass
                case Start(token):
                    assert token not in self.gone | set(self.starting) | set(self.ready)
                    assert self.enough
                    assert not self.state.closed
                    assert not self.waiting
                    self.starting[token] = instruction
                case Kill(token):
                    assert token in self.starting or token in self.ready
                    self.starting.pop(token, None)
                    self.ready.pop(token, None)
                    self.gone.add(token)
                case Admit(ticket):
                    assert self.waiting.pop(0) == ticket
                    assert self.enough
                    self.admitted.add(ticket)
                case HandOut():
                    assert isinstance(event, Take)
        return done

    @rule(key=st.sampled_from(KEYS))
    def wanted(self, key: str) -> None:
        self.tickets += 1
        if not self.state.closed:
            self.waiting.append(self.tickets)
        self.handle(Wanted(self.tickets, key))

    @rule(data=st.data())
    def released(self, data: st.DataObject) -> None:
        tickets = sorted({*self.waiting, *self.admitted})
        if tickets:
            ticket = data.draw(st.sampled_from(tickets))
            self.admitted.discard(ticket)
            if ticket in self.waiting:
                self.waiting.remove(ticket)
            self.handle(Released(ticket))

    @rule(key=st.sampled_from(KEYS))
    def created(self, key: str) -> None:
        self.highs.setdefault(key, self.bounds.size)
        self.handle(Created(key))

    @rule(key=st.sampled_from(KEYS), count=st.none() | st.integers(1, 6))
    def warm(self, key: str, count: int | None) -> None:
        self.highs[key] = max(self.highs.get(key, 0), self.bounds.size if count is None else count)
        self.handle(WarmUp(key, count))

    @rule(key=st.sampled_from(KEYS), kind=st.sampled_from(Kind), more=st.booleans())
    def take(self, key: str, kind: Kind, more: bool) -> None:
        (given,) = (i for i in self.handle(Take(kind, key, more)) if isinstance(i, HandOut))
        if given.token is not None:
            start = self.ready.pop(given.token)
            assert (start.kind, start.key) == (kind, key)
            self.gone.add(given.token)

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), well=st.booleans(), parked=st.booleans())
    def started(self, data: st.DataObject, well: bool, parked: bool) -> None:
        token = data.draw(st.sampled_from(sorted(self.starting)))
        start = self.starting.pop(token)
        if well:
            self.ready[token] = start
            self.handle(Started(token))
        else:
            self.gone.add(token)
            self.handle(Lost(token, parked))

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def died(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.ready)))
        del self.ready[token]
        self.gone.add(token)
        self.handle(Lost(token))

    @rule(token=st.integers(1, 50), well=st.booleans())
    def late_news(self, token: int, well: bool) -> None:
        """Of a machine that the pool has given up, while its start could not be stopped."""
        if token in self.gone:
            if well:
                assert Kill(token) in self.handle(Started(token), late=token)
            else:
                self.handle(Lost(token))

    @rule(enough=st.booleans())
    def memory(self, enough: bool) -> None:
        self.enough = enough
        self.handle(MemoryRead(enough))

    @rule(seconds=st.sampled_from([0.05, 1.0, 30.0, 200.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.handle(Tick())

    @rule()
    def settle(self) -> None:
        """Left alone, with memory, the pool fills and comes to rest."""
        self.enough = True
        self.handle(MemoryRead(enough=True))
        for _ in range(200):
            self.now += 0.2
            for token in sorted(self.starting):
                self.ready[token] = self.starting.pop(token)
                self.handle(Started(token))
            if not self.handle(Tick()) and not self.starting and self.now > self.state.cooldown_until:
                break
        if not self.state.closed:
            full = len(self.admitted) + len(self.ready) >= self.bounds.max_sandboxes
            for shelf in self.state.shelves.values():
                paused = self.now < shelf.paused_until
                assert full or paused or shelf.missing() is None

    @precondition(lambda self: self.tickets > 12)
    @rule()
    def close(self) -> None:
        self.waiting.clear()
        self.handle(Closing())
        assert not self.starting
        assert not self.ready

    @invariant()
    def the_books_agree(self) -> None:
        if hasattr(self, "state"):
            assert self.state.machines == len(self.starting) + len(self.ready)
            assert self.state.sandboxes == len(self.admitted)
            assert self.state.waiting == len(self.waiting)

    @invariant()
    def nothing_is_above_its_mark(self) -> None:
        if hasattr(self, "state"):
            assert len(self.admitted) <= self.bounds.max_sandboxes
            # one more for a moment: the machine that the sandbox just admitted is about to take
            assert len(self.admitted) + len(self.starting) + len(self.ready) <= self.bounds.max_sandboxes + 1
            assert len(self.starting) <= self.bounds.starts_at_once
            for key in KEYS:
                machines = [s for s in [*self.starting.values(), *self.ready.values()] if s.key == key]
                assert sum(s.kind is Kind.CLONE for s in machines) <= self.highs.get(key, 0)
                assert sum(s.kind is Kind.BLANK for s in machines) <= self.bounds.blanks

    @invariant()
    def nobody_waits_without_a_reason(self) -> None:
        if hasattr(self, "state") and self.waiting:
            assert not self.enough or len(self.admitted) == self.bounds.max_sandboxes


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
