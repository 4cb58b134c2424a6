"""What every measurement works with: settings, an image, folders of its own, engines, progress."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emberbox.bench.alternatives import Unavailable
from emberbox.bench.measure import Clock, summarise
from emberbox.bench.results import OURS, Figure
from emberbox.config import Settings
from emberbox.engine import Engine, ExecuteRequest
from emberbox.errors import ExecutionFailed
from emberbox.host.rundir import clear_owner, dead_owners, make_run_dir
from emberbox.images.store import Image
from emberbox.models import Execution, MachineLimits
from emberbox.sandbox.instance import SandboxInstance

POOL = 4
"""Machines in the pool, where one is measured."""
WORKERS = 4
"""Things under way at once, where several are."""


@dataclass(slots=True)
class Lab:
    """One run of the benchmark.

    Args:
        settings: those in force; history, state and pool are replaced, so that the user's own are left alone.
        image: what sandboxes start from.
        quick: few samples, to see that all works and roughly how fast.
        work: a folder on the disk of the cache; `clear` makes it.
        run: a folder with a short path, for sockets.
        wanted: keys of the rows to measure.
        tick: hears the part of the present measurement that is done.
    """

    settings: Settings
    image: Image
    quick: bool
    work: Path
    run: Path
    wanted: frozenset[str]
    tick: Callable[[float], None] = lambda _: None
    template: str | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def wants(self, *keys: str) -> bool:
        """Whether any of these rows is to be measured."""
        return not self.wanted.isdisjoint(keys)

    def clear(self) -> None:
        """Remove what a measurement wrote, so that the next one begins as the first did."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()

    def count(self, name: str, full: int, quick: int) -> int:
        """How many of something; the choice is noted for the report."""
        self.counts[name] = quick if self.quick else full
        return self.counts[name]

    @contextlib.asynccontextmanager
    async def engine(
        self, *, pool: int = 0, history: bool = True, snapshots: Path | None = None
    ) -> AsyncIterator[Engine]:
        """An engine whose history is in the work folder.

        Args:
            pool: machines to keep ready.
            history: record what is executed, as by default.
            snapshots: keep snapshots there, those of templates as well.
        """
        config = self.settings.vm_execution
        recording = config.history.model_copy(update={"enabled": history})
        execution = config.model_copy(update={"vm_pool_size": pool, "history": recording})
        own = {
            "vm_execution": execution,
            "state_dir": self.work / "state" / uuid.uuid4().hex[:8],
            "history_url": None,
            "snapshot_dir": snapshots or self.settings.snapshot_dir,
        }
        async with Engine(self.settings.model_copy(update=own)) as engine:
            yield engine

    async def create(self, engine: Engine, limits: MachineLimits | None = None) -> SandboxInstance:
        """A fresh sandbox."""
        return await engine.create_sandbox(self.template, limits=limits)

    @contextlib.asynccontextmanager
    async def sandbox(self, engine: Engine) -> AsyncIterator[SandboxInstance]:
        """A sandbox whose Python has answered once."""
        session = await self.create(engine)
        try:
            await hello(engine, session)
            yield session
        finally:
            await session.kill()


async def run(engine: Engine, session: SandboxInstance, code: str) -> Execution:
    """Execute Python; raises ExecutionFailed if it did not end well."""
    execution = await engine.execute(ExecuteRequest(session, "python", code))
    if not execution.succeeded:
        raise ExecutionFailed(f"{code!r:.80} did not run: {execution.error or execution.termination_reason}")
    return execution


async def hello(engine: Engine, session: SandboxInstance) -> None:
    """Python says hello."""
    execution = await run(engine, session, "print('hello')")
    if execution.stdout != "hello\n":
        raise ExecutionFailed(f"The sandbox said {execution.stdout!r:.80} instead of hello.")


async def fresh_hello(lab: Lab, engine: Engine, ready: list[float] | None = None) -> float:
    """Milliseconds from nothing to the hello of a new sandbox, which is then killed; `ready` gets those until it was
    there."""
    clock = Clock()
    session = await lab.create(engine)
    try:
        if ready is not None:
            ready.append(clock.ms())
        await hello(engine, session)
        return clock.ms()
    finally:
        await session.kill()


# --- figures ------------------------------------------------------------------------------------------------------


def ours(samples: Sequence[float]) -> Figure:
    """The figure of Emberbox."""
    return Figure(OURS, summarise(samples))


def others(
    names: Sequence[str], samples: Mapping[str, Sequence[float]], missing: Mapping[str, Unavailable]
) -> list[Figure]:
    """The figures of these alternatives, or why there are none."""
    figures = []
    for name in names:
        if samples.get(name):
            figures.append(Figure(name, summarise(samples[name])))
        elif name in missing:
            figures.append(Figure(name, missing=missing[name].reason, remedy=missing[name].remedy))
    return figures


# --- folders ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def folders(settings: Settings) -> Iterator[tuple[Path, Path]]:
    """Two folders of this run, on the disk of the cache and in the run directory; both are removed, and so is what a
    killed run has left. Raises ConfigError, VmNotAvailable."""
    base = settings.cache_dir / "bench"
    for place in (base, settings.run_dir):
        for path, fd in dead_owners(place):
            try:
                clear_owner(path)
            finally:
                os.close(fd)
    with contextlib.ExitStack() as stack:
        work = make_run_dir(base, socket_paths=False)
        stack.callback(work.release)
        short = make_run_dir(settings.run_dir)
        stack.callback(short.release)
        yield work.path / "files", short.path
