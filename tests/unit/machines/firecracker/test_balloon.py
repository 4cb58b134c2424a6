"""When a guest is made to give back memory, and that it gets what it needs again whatever happens."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from emberbox.errors import VmConnectionError
from emberbox.machines.firecracker import vsock
from emberbox.machines.firecracker.api import ApiError, BalloonUpdate, Body, FirecrackerApi, NoAnswer
from emberbox.machines.firecracker.balloon import BalloonReclaimer, private_mb

PAGES_PER_MB = 256


class Vmm:
    """A Firecracker whose guest has some memory that is its own, and gives as much of it as is wanted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, held: int, free: int, gives: int = 10_000) -> None:
        self.held = held
        self.free = free
        self.gives = gives
        self.balloon = 0
        self.wanted: list[int] = []
        self.asked = 0
        self.on_patch: Callable[[int], None] = lambda _: None
        self.on_look: Callable[[], None] = lambda: None
        self.emptied = asyncio.Event()
        self.silent = False
        monkeypatch.setattr(vsock, "free_memory_mb", self._free)

    async def _free(self, socket: Path, seconds: float) -> int:
        self.asked += 1
        if self.silent:
            raise VmConnectionError("The guest does not say how much memory it has left.")
        return self.free

    async def patch(self, path: str, body: Body, *, seconds: float) -> None:
        assert isinstance(body, BalloonUpdate)
        assert path == "/balloon"
        self.wanted.append(body.amount_mib)
        await asyncio.sleep(0)
        self.on_patch(body.amount_mib)
        await asyncio.sleep(0)
        self.balloon = min(body.amount_mib, self.gives)
        self.held -= self.balloon
        if body.amount_mib == 0:
            self.emptied.set()

    async def balloon_pages(self, *, seconds: float) -> int:
        await asyncio.sleep(0)
        self.on_look()
        return self.balloon * PAGES_PER_MB

    def giver(self, seconds: float = 10.0, patience: float = 0.0) -> BalloonReclaimer:
        return BalloonReclaimer(cast(FirecrackerApi, self), Path("v.sock"), seconds, patience)


async def test_what_is_free_comes_back_but_for_a_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    vmm = Vmm(monkeypatch, held=200, free=150)
    assert await vmm.giver().give_back(lambda: vmm.held) == 118
    assert vmm.wanted == [118, 0]


@pytest.mark.parametrize("held", [None, 0, 63])
async def test_a_guest_that_has_little_is_not_even_asked(monkeypatch: pytest.MonkeyPatch, held: int | None) -> None:
    vmm = Vmm(monkeypatch, held=0, free=200)
    assert await vmm.giver().give_back(lambda: held) == 0
    assert (vmm.asked, vmm.wanted) == (0, [])


async def test_a_guest_that_has_little_free_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    vmm = Vmm(monkeypatch, held=200, free=64 + 31)
    assert await vmm.giver().give_back(lambda: vmm.held) == 0
    assert vmm.wanted == []
    vmm.free += 1
    vmm.held += 64
    assert await vmm.giver().give_back(lambda: vmm.held) == 64


async def test_only_what_came_since_the_last_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    vmm = Vmm(monkeypatch, held=200, free=150)
    giver = vmm.giver()
    await giver.give_back(lambda: vmm.held)
    vmm.held += 63
    assert await giver.give_back(lambda: vmm.held) == 0
    assert vmm.asked == 1
    vmm.held += 1
    assert await giver.give_back(lambda: vmm.held) == 118
    assert vmm.asked == 2


async def test_a_guest_that_says_it_has_everything_is_asked_for_no_more_than_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vmm = Vmm(monkeypatch, held=100, free=2**54 - 1)
    assert await vmm.giver().give_back(lambda: vmm.held) == 100
    assert vmm.wanted == [100, 0]


async def test_a_guest_that_does_not_answer_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    vmm = Vmm(monkeypatch, held=200, free=150)
    vmm.silent = True
    giver = vmm.giver()
    assert await giver.give_back(lambda: vmm.held) == 0
    assert vmm.wanted == []
    assert await giver.give_back(lambda: vmm.held) == 0
    assert vmm.asked == 1  # not with each snapshot: it would wait each time
    vmm.silent, vmm.held = False, 264
    assert await giver.give_back(lambda: vmm.held) == 118


