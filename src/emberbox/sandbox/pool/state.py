"""What the warm pool does next: a pure state machine. Events in, instructions out; no clock, no machine, no asyncio.

A machine is known by its token. It is started, becomes ready (a clone of its template, or an empty blank), and leaves
the pool once: given away, killed, or dead. A sandbox is known by its ticket, from its request until it has ended.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 60.0
"""Seconds without a start of the same key after a failure; doubled with each one."""
_FORGIVEN = 120.0
"""Seconds without a failure after which the next one counts as the first."""
_MOST_KEYS = 8
"""Kinds of sandboxes that are pooled at once; those that were asked for last. As many have template snapshots."""
_REMEMBERED = 256


class Kind(StrEnum):
    CLONE = "clone"
    """A machine that was forked from its template's snapshot and is stopped: a sandbox but for its environment."""
    BLANK = "blank"
    """A machine that waits to be filled with any snapshot of the same image and limits."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the pool may do. `size`: clones kept ready per key; 0: none, and no blanks. `max_age`: seconds."""

    size: int = 1
    blanks: int = 1
    max_age: float = 3600.0
    max_sandboxes: int = 200
    starts_at_once: int = 2
    cooldown: float = 0.1
    """Seconds in which nothing is started after a sandbox was: its first execution shall have the processors."""


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """A sandbox is to start; `Admit` follows when there is room for it."""

    ticket: int
    key: str


@dataclass(frozen=True, slots=True)
class Occupied:
    """A sandbox is there already, which an earlier process left: it takes a place, whether or not there is one."""

    ticket: int
    key: str


@dataclass(frozen=True, slots=True)
class Released:
    """A sandbox has ended, or nobody waits for it any more."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Created:
    """A sandbox was started: its template has a snapshot now, and there may be more of the same."""

    key: str


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Fill the pool of this key, up to `count` clones (None: the size of the rules)."""

    key: str
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Take:
    """A ready machine is asked for; `HandOut` follows at once. `more`: this key will want blanks again."""

    kind: Kind
    key: str
    more: bool = True


@dataclass(frozen=True, slots=True)
class Started:
    """A start has succeeded: the machine is ready."""

    token: int


@dataclass(frozen=True, slots=True)
class Lost:
    """A start has failed, or a ready machine has died. `parked`: it cannot succeed before the next `Created`."""

    token: int
    parked: bool = False


@dataclass(frozen=True, slots=True)
class MemoryRead:
    """Whether the host has memory for one more machine."""

    enough: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Closing:
    """Give up everything, and start nothing any more."""


Event = Wanted | Occupied | Released | Created | WarmUp | Take | Started | Lost | MemoryRead | Tick | Closing


