"""Work in a thread: its result is somebody's, whenever the caller is cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest

from emberbox.machines.threads import claimed

PATIENCE = 30.0


async def test_the_result_is_the_caller_s() -> None:
    unwanted: list[int] = []
    assert await claimed(lambda: 42, unwanted.append) == 42
    assert unwanted == []


async def test_an_error_is_the_caller_s() -> None:
    def fail() -> int:
        raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        await claimed(fail, lambda _: None)


def test_what_nobody_waits_for_any_more_is_given_up_even_when_the_loop_ends() -> None:
    going, go_on, given_up = threading.Event(), threading.Event(), threading.Event()
    unwanted: list[int] = []

    def work() -> int:
        going.set()
        assert go_on.wait(PATIENCE)
        return 42

    def give_up(result: int) -> None:
        unwanted.append(result)
        given_up.set()

    async def main() -> None:
        task = asyncio.create_task(claimed(work, give_up))
        await asyncio.to_thread(going.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    asyncio.run(main())
    assert given_up.wait(PATIENCE)
    assert unwanted == [42]
