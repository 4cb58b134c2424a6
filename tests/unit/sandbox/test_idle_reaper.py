"""Who is idle, and what becomes of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from emberbox.errors import SnapshotFailed
from emberbox.sandbox.idle_reaper import idle, reap_idle


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


class FakeManager:
    """Has some, and says what it was asked to end."""

    def __init__(self, errors: list[Exception | None]) -> None:
        self.sandboxes = [user() for _ in errors]
        self.errors = errors
        self.last_ended = asyncio.Event()
        self.looked_for_expired = 0

    def instances(self) -> list[Any]:
        return self.sandboxes

    async def end(self, instance: Any) -> None:
        error = self.errors[self.sandboxes.index(instance)]
        if error is not None:
            raise error
        self.last_ended.set()

    async def forget_expired(self) -> None:
        self.looked_for_expired += 1


async def test_one_that_cannot_be_suspended_does_not_spare_the_others() -> None:
    manager: Any = FakeManager([SnapshotFailed("full"), OSError(28, "full"), None])
    reaper = asyncio.create_task(reap_idle(manager, 0))
    async with asyncio.timeout(30):
        await manager.last_ended.wait()
    reaper.cancel()
    assert manager.looked_for_expired


async def test_one_that_is_used_while_others_end_is_not_ended() -> None:
    manager: Any = FakeManager([None, None])
    first, second = manager.sandboxes
    ended = []

    async def end(instance: Any) -> None:
        ended.append(instance)
        second.used(asyncio.get_running_loop().time())  # it takes long to suspend the first one

    async def look() -> None:
        manager.looked_for_expired += 1
        if manager.looked_for_expired == 3:
            manager.last_ended.set()

    manager.end, manager.forget_expired = end, look
    reaper = asyncio.create_task(reap_idle(manager, 0))
    async with asyncio.timeout(30):
        await manager.last_ended.wait()
    reaper.cancel()
    assert set(map(id, ended)) == {id(first)}
