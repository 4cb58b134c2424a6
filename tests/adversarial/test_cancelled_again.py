"""Callers that are cancelled at every await, as anyio does it: what they had begun is cleared away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from emberbox import Engine, Settings
from emberbox.machines.gvisor.factory import GvisorFactory
from emberbox.machines.gvisor.machine import GvisorMachine

MINIMAL = "minimal"


@pytest.fixture
async def engine(nothing_left: None, settings: Settings, tmp_path: Path) -> Any:
    settings.snapshot_dir = tmp_path / "snapshots"
    settings.vm_execution.vm_pool_size = 0
    async with Engine(settings) as engine:
        yield engine


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def left(tmp_path: Path) -> list[str]:
    found = (tmp_path / "snapshots").glob("*/**/*.img")
    return [str(path) for path in found if "templates" not in path.parts]


async def test_a_snapshot(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = await engine.create_sandbox(MINIMAL)
    scope, original = anyio.CancelScope(), GvisorMachine.checkpoint
    written = []

    async def checkpoint(self: GvisorMachine, directory: Path) -> int:
        size = await original(self, directory)
        written.extend(left(tmp_path))
        scope.cancel()
        return size

    monkeypatch.setattr(GvisorMachine, "checkpoint", checkpoint)
    with scope:
        await engine.checkpoints.snapshot(sandbox)
    assert scope.cancelled_caught
    assert written != []
    await until(lambda: left(tmp_path) == [])
    monkeypatch.undo()
    assert await engine.checkpoints.snapshots(sandbox) == []
    assert (await engine.checkpoints.snapshot(sandbox)).size_bytes > 0, "it was woken"


async def test_forks(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = await engine.create_sandbox(MINIMAL)
    scope, original = anyio.CancelScope(), GvisorFactory.fork
    made = []

    async def fork(self: GvisorFactory, *arguments: Any) -> Any:
        machine = await original(self, *arguments)
        made.append(machine)
        if len(made) == 3:
            scope.cancel()
        return machine

    monkeypatch.setattr(GvisorFactory, "fork", fork)
    with scope:
        await engine.checkpoints.fork(sandbox, 4)
    assert scope.cancelled_caught
    assert engine._sandboxes is not None
    manager = engine._sandboxes
    await until(lambda: manager.instances() == [sandbox])
    await until(lambda: all(machine.state.value == "dead" for machine in made))
    await until(lambda: left(tmp_path) == [])
