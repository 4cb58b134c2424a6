"""Samples and what is said of them. Always the median and the spread, never the best."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Summary:
    """What samples say, in the unit of the samples: the median, the quartiles, the 95th percentile and the ends."""

    n: int
    median: float
    p25: float
    p75: float
    p95: float
    least: float
    most: float


def summarise(samples: Sequence[float]) -> Summary:
    """The summary of at least one sample; raises ValueError without any."""
    if not samples:
        raise ValueError("no samples")
    if len(samples) == 1:
        only = samples[0]
        return Summary(1, only, only, only, only, only, only)
    parts = statistics.quantiles(samples, n=100, method="inclusive")
    return Summary(
        n=len(samples),
        median=statistics.median(samples),
        p25=parts[24],
        p75=parts[74],
        p95=parts[94],
        least=min(samples),
        most=max(samples),
    )


class Clock:
    """Milliseconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def ms(self) -> float:
        return (time.perf_counter() - self._began) * 1000


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that is measured beside others.

    Args:
        name: whose figure it is.
        once: takes one sample, its preparation and its cleaning up not counted.
        every: it takes part in each round whose number divides by this; slow ones need fewer samples.
    """

    name: str
    once: Callable[[], Awaitable[float]]
    every: int = 1

    def rounds(self, of: int) -> int:
        """In how many of `of` rounds it takes part."""
        return -(-of // self.every)


async def interleave(
    contenders: Sequence[Contender], rounds: int, *, warm_up: int = 1, tick: Callable[[float], None] = lambda _: None
) -> dict[str, list[float]]:
    """Samples of each contender, in turns, so that what else the machine does falls on all of them alike.

    The first `warm_up` samples of each are thrown away. `tick` gets the part that is done.
    """
    samples: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    total = sum(warm_up + contender.rounds(rounds) for contender in contenders)
    done = 0
    for number in range(-warm_up, rounds):
        for contender in contenders:
            if number >= 0 and number % contender.every:
                continue
            sample = await contender.once()
            if number >= 0:
                samples[contender.name].append(sample)
            done += 1
            tick(done / total)
    return samples


async def at_once(work: Callable[[], Awaitable[object]], count: int, workers: int) -> float:
    """Milliseconds until `work` was done `count` times by so many workers. The first error ends them all."""
    left = count

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await work()

    clock = Clock()
    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(worker())
    return clock.ms()


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking work beside the loop. Whoever is cancelled waits for its end: it may have started a process."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
