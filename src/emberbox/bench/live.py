"""Rows about a sandbox that lives: small executions, the engine's own share of them, undo."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from emberbox.bench.alternatives import bare_python, usable
from emberbox.bench.jupyter import LiveKernel
from emberbox.bench.lab import WORKERS, Lab, others, ours, run
from emberbox.bench.measure import Clock, Contender, at_once, interleave
from emberbox.bench.plain_runsc import RunscSession
from emberbox.bench.results import JUPYTER, OURS, PYTHON, RUNSC_RESTORE, RUNSC_SNAPSHOT, Aim, Row
from emberbox.engine import Engine
from emberbox.errors import ExecutionFailed
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sdk.sandbox import AsyncSandbox

SESSION = """\
x = 41
words = {str(number): [number] * 10 for number in range(200)}
for number in range(4):
    with open(f"{number}.txt", "w") as file:
        file.write("some text\\n" * 100)
"""
"""A small session: some variables, a few files."""


@contextlib.asynccontextmanager
async def _small_session(lab: Lab, engine: Engine) -> AsyncIterator[AsyncSandbox]:
    async with await AsyncSandbox.create(lab.template, engine=engine, timeout=None) as sandbox:
        made = await sandbox.run_code(SESSION)
        if not made.succeeded:
            raise ExecutionFailed(f"The small session could not be made: {made.error or made.termination_reason}")
        await _answer(sandbox)
        yield sandbox


async def _answer(sandbox: AsyncSandbox) -> None:
    """The session knows its variables."""
    execution = await sandbox.run_code("x + 1")
    if execution.text != "42":
        raise ExecutionFailed(f"The sandbox answered {execution.text!r:.80} instead of 42.")


async def execution(lab: Lab) -> list[Row]:
    """Row `live`: `1+1` in a context that has run code before."""
    rounds = lab.count("executions", 400, 60)
    kernel = LiveKernel(lab.run)
    async with usable([kernel]) as (found, missing), lab.engine() as engine, lab.sandbox(engine) as session:

        async def once() -> float:
            clock = Clock()
            await run(engine, session, "1+1")
            return clock.ms()

        contenders = [Contender(OURS, once), *(Contender(one.name, one.once) for one in found)]
        samples = await interleave(contenders, rounds, warm_up=10, tick=lab.tick)
    title = 'run_code("1+1") in a live Python context'
    return [Row("live", title, "ms", ours(samples[OURS]), Aim(most=2), others([JUPYTER], samples, missing))]


async def overhead(lab: Lab) -> list[Row]:
    """Rows `overhead` and `overhead-no-history`: the time of `engine.execute` beyond what the guest itself measured."""
    rounds = lab.count("executions for the overhead", 300, 60)

    def beyond(engine: Engine, session: SandboxInstance) -> Callable[[], Awaitable[float]]:
        async def once() -> float:
            clock = Clock()
            ran = await run(engine, session, "1+1")
            return clock.ms() - ran.duration_ms

        return once

    async with contextlib.AsyncExitStack() as stack:
        contenders = []
        for name, history in (("on", True), ("off", False)):
            engine = await stack.enter_async_context(lab.engine(history=history))
            session = await stack.enter_async_context(lab.sandbox(engine))
            contenders.append(Contender(name, beyond(engine, session)))
        samples = await interleave(contenders, rounds, warm_up=10, tick=lab.tick)
    return [
        Row("overhead", "engine overhead over the guest's time", "ms", ours(samples["on"]), Aim(most=1)),
        Row("overhead-no-history", "engine overhead, history switched off", "ms", ours(samples["off"]), Aim(most=1)),
    ]


async def checkpoints(lab: Lab) -> list[Row]:
    """Rows `snapshot`, `rollback` and `fork` of a small session. A rollback or fork ends with the first answer of what
    came up, for the alternative likewise."""
    rounds = lab.count("snapshots, rollbacks, forks", 25, 5)
    plain = RunscSession(lab.settings, lab.image.rootfs, lab.run)
    async with usable([plain]) as (found, missing), lab.engine() as engine, _small_session(lab, engine) as sandbox:
        point = await sandbox.snapshot()

        async def snapshot() -> float:
            clock = Clock()
            info = await sandbox.snapshot()
            taken = clock.ms()
            await sandbox.delete_snapshot(info)
            return taken

        async def rollback() -> float:
            clock = Clock()
            await sandbox.rollback(point)
            await _answer(sandbox)
            return clock.ms()

        async def fork() -> float:
            clock = Clock()
            (child,) = await sandbox.fork(timeout=None)
            try:
                await _answer(child)
                return clock.ms()
            finally:
                await child.kill()

        steps = {"snapshot": snapshot, "rollback": rollback, "fork": fork}
        contenders = [Contender(key, once) for key, once in steps.items() if lab.wants(key)]
        if found:
            contenders += [Contender(RUNSC_SNAPSHOT, plain.snapshot), Contender(RUNSC_RESTORE, plain.once)]
        samples = await interleave(contenders, rounds, tick=lab.tick)
    if RUNSC_RESTORE in missing:
        missing[RUNSC_SNAPSHOT] = missing[RUNSC_RESTORE]
    aims = {"snapshot": 40, "rollback": 80, "fork": 80}
    plains = {"snapshot": RUNSC_SNAPSHOT, "rollback": RUNSC_RESTORE, "fork": RUNSC_RESTORE}
    return [
        Row(
            key,
            f"{key} of a small session",
            "ms",
            ours(samples[key]),
            Aim(most=aims[key]),
            others([plains[key]], samples, missing),
        )
        for key in aims
        if lab.wants(key)
    ]


async def forks(lab: Lab) -> list[Row]:
    """Row `forks`: many forks of one session, until every one has answered; they live side by side. The alternatives do
    as many hellos or restores, several at once, each ended before the next."""
    count = lab.count("forks at once", 100, 20)
    rounds = lab.count("rounds of forks", 3, 1)
    plain = RunscSession(lab.settings, lab.image.rootfs, lab.run)
    async with (
        usable([bare_python(), plain]) as (found, missing),
        lab.engine() as engine,
        _small_session(lab, engine) as sandbox,
    ):

        async def fork() -> float:
            clock = Clock()
            children = await sandbox.fork(count, timeout=None)
            try:
                await asyncio.gather(*(_answer(child) for child in children))
                return clock.ms() / 1000
            finally:
                await asyncio.gather(*(child.kill() for child in children))

        def many(once: Callable[[], Awaitable[float]]) -> Callable[[], Awaitable[float]]:
            async def all_of_them() -> float:
                return await at_once(once, count, WORKERS) / 1000

            return all_of_them

        contenders = [Contender(OURS, fork), *(Contender(one.name, many(one.once)) for one in found)]
        samples = await interleave(contenders, rounds, warm_up=0, tick=lab.tick)
    figures = others([PYTHON, RUNSC_RESTORE], samples, missing)
    title = f"{count} forks of one session, all answered"
    return [Row("forks", title, "s", ours(samples[OURS]), Aim(most=6 * count / 100), figures)]