# --- instructions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Start a machine; `Started` or `Lost` must follow."""

    token: int
    kind: Kind
    key: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill a machine of the pool, or break off its start; nothing need follow."""

    token: int


@dataclass(frozen=True, slots=True)
class Admit:
    """This sandbox may start."""

    ticket: int


@dataclass(frozen=True, slots=True)
class HandOut:
    """Hand this machine out; None: there is none."""

    token: int | None


Instruction = Start | Kill | Admit | HandOut


# --- the state --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Shelf:
    """The machines of one key."""

    key: str
    high: int
    pooled: bool = False
    """Clones are kept ready."""
    blank_mark: int = 0
    creations: int = 0
    in_use: int = 0
    used_at: float = 0.0
    filling: bool = False
    """The clones fell below the low mark, and are brought up to the high one."""
    ready: dict[Kind, dict[int, float]] = field(default_factory=lambda: {kind: {} for kind in Kind})
    """Tokens and since when, oldest first."""
    starting: dict[Kind, set[int]] = field(default_factory=lambda: {kind: set() for kind in Kind})
    failures: int = 0
    failed_at: float = -math.inf
    paused_until: float = -math.inf

    @property
    def low(self) -> int:
        return math.ceil(self.high / 2)

    def count(self, kind: Kind) -> int:
        """Ready ones and those that will be."""
        return len(self.ready[kind]) + len(self.starting[kind])

    def tokens(self) -> Iterator[int]:
        for kind in Kind:
            yield from self.ready[kind]
            yield from self.starting[kind]

    def missing(self) -> Kind | None:
        """What to start next; a blank is smaller than what waits for a clone, so it comes second."""
        if self.pooled:
            clones = self.count(Kind.CLONE)
            self.filling = clones < self.high and (self.filling or clones < self.low)
            if self.filling:
                return Kind.CLONE
        return Kind.BLANK if self.count(Kind.BLANK) < self.blank_mark else None

    def forget(self, token: int) -> Kind | None:
        """Take a token off the shelf; what it was, None if it is not on it."""
        for kind in Kind:
            if token in self.starting[kind] or token in self.ready[kind]:
                self.starting[kind].discard(token)
                self.ready[kind].pop(token, None)
                return kind
        return None

    def failed(self, now: float) -> None:
        self.failures = self.failures + 1 if now - self.failed_at < _FORGIVEN + LONGEST_PAUSE else 1
        self.failed_at = now
        self.paused_until = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.failures - 1, 16))


class PoolState:
    """All shelves, and who waits for a place."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.shelves: dict[str, Shelf] = {}
        self.enough_memory = True
        self.closed = False
        self._sandboxes: dict[int, str] = {}
        self._waiting: deque[tuple[int, str]] = deque()
        self._next_token = 0
        self._now = 0.0
        self.cooldown_until = -math.inf

    # --- what is asked of it --------------------------------------------------------------------------------------

    @property
    def sandboxes(self) -> int:
        """Sandboxes that were admitted and have not ended."""
        return len(self._sandboxes)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def machines(self) -> int:
        """Machines of the pool, ready or starting."""
        return sum(1 for shelf in self.shelves.values() for _ in shelf.tokens())

    @property
    def needs_tick(self) -> bool:
        """Time alone may change something: something grows old, is paused, or waits for memory."""
        return not self.closed and bool(
            self._waiting or self.machines or any(shelf.missing() for shelf in self.shelves.values())
        )

    @property
    def full(self) -> bool:
        """There is no room for one more sandbox."""
        return self.sandboxes >= self.rules.max_sandboxes

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """What follows from an event at this time (seconds of any clock that does not go back)."""
        self._now = now
        done: list[Instruction] = []
        match event:
            case Wanted(ticket, key):
                self._want(ticket, key)
            case Occupied(ticket, key):
                self._occupy(ticket, key)
            case Released(ticket):
                self._released(ticket)
            case Created(key):
                self._created(key)
            case WarmUp(key, count):
                self._warm_up(self._shelf(key), count)
            case Take():
                done.append(HandOut(self._take(event)))
            case Started(token):
                done += self._started(token)
            case Lost(token, parked):
                self._lost(token, parked=parked)
            case MemoryRead(enough):
                self.enough_memory = enough
                done += [] if enough else self._give_up(math.ceil(self.machines / 2))
            case Tick():
                done += self._grown_old()
            case Closing():
                self.closed = True
                self._waiting.clear()
                done += self._give_up(self.machines)
        done += self._admit()
        # whoever was just admitted is about to take a machine
        done += self._trim(spare=1 if isinstance(event, Wanted) and self._shelf(event.key).ready[Kind.CLONE] else 0)
        done += self._bound()
        done += self._refill()
        return done

    # --- sandboxes ------------------------------------------------------------------------------------------------

    def _want(self, ticket: int, key: str) -> None:
        if not self.closed:
            self._waiting.append((ticket, key))

    def _released(self, ticket: int) -> None:
        key = self._sandboxes.pop(ticket, None)
        if key is not None:
            self.shelves[key].in_use -= 1
        else:
            self._waiting = deque(entry for entry in self._waiting if entry[0] != ticket)

    def _admit(self) -> list[Instruction]:
        """First come, first served."""
        done: list[Instruction] = []
        while self._waiting and self.enough_memory and not self.full:
            ticket, key = self._waiting.popleft()
            self._occupy(ticket, key)
            done.append(Admit(ticket))
        return done

    def _occupy(self, ticket: int, key: str) -> None:
        self._sandboxes[ticket] = key
        self._shelf(key).in_use += 1

    def _calm(self) -> None:
        """Begin a pause. It is not drawn out by those who come meanwhile, or the pool would never be filled."""
        if self._now >= self.cooldown_until:
            self.cooldown_until = self._now + self.rules.cooldown

    def _created(self, key: str) -> None:
        self._calm()
        shelf = self._shelf(key)
        shelf.creations += 1
        # a program that starts one sandbox and ends must not pay for others
        if shelf.creations >= 2:
            shelf.pooled = shelf.high > 0

    def _warm_up(self, shelf: Shelf, count: int | None) -> None:
        shelf.high = self.rules.size if count is None else count
        shelf.filling = True
        shelf.paused_until = self.cooldown_until = self._now
        shelf.blank_mark = self.rules.blanks if shelf.high else 0
        shelf.pooled = shelf.high > 0

    # --- machines -------------------------------------------------------------------------------------------------

    def _take(self, event: Take) -> int | None:
        shelf = self._shelf(event.key)
        if event.kind is Kind.BLANK and event.more and shelf.high:
            shelf.blank_mark = self.rules.blanks
        waiting = shelf.ready[event.kind]
        if self.closed or not waiting:
            return None
        token = next(iter(waiting))
        del waiting[token]
        shelf.failures = 0
        self._calm()
        return token

    def _started(self, token: int) -> list[Instruction]:
        for shelf in self.shelves.values():
            for kind in Kind:
                if token in shelf.starting[kind]:
                    shelf.starting[kind].discard(token)
                    shelf.ready[kind][token] = self._now
                    return []
        return [Kill(token)]  # it was given up while it started

    def _lost(self, token: int, *, parked: bool) -> None:
        for shelf in self.shelves.values():
            kind = shelf.forget(token)
            if kind is None:
                continue
            if parked:
                shelf.pooled = False
            else:
                shelf.filling = shelf.filling or kind is Kind.CLONE
                shelf.failed(self._now)

    def _grown_old(self) -> list[Instruction]:
        """One after the other, so that never all of a shelf's machines are missing at once."""
        done: list[Instruction] = []
        for shelf in self.shelves.values():
            for kind in Kind:
                if not shelf.starting[kind]:
                    old = [t for t, since in shelf.ready[kind].items() if self._now - since >= self.rules.max_age]
                    done += self._kill(shelf, old[:1])
                    shelf.filling = shelf.filling or bool(old and kind is Kind.CLONE)
        return done

    def _kill(self, shelf: Shelf, tokens: list[int]) -> list[Instruction]:
        return [Kill(token) for token in tokens if shelf.forget(token) is not None]

    def _give_up(self, count: int) -> list[Instruction]:
        """Kill so many machines, those first that are asked for least."""
        done: list[Instruction] = []
        for shelf in sorted(self.shelves.values(), key=lambda shelf: shelf.used_at):
            done += self._kill(shelf, list(shelf.tokens())[: count - len(done)])
        return done

    def _trim(self, spare: int) -> list[Instruction]:
        """Machines of the pool make room for sandboxes, all but `spare`."""
        return self._give_up(max(0, self.sandboxes + self.machines - spare - self.rules.max_sandboxes))

    def _refill(self) -> list[Instruction]:
        done: list[Instruction] = []
        for shelf in sorted(self.shelves.values(), key=lambda shelf: -shelf.used_at):
            while (kind := shelf.missing()) is not None and self._may_start(shelf):
                self._next_token += 1
                shelf.starting[kind].add(self._next_token)
                done.append(Start(self._next_token, kind, shelf.key))
        return done

    def _may_start(self, shelf: Shelf) -> bool:
        starting = sum(len(tokens) for shelf in self.shelves.values() for tokens in shelf.starting.values())
        return (
            not self.closed
            and self.enough_memory
            and self._now >= max(shelf.paused_until, self.cooldown_until)
            and starting < self.rules.starts_at_once
            and self.sandboxes + self.machines < self.rules.max_sandboxes
        )

    # --- shelves --------------------------------------------------------------------------------------------------

    def _shelf(self, key: str) -> Shelf:
        """The shelf of a key that is asked for just now."""
        shelf = self.shelves.get(key)
        if shelf is None:
            shelf = self.shelves[key] = Shelf(key, self.rules.size)
        shelf.used_at = self._now
        return shelf

    def _bound(self) -> list[Instruction]:
        """Keep no machines for all that was ever asked for, and remember only so much of it."""
        done: list[Instruction] = []
        by_use = sorted(self.shelves.values(), key=lambda shelf: -shelf.used_at)
        for shelf in [shelf for shelf in by_use if shelf.pooled or shelf.blank_mark][_MOST_KEYS:]:
            shelf.pooled, shelf.blank_mark = False, 0
            done += self._kill(shelf, list(shelf.tokens()))
        for shelf in [shelf for shelf in by_use if not shelf.in_use and not any(shelf.tokens())][_REMEMBERED:]:
            del self.shelves[shelf.key]
        return done
