"""Nothing grows with use, and many copies at once are all there."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import psutil
import pytest

from emberbox import AsyncSandbox, Engine, load_settings
from emberbox.models import MachineLimits
from handles import session_of

MINIMAL = "minimal"


@pytest.mark.timeout(600)
async def test_hundreds_of_executions_and_rollbacks(nothing_left: None, run_dir: Path, tmp_path: Path) -> None:
    settings = load_settings(snapshot_dir=tmp_path / "snapshots")
    async with Engine(settings) as engine:
        sandbox = await AsyncSandbox.create(MINIMAL, engine=engine, timeout=None)
        point = await sandbox.snapshot()

        async def use(executions: int, rollbacks: int) -> None:
            for number in range(executions):
                assert (await sandbox.run_code(f"print({number}); {number}")).text == str(number)
            for _ in range(rollbacks):
                await sandbox.rollback(point)

        await use(100, 10)  # caches are filled, the allocator has settled
        await _rest(engine, sandbox)
        before = _figures(run_dir, tmp_path)
        await use(500, 80)
        await _rest(engine, sandbox)
        after = _figures(run_dir, tmp_path)
        assert after["memory"] - before.pop("memory") < 12 << 20, "bytes of this process"
        assert {name: figure for name, figure in after.items() if figure > before.get(name, figure)} == {}
        await sandbox.kill()


async def _rest(engine: Engine, sandbox: AsyncSandbox) -> None:
    """Until the machine that was replaced last is gone, and the one for the next rollback is there."""
    await session_of(sandbox)._replaced_is_gone()
    async with asyncio.timeout(60):
        while any(kind.starting or not kind.blanks for kind in engine.pool_status()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the pool tells nobody when it has filled itself


def _figures(run_dir: Path, tmp_path: Path) -> dict[str, int]:
    gc.collect()
    me = psutil.Process()
    # the spawner's children: sandboxes, gofers and their stubs; those of a machine that was just killed end at once
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "processes": len([p for p in me.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]),
        "files of machines": len(list(run_dir.rglob("*"))),
        "files of snapshots": len([p for p in (tmp_path / "snapshots").rglob("*") if "templates" not in p.parts]),
        "memory": me.memory_info().rss,
    }


@pytest.mark.timeout(600)
async def test_fifty_forks_at_once(nothing_left: None, run_dir: Path, tmp_path: Path) -> None:
    settings = load_settings(snapshot_dir=tmp_path / "snapshots")
    async with Engine(settings) as engine:
        origin = await AsyncSandbox.create(MINIMAL, engine=engine, limits=MachineLimits(memory_mb=256))
        await origin.run_code("import random; x = 'mine'")
        children = await origin.fork(50)
        assert len({child.sandbox_id for child in children}) == 50
        answers = [await child.run_code("(x, random.random())") for child in children]
        assert [answer for answer in answers if not (answer.text or "").startswith("('mine', ")] == []
        assert len({answer.text for answer in answers}) == 50, "no two draw the same number"
        for box in (origin, *children):
            await box.kill()
