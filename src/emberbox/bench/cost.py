"""Rows about what sandboxes cost: memory, CPU of idle ones, and whether anything grows."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import statistics
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass

from emberbox.bench.alternatives import Program, Unavailable, bare_python, bubblewrap
from emberbox.bench.facts import cpu_seconds, descriptors, disk_mib, pss_mib, resident_mib, with_descendants
from emberbox.bench.jupyter import LiveKernel
from emberbox.bench.lab import Lab, others, ours, run
from emberbox.bench.measure import Clock
from emberbox.bench.plain_runsc import RunscSession
from emberbox.bench.results import BWRAP, JUPYTER, PYTHON, RUNSC, Aim, Row
from emberbox.engine import Engine
from emberbox.host.rundir import processes_of
from emberbox.sandbox.idle_stop import QUIET_SECONDS
from emberbox.sandbox.instance import SandboxInstance


def processes(session: SandboxInstance) -> set[int]:
    """The host's processes of a sandbox."""
    return with_descendants(processes_of(session.machine.id))


async def memory(lab: Lab) -> list[Row]:
    """Row `memory`: sandboxes side by side that have said hello and wait; as many of each alternative."""
    count = lab.count("idle sandboxes", 8, 3)
    async with lab.engine() as engine, contextlib.AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(lab.sandbox(engine)) for _ in range(count)]
        samples = [pss_mib(processes(session)) for session in sessions]
        charged = [used for session in sessions if (used := session.machine.stats().memory_bytes)]
    lab.tick(0.3)
    found: dict[str, list[float]] = {}
    missing: dict[str, Unavailable] = {}
    rootfs = lab.image.rootfs
    programs = [bare_python(), bubblewrap(rootfs)]
    for program in programs:
        await _kept(program.name, _held_programs(program, count), found, missing)
    lab.tick(0.4)
    await _kept(RUNSC, _held_containers(lab, count), found, missing)
    lab.tick(0.6)
    await _kept(JUPYTER, _held_kernels(lab, count), found, missing)
    facts = {"charged_to_its_cgroup_mib": sum(charged) / len(charged) / (1 << 20)} if charged else {}
    note = "Without what only lies in the sandbox's memory file and is mapped by nobody at the moment."
    names = [PYTHON, BWRAP, RUNSC, JUPYTER]
    title = "memory of an idle sandbox (PSS)"
    return [Row("memory", title, "MiB", ours(samples), Aim(most=30), others(names, found, missing), note, facts)]


Groups = Sequence[set[int]]
"""Processes, by what they belong to."""


async def _kept(
    name: str,
    held: contextlib.AbstractAsyncContextManager[Groups],
    found: dict[str, list[float]],
    missing: dict[str, Unavailable],
) -> None:
    """Measure processes while they are held, or note why there are none."""
    try:
        async with held as groups:
            found[name] = [pss_mib(pids) for pids in groups]
    except Unavailable as exc:
        missing[name] = exc


@contextlib.asynccontextmanager
async def _held_programs(program: Program, count: int) -> AsyncIterator[Groups]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(program.held()) for _ in range(count)]


@contextlib.asynccontextmanager
async def _held_containers(lab: Lab, count: int) -> AsyncIterator[Groups]:
    async with contextlib.AsyncExitStack() as stack:
        each = [RunscSession(lab.settings, lab.image.rootfs, lab.run) for _ in range(count)]
        yield [(await stack.enter_async_context(one)).pids for one in each]


@contextlib.asynccontextmanager
async def _held_kernels(lab: Lab, count: int) -> AsyncIterator[Groups]:
    async with contextlib.AsyncExitStack() as stack:
        yield [(await stack.enter_async_context(LiveKernel(lab.run))).pids for _ in range(count)]


