"""Calls of foreign code: a deadline for everything, and nothing that hangs with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from emberbox.hooks import _calls
from emberbox.hooks._calls import Caller, CallFailedError


async def double(value: int) -> int:
    return value * 2


def gives_a_coroutine(value: int) -> object:
    return double(value)


@pytest.mark.parametrize("function", [double, lambda value: value * 2, gives_a_coroutine])
async def test_coroutine_functions_and_plain_ones_are_called_alike(function: Callable[[int], object]) -> None:
    assert await Caller().call(function, 21, 5) == 42


async def test_plain_functions_do_not_run_on_the_loop() -> None:
    here = threading.current_thread()
    assert await Caller().call(lambda _: threading.current_thread() is here, None, 5) is False


async def test_what_is_raised_is_told_in_words() -> None:
    def bad(_: object) -> None:
        raise ValueError("no such thing")

    async def worse(_: object) -> None:
        raise SystemExit(3)

    async def late(_: object) -> None:
        raise TimeoutError("the database")

    for function, words in (
        (bad, "ValueError: no such thing"),
        (worse, "SystemExit: 3"),
        (late, "TimeoutError: the data"),
    ):
        with pytest.raises(CallFailedError, match=f"raised {words}"):
            await Caller().call(function, None, 5)


async def test_what_takes_too_long_is_left_behind() -> None:
    never, done = threading.Event(), asyncio.Event()

    async def slow(_: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            done.set()

    caller = Caller()
    with pytest.raises(CallFailedError, match=r"took more than its 0\.01 s"):
        await caller.call(slow, None, 0.01)
    assert done.is_set()  # it was cancelled
    with pytest.raises(CallFailedError, match=r"took more than its 0\.01 s"):
        await caller.call(lambda _: never.wait(), None, 0.01)
    never.set()


async def test_a_function_that_never_returns_is_not_called_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_calls, "MAX_STUCK", 2)
    never, caller, calls = threading.Event(), Caller(), []

    def stuck(_: object) -> None:
        calls.append(1)
        never.wait()

    for _ in range(2):
        with pytest.raises(CallFailedError, match="took more"):
            await caller.call(stuck, None, 0.01)
    with pytest.raises(CallFailedError, match="2 earlier calls of it still run"):
        await caller.call(stuck, None, 0.01)
    assert len(calls) == 2
    never.set()
    for thread in caller._busy:
        thread.join(5)
    assert await caller.call(lambda _: "again", None, 5) == "again"


async def test_who_is_cancelled_cancels_the_call() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def slow(_: object) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(Caller().call(slow, None, 60))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
