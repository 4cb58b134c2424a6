"""Who may what, and how much at once."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import pytest

from emberbox.errors import Forbidden, TooManyRequests, Unauthorized
from emberbox.models.server import ServerConfig
from emberbox.server import auth
from emberbox.server.auth import Authenticator, ConcurrencyLimiter, Principal
from emberbox.server.tokens import SCOPES, Scope, TokenStore


def principal(*scopes: Scope, agents: set[str] | None = None) -> Principal:
    return Principal("id", "name", frozenset(scopes), None if agents is None else frozenset(agents), 10, 2)


def test_a_scope_is_had_or_not_and_admin_has_all() -> None:
    for scope, wanted in itertools.product(SCOPES, SCOPES):
        who = principal(scope)
        if scope in (wanted, "admin"):
            who.require(wanted)
        else:
            with pytest.raises(Forbidden, match=wanted):
                who.require(wanted)


def test_an_agent_is_named_or_the_only_one() -> None:
    assert principal(agents=None).agent(None) == "local"
    assert principal(agents=None).agent("x") == "x"
    assert principal(agents={"ada"}).agent(None) == "ada"
    assert principal(agents={"ada", "bob"}).agent("bob") == "bob"
    for who, wanted in ((principal(agents={"ada"}), "bob"), (principal(agents={"ada", "bob"}), None),
                        (principal(agents={"ada"}), ""), (principal(agents={"ada"}), "ADA"),
                        (principal(agents={"ada"}), "ada ")):  # fmt: skip
        with pytest.raises(Forbidden):
            who.agent(wanted)


def test_what_belongs_to_nobody_is_seen_by_nobody() -> None:
    assert not principal(agents=None).sees(None)
    assert not principal(agents={"ada"}).sees("bob")
    principal(agents=None).require_all_agents()
    with pytest.raises(Forbidden):
        principal(agents={"ada"}).require_all_agents()


# --- the door ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def durability(path: Path, rate: float = 2) -> Authenticator:
    return Authenticator(TokenStore(path), ServerConfig(requests_per_second=rate))


def test_so_many_may_pass_and_then_later(tmp_path: Path, clock: list[float]) -> None:
    door = durability(tmp_path / "t.json")
    for _ in range(4):
        door.principal(None, "1.2.3.4")
    with pytest.raises(TooManyRequests) as refused:
        door.principal(None, "1.2.3.4")
    assert refused.value.details["retry_after"] >= 1
    door.principal(None, "5.6.7.8")
    clock[0] += 0.5
    door.principal(None, "1.2.3.4")
    with pytest.raises(TooManyRequests):
        door.principal(None, "1.2.3.4")
    clock[0] += 3600
    for _ in range(4):
        door.principal(None, "1.2.3.4")
    with pytest.raises(TooManyRequests):
        door.principal(None, "1.2.3.4")


def test_a_clock_that_stands_or_goes_back_gives_nothing(tmp_path: Path, clock: list[float]) -> None:
    door = durability(tmp_path / "t.json")
    for _ in range(4):
        door.principal(None, "a")
    clock[0] -= 100
    with pytest.raises(TooManyRequests):
        door.principal(None, "a")


@pytest.mark.parametrize("rate", [0.001, 1e-300, 1e300, float("inf")])
def test_rates_at_the_ends(tmp_path: Path, clock: list[float], rate: float) -> None:
    door = durability(tmp_path / "t.json", rate)
    door.principal(None, "a")
    for _ in range(5):
        try:
            door.principal(None, "a")
        except TooManyRequests as error:
            assert error.details["retry_after"] >= 1  # noqa: PT017 (either is fine)


def test_guessing_is_slowed_down_and_does_not_slow_down_others(tmp_path: Path, clock: list[float]) -> None:
    """Bad tokens are counted by where they come from; a good one from the same place is not refused for them."""
    store = TokenStore(tmp_path / "t.json")
    token = store.create("ada", ["read"], ["ada"])[0]
    door = durability(store.path)
    for _ in range(4):
        with pytest.raises(Unauthorized):
            door.principal("Bearer ebx_nonsense", "1.2.3.4")
    with pytest.raises(TooManyRequests):
        door.principal("Bearer ebx_nonsense", "1.2.3.4")
    assert door.principal(f"Bearer {token}", "1.2.3.4").name == "ada"
    assert door.principal(f"bearer   {token}", "9.9.9.9").agents == frozenset({"ada"})
    for header in (None, "", "Bearer", f"Basic {token}", token, f"Bearer{token}", f"Bearer {token} x"):
        with pytest.raises((Unauthorized, TooManyRequests)):
            door.principal(header, f"other-{header}")


def test_where_tokens_have_been_the_door_stays_closed(tmp_path: Path) -> None:
    """A server that began with tokens is not open because their file goes before the first request comes."""
    store = TokenStore(tmp_path / "t.json")
    store.create("ada", ["read"], ["ada"])
    door = durability(store.path)
    store.path.unlink()
    with pytest.raises(Unauthorized):
        door.principal(None, "1.2.3.4")


def test_only_so_many_callers_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_CALLERS", 10)
    door = durability(tmp_path / "t.json")
    for number in range(100):
        door.principal(None, f"address-{number}")
    assert len(door._buckets) <= 10


# --- places -----------------------------------------------------------------------------------------------------------


async def test_places_are_taken_and_given_back() -> None:
    places = ConcurrencyLimiter("things")
    with places.one("a", 2), places.one("a", 2):
        assert places.total == 2
        with pytest.raises(TooManyRequests, match="2 things"), places.one("a", 2):
            pass
        with places.one("b", 1):
            assert places.total == 3
        waiting = asyncio.create_task(places.empty())
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 1)
    assert places.total == 0


async def test_a_place_is_given_back_by_what_fails_and_what_is_cancelled() -> None:
    places = ConcurrencyLimiter("things")
    with pytest.raises(ValueError, match="x"), places.one("a", 1):
        raise ValueError("x")

    async def hold() -> None:
        with places.one("a", 1):
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await asyncio.sleep(0)
    assert places.total == 1
    task.cancel()
    await asyncio.wait([task])
    assert places.total == 0
    await asyncio.wait_for(places.empty(), 1)
