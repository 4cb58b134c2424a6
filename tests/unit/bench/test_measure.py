"""Samples, their summary, and the order in which they are taken."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberbox.bench.measure import Contender, at_once, in_thread, interleave, summarise

FLOATS = st.floats(0.001, 1e6)


def test_the_summary_names_median_and_spread() -> None:
    s = summarise([4.0, 1.0, 3.0, 2.0, 100.0])
    assert (s.n, s.median, s.p25, s.p75, s.least, s.most) == (5, 3.0, 2.0, 4.0, 1.0, 100.0)
    assert 4 < s.p95 < 100


def test_one_sample_is_its_own_summary_and_none_has_none() -> None:
    s = summarise([7.0])
    assert (s.n, s.median, s.p25, s.p95) == (1, 7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="no samples"):
        summarise([])


@given(st.lists(FLOATS, min_size=1, max_size=50))
def test_the_parts_of_a_summary_are_in_order(samples: list[float]) -> None:
    s = summarise(samples)
    assert s.median == statistics.median(samples)
    almost = 1 + 1e-9
    ordered = [s.least, s.p25, s.median, s.p75, s.p95, s.most]
    assert all(a <= b * almost for a, b in itertools.pairwise(ordered))


def contender(name: str, order: list[str], every: int = 1) -> Contender:
    async def once() -> float:
        order.append(name)
        return float(len(order))

    return Contender(name, once, every)


async def test_contenders_take_turns_and_warm_up_samples_are_thrown_away() -> None:
    order: list[str] = []
    samples = await interleave([contender("a", order), contender("b", order)], 2, warm_up=1)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert samples == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


async def test_slow_contenders_take_part_in_fewer_rounds_and_progress_ends_at_all() -> None:
    order: list[str] = []
    parts: list[float] = []
    fast, slow = contender("fast", order), contender("slow", order, every=3)
    samples = await interleave([fast, slow], 7, tick=parts.append)
    assert (len(samples["fast"]), len(samples["slow"])) == (7, 3)
    assert slow.rounds(7) == 3
    assert parts == sorted(parts)
    assert parts[-1] == pytest.approx(1)


async def test_work_at_once_is_done_as_often_as_asked() -> None:
    running = peak = done = 0

    async def work() -> None:
        nonlocal running, peak, done
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1
        done += 1

    assert await at_once(work, 10, 3) > 0
    assert (done, peak) == (10, 3)


async def test_who_is_cancelled_waits_for_the_thread_that_works_for_it() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(10)
        ended.set()

    task = asyncio.ensure_future(in_thread(work))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
