"""Taking over what a dead Emberbox left: many machines at once, and all or none when it is cut short."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from emberbox.errors import VmNotAvailable
from emberbox.machines.adoption import _AT_ONCE, _take_all


async def test_silent_machines_do_not_hold_up_each_other() -> None:
    waiting = 0
    all_wait = asyncio.Event()

    async def take(name: str) -> Any:
        nonlocal waiting
        waiting += 1
        if waiting == _AT_ONCE:
            all_wait.set()
        await all_wait.wait()  # would never end if one was waited for after another
        if name == "m05":
            raise VmNotAvailable("it is silent")
        return SimpleNamespace(id=name)

    found: list[Any] = []
    names = [f"m{number:02}" for number in range(_AT_ONCE)]
    async with asyncio.timeout(30):
        await _take_all(reversed(names), take, found)
    assert [machine.id for machine in found] == [name for name in names if name != "m05"]


async def test_no_more_than_a_few_are_asked_at_a_time() -> None:
    now = most = 0

    async def take(name: str) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return SimpleNamespace(id=name)

    await _take_all(map(str, range(3 * _AT_ONCE)), take, [])
    assert most == _AT_ONCE


async def test_what_was_taken_before_an_accident_is_known() -> None:
    async def take(name: str) -> Any:
        if name == "bad":
            raise RuntimeError("an accident")
        return SimpleNamespace(id=name)

    found: list[Any] = []
    with pytest.raises(RuntimeError, match="an accident"):
        await _take_all(["good", "bad"], take, found)
    assert [machine.id for machine in found] == ["good"]