async def test_a_guest_that_gives_less_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    vmm = Vmm(monkeypatch, held=200, free=200, gives=70)
    assert await vmm.giver().give_back(lambda: vmm.held) == 70
    assert vmm.wanted == [168, 0]


async def test_a_balloon_that_grows_for_ever_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or that does not: a guest's own word."""
    vmm = Vmm(monkeypatch, held=200, free=200, gives=1)
    looks = 0

    def grow() -> None:
        nonlocal looks
        looks += 1
        vmm.balloon = looks % 100 + 1

    vmm.on_look = grow
    await asyncio.wait_for(vmm.giver(seconds=0.05, patience=1000).give_back(lambda: vmm.held), 60)
    assert vmm.wanted == [168, 0]


async def test_a_guest_without_a_driver_is_soon_not_asked_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    vmm = Vmm(monkeypatch, held=200, free=200, gives=0)
    giver = vmm.giver()
    for _ in range(9):
        assert await giver.give_back(lambda: vmm.held) == 0
        vmm.held += 64
    assert vmm.asked == 3
    assert vmm.wanted[-1] == 0


async def test_a_machine_without_a_balloon_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise ApiError("Firecracker refused PATCH /balloon: no such device")

    vmm = Vmm(monkeypatch, held=200, free=200)
    vmm.on_patch = refuse
    giver = vmm.giver()
    assert await giver.give_back(lambda: vmm.held) == 0
    told = len(vmm.wanted)
    vmm.held += 500
    assert await giver.give_back(lambda: vmm.held) == 0
    assert (vmm.asked, len(vmm.wanted)) == (1, told)


async def test_a_firecracker_that_was_silent_is_told_again_to_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    deaf_to: set[int] = set()

    def hear(amount: int) -> None:
        if amount in deaf_to:
            raise NoAnswer("Firecracker does not answer PATCH /balloon")

    vmm = Vmm(monkeypatch, held=200, free=150)
    vmm.on_patch = hear
    giver = vmm.giver()
    deaf_to |= {0}
    assert await giver.give_back(lambda: vmm.held) == 118
    assert await giver.give_back(lambda: vmm.held) == 0
    assert vmm.balloon == 118
    deaf_to -= {0}
    assert await giver.give_back(lambda: vmm.held) == 0  # although there is nothing to gain
    assert vmm.balloon == 0
    vmm.held += 64
    deaf_to |= {118}
    assert await giver.give_back(lambda: vmm.held) == 0
    deaf_to -= {118}
    vmm.held += 64
    assert await giver.give_back(lambda: vmm.held) == 118  # silence is no refusal


@pytest.mark.parametrize("times", [1, 2])
async def test_a_caller_that_is_cancelled_leaves_the_guest_its_memory(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    vmm = Vmm(monkeypatch, held=200, free=200, gives=50)
    left = times

    def cancel(amount: int = 0) -> None:
        nonlocal left
        if left and amount == 0:
            left -= 1
            work.cancel()

    vmm.on_look = vmm.on_patch = cancel
    work = asyncio.ensure_future(vmm.giver(patience=1000).give_back(lambda: vmm.held))
    with pytest.raises(asyncio.CancelledError):
        await work
    await asyncio.wait_for(vmm.emptied.wait(), 10)
    assert (vmm.wanted, vmm.balloon, left) == ([168, 0], 0, 0)


async def test_a_caller_that_is_cancelled_hears_of_it_although_firecracker_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(amount: int) -> None:
        if amount == 0:
            raise NoAnswer("Firecracker does not answer PATCH /balloon")

    def cancel() -> None:
        work.cancel()

    vmm = Vmm(monkeypatch, held=200, free=200, gives=50)
    vmm.on_patch, vmm.on_look = silent, cancel
    giver = vmm.giver(patience=1000)
    work = asyncio.ensure_future(giver.give_back(lambda: vmm.held))
    with pytest.raises(asyncio.CancelledError):
        await work
    vmm.on_patch, vmm.on_look = lambda _: None, lambda: None
    await giver.give_back(lambda: 0)
    assert vmm.balloon == 0


def test_memory_that_a_process_has_for_itself_is_what_the_kernel_says() -> None:
    before = private_mb(os.getpid())
    data = b"x" * (80 << 20)
    after = private_mb(os.getpid())
    assert before is not None
    assert after is not None
    assert 70 <= after - before <= 90
    del data


def test_nobody_has_no_memory() -> None:
    assert private_mb(2**22 + 1) is None
