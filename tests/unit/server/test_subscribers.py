"""Whoever watches a machine, and what that costs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from emberbox.errors import ValidationFailed
from emberbox.models import Execution, Result, TerminationReason
from emberbox.models.service import FollowedEvent
from emberbox.sandbox.listeners import Listeners
from emberbox.server.subscribers import OutputSubscriber, OutputSubscribers


def event(content: str = "") -> FollowedEvent:
    return FollowedEvent(kind="stdout", content=content)


async def test_all_who_watch_hear_it_and_the_caller_too() -> None:
    heard: list[str] = []
    followers = OutputSubscribers()
    first, second, other = followers.watch("a"), followers.watch("a"), followers.watch("b")
    listeners = followers.listeners("a", Listeners(on_stdout=heard.append))
    await listeners.text("stdout", "out")
    await listeners.text("stderr", "err")
    await listeners.result(Result(text="42", is_main_result=True))
    for follower in (first, second):
        seen = [await follower.next() for _ in range(3)]
        assert [(one.kind, one.content) for one in seen] == [("stdout", "out"), ("stderr", "err"), ("result", "42")]
    assert heard == ["out"]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(other.next(), 0.01)


def test_nobody_who_watches_costs_nothing() -> None:
    wanted = Listeners()
    followers = OutputSubscribers()
    assert followers.listeners("a", wanted) is wanted
    follower = followers.watch("a")
    followers.leave("a", follower)
    assert followers.listeners("a", wanted) is wanted
    assert followers._watching == {}


async def test_who_reads_too_slowly_is_told_how_much_was_missed() -> None:
    follower = OutputSubscriber()
    for number in range(1010):
        follower.tell(event(str(number)))
    seen = [await follower.next() for _ in range(1000)]
    assert [one.content for one in seen] == [str(number) for number in range(1000)]
    missed = await follower.next()
    assert (missed.kind, missed.content) == ("missed", "10")
    follower.tell(event("after"))
    assert (await follower.next()).content == "after"


def test_who_reads_nothing_does_not_fill_the_memory() -> None:
    """A thousand events may wait; a thousand figures of some MiB must not."""
    follower = OutputSubscriber()
    for _ in range(1000):
        follower.tell(event("x" * (1 << 20)))
    held = sum(len(one.content) for one in follower._events)
    assert held <= 64 << 20, f"{held >> 20} MiB wait for one follower"


async def test_the_end_is_heard_by_who_was_too_slow() -> None:
    followers = OutputSubscribers()
    follower = followers.watch("a")
    for _ in range(1005):
        followers.begins("a", "ex-1")
    followers.closed("a")
    kinds = [(await asyncio.wait_for(follower.next(), 1)).kind for _ in range(1002)]
    assert "closed" in kinds


async def test_how_an_execution_ended() -> None:
    followers = OutputSubscribers()
    follower = followers.watch("a")

    async def refuse() -> Execution:
        raise ValidationFailed("not that")

    async def defect() -> Execution:
        raise KeyError("secret of the server")

    async def wait() -> Execution:
        await asyncio.Event().wait()
        raise AssertionError

    now = datetime.now(UTC)

    async def run() -> Execution:
        return Execution(
            execution_id="ex-1", sandbox_id="a", backend="gvisor", language="bash", exit_code=3,
            termination_reason=TerminationReason.COMPLETED, duration_ms=1.5, started_at=now, completed_at=now,
        )  # fmt: skip

    tasks = [asyncio.create_task(work()) for work in (refuse, defect, wait, run)]
    await asyncio.sleep(0.01)
    tasks[2].cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        followers.ended("a", "ex-1", task)
    seen = [await follower.next() for _ in tasks]
    assert [one.kind for one in seen] == ["refused", "refused", "ended", "ended"]
    assert seen[0].content == "not that"
    assert "secret" not in seen[1].content
    assert (seen[2].content, seen[3].exit_code) == ("cancelled", 3)


async def test_at_the_end_of_the_server_all_are_told() -> None:
    followers = OutputSubscribers()
    watching = [followers.watch(vm) for vm in ("a", "a", "b")]
    followers.close()
    assert [(await one.next()).kind for one in watching] == ["closed"] * 3
