"""Rows about the start of sandboxes: from the pool, without one, many a second, cold."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from emberbox.bench.alternatives import Alternative, bare_python, bubblewrap, usable
from emberbox.bench.jupyter import KernelStart
from emberbox.bench.lab import POOL, WORKERS, Lab, fresh_hello, hello, others, ours
from emberbox.bench.measure import Clock, Contender, interleave
from emberbox.bench.plain_runsc import RunscCold
from emberbox.bench.results import BWRAP, JUPYTER, OURS, PYTHON, RUNSC, Aim, Row
from emberbox.models import MachineLimits

_EVERY = {RUNSC: 2, JUPYTER: 5}
"""Slow alternatives take part in every so-many-th round only."""
_STARTERS = (PYTHON, BWRAP, RUNSC, JUPYTER)


def _alternatives(lab: Lab) -> tuple[Sequence[Alternative], KernelStart]:
    kernel = KernelStart(lab.run)
    rootfs = lab.image.rootfs
    return [bare_python(), bubblewrap(rootfs), RunscCold(lab.settings, rootfs, lab.run), kernel], kernel


async def fresh(lab: Lab) -> list[Row]:
    """Rows `lease`, `fresh` and `on-demand`: all contenders in turns. The pool is full again before the next one's
    turn, so that its refilling falls on nobody."""
    rounds = lab.count("fresh sandboxes", 40, 6)
    leases: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        alternatives, kernel = _alternatives(lab)
        found, missing = await stack.enter_async_context(usable(alternatives))
        contenders = []
        if lab.wants("lease", "fresh"):
            pooled = await stack.enter_async_context(lab.engine(pool=POOL))
            await pooled.warm(lab.template, count=POOL)

            async def from_pool() -> float:
                taken = await fresh_hello(lab, pooled, leases)
                await pooled.warm(lab.template, count=POOL)
                return taken

            contenders.append(Contender("pool", from_pool))
        if lab.wants("on-demand"):
            plain = await stack.enter_async_context(lab.engine())
            contenders.append(Contender("on demand", lambda: fresh_hello(lab, plain)))
        contenders += [Contender(one.name, one.once, _EVERY.get(one.name, 1)) for one in found]
        samples = await interleave(contenders, rounds, tick=lab.tick)
    figures = others(_STARTERS, samples, missing)
    rows = []
    if lab.wants("lease", "fresh"):
        ready = others([JUPYTER], {JUPYTER: kernel.starts[1:]}, missing)
        rows = [
            Row("lease", "lease from the warm pool", "ms", ours(leases[1:]), Aim(most=2), ready,
                "The kernel: from its start until it is ready."),
            Row("fresh", "fresh sandbox, Python hello, from the pool", "ms", ours(samples["pool"]),
                Aim(most=8, below=PYTHON), figures),
        ]  # fmt: skip
    if lab.wants("on-demand"):
        title = "fresh sandbox, Python hello, forked on demand"
        rows.append(Row("on-demand", title, "ms", ours(samples["on demand"]), Aim(most=80), figures))
    return rows


async def cold_boot(lab: Lab) -> list[Row]:
    """Row `cold-boot`: the first sandbox of a template ever, its snapshot for the ones after it included. Each round
    asks for other limits, for which there is no snapshot yet."""
    rounds = lab.count("cold boots", 10, 3)
    made = 0
    cold = RunscCold(lab.settings, lab.image.rootfs, lab.run)
    async with usable([cold]) as (found, missing), lab.engine(snapshots=lab.work / "cold") as engine:

        async def boot() -> float:
            nonlocal made
            made += 1
            limits = lab.image.limits
            other: MachineLimits = limits.model_copy(update={"open_files": limits.open_files + made})
            clock = Clock()
            session = await lab.create(engine, other)
            try:
                await hello(engine, session)
                return clock.ms()
            finally:
                await session.kill()

        contenders = [Contender(OURS, boot), *(Contender(one.name, one.once) for one in found)]
        samples = await interleave(contenders, rounds, tick=lab.tick)
    title = "cold boot, the first sandbox of a template"
    return [Row("cold-boot", title, "ms", ours(samples[OURS]), None, others([RUNSC], samples, missing))]


async def rate(lab: Lab) -> list[Row]:
    """Row `rate`: sandboxes made, greeted and killed in each second, by several workers. The first second of each turn,
    which a full pool answers, is not counted."""
    turns = lab.count("turns of sustained load", 3, 1)
    seconds = lab.count("seconds of a turn", 6, 3)
    alternatives, _ = _alternatives(lab)
    samples: dict[str, list[float]] = {}
    async with usable(alternatives[:3]) as (found, missing), lab.engine(pool=POOL) as engine:
        await engine.warm(lab.template, count=POOL)
        contenders = [Contender(OURS, lambda: fresh_hello(lab, engine))]
        contenders += [Contender(one.name, one.once) for one in found]
        for turn in range(turns):
            for number, contender in enumerate(contenders):
                length = seconds if contender.name == OURS else max(2, seconds // 2)
                samples.setdefault(contender.name, []).extend(await per_second(contender.once, length, WORKERS))
                lab.tick((turn + (number + 1) / len(contenders)) / turns)
            await engine.warm(lab.template, count=POOL)
    figures = others(_STARTERS[:3], samples, missing)
    title = f"fresh sandboxes a second, sustained ({WORKERS} at once)"
    return [Row("rate", title, "1/s", ours(samples[OURS]), Aim(least=15), figures)]


async def per_second(work: Callable[[], Awaitable[object]], seconds: int, workers: int) -> list[float]:
    """How often `work` was done in each second but the first, by so many workers."""
    clock = Clock()
    counts = [0] * seconds

    async def worker() -> None:
        while clock.ms() < seconds * 1000:
            await work()
            second = int(clock.ms() / 1000)
            if second < seconds:
                counts[second] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(worker())
    return [float(count) for count in counts[1:]]