async def cpu(lab: Lab) -> list[Row]:
    """Rows `cpu`, `cpu-open`, `cpu-pooled`: processor time of idle sandboxes, in percent of one core: paused, not
    paused, and in the pool with all that keeps it. The mean of several at once: a median would hide one that works."""
    seconds = lab.count("seconds of idleness", 10, 2)
    count = lab.count("idle sandboxes for the CPU", 8, 4)
    rows = []
    if lab.wants("cpu", "cpu-open"):
        async with lab.engine() as engine, contextlib.AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(lab.sandbox(engine)) for _ in range(count)]
            groups = [processes(session) for session in sessions]
            await asyncio.sleep(2 * QUIET_SECONDS)  # then they rest
            awake = await _idle(groups, seconds)
            lab.tick(0.3)
            for session in sessions:
                await session.pause()
            paused = await _idle(groups, seconds)
            for session in sessions:
                await session.resume()
        rows = [
            _cpu_row("cpu", "CPU of an idle sandbox, paused", paused, Aim(most=0.1, words="0")),
            _cpu_row("cpu-open", "CPU of an idle sandbox, not paused", awake, Aim(most=0.1, words="0")),
        ]
    lab.tick(0.6)
    if lab.wants("cpu-pooled"):
        async with lab.engine(pool=count) as engine:
            await engine.warm(lab.template, count=count)
            (used,) = await _idle([with_descendants([os.getpid()]) - {os.getpid()}], seconds)
        title = "CPU of an idle machine in the pool"
        rows.append(Row("cpu-pooled", title, "%", ours([used / count]), Aim(most=0.1, words="0")))
    return rows


def _cpu_row(key: str, title: str, used: Sequence[float], aim: Aim | None) -> Row:
    return Row(key, title, "%", ours([statistics.fmean(used)]), aim, facts={"of_the_busiest_percent": max(used)})


async def _idle(groups: Groups, seconds: float) -> list[float]:
    """Percent of one core that each group of processes takes while nothing is asked of it."""
    clock, before = Clock(), [cpu_seconds(pids) for pids in groups]
    await asyncio.sleep(seconds)
    passed = clock.ms() / 1000
    return [(cpu_seconds(pids) - was) / passed * 100 for pids, was in zip(groups, before, strict=True)]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What this process and all below it hold."""

    memory_mib: float
    descriptors: int
    processes: int
    disk_mib: float
    sandbox_mib: float


def footprint(lab: Lab, session: SandboxInstance) -> Footprint:
    """Of now, after the garbage was collected."""
    gc.collect()
    family = with_descendants([os.getpid()])
    return Footprint(
        memory_mib=resident_mib(os.getpid()),
        descriptors=descriptors(family),
        processes=len(family),
        disk_mib=disk_mib([lab.work, lab.run]),
        sandbox_mib=(session.machine.stats().memory_bytes or 0) / (1 << 20),
    )


_CHAIN = "The links of the history's audit chain stay by design (docs/history.md)."
_WARM_UP = 0.1
"""The part of the executions after which the first look is taken: caches and the history's last entries are full."""


async def growth(lab: Lab) -> list[Row]:
    """Rows `growth-…`: what is held after many executions in one sandbox, less what was held after the first tenth."""
    count = lab.count("executions in a row", 10_000, 500)
    first = int(count * _WARM_UP)
    async with lab.engine() as engine, lab.sandbox(engine) as session:
        await _executions(lab, engine, session, 0, first, count)
        before = footprint(lab, session)
        await _executions(lab, engine, session, first, count, count)
        after = footprint(lab, session)
    facts = {f"{name}_{when}": float(value) for when, look in (("before", before), ("after", after))
             for name, value in asdict(look).items()}  # fmt: skip
    titles = {
        "memory": ("our memory", "MiB", before.memory_mib, after.memory_mib, 4.0),
        "descriptors": ("open descriptors", "", before.descriptors, after.descriptors, 0.0),
        "processes": ("processes", "", before.processes, after.processes, 0.0),
        "disk": ("files on disk", "MiB", before.disk_mib, after.disk_mib, 4.0),
        "sandbox": ("the sandbox's memory", "MiB", before.sandbox_mib, after.sandbox_mib, 4.0),
    }
    return [
        Row(f"growth-{name}", f"growth in {count:,} runs: {what}", unit, ours([now - was]),
            Aim(most=most, words="flat" if most else "0"), note=_CHAIN if name == "disk" else "", facts=facts)
        for name, (what, unit, was, now, most) in titles.items()
        if lab.wants(f"growth-{name}")
    ]  # fmt: skip


async def _executions(lab: Lab, engine: Engine, session: SandboxInstance, start: int, end: int, of: int) -> None:
    for number in range(start, end):
        await run(engine, session, f"{number} + 1")
        if number % 50 == 0:
            lab.tick(number / of)
