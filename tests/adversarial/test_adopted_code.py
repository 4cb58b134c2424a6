"""Code that still runs in a sandbox whose service was killed: the next one can stop it, and loses nothing by that."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from emberbox import Engine, Settings
from emberbox.engine import ExecuteRequest

pytestmark = pytest.mark.usefixtures("nothing_left")

KILLED = """
import asyncio, os, signal
from emberbox import Engine
from emberbox.engine import ExecuteRequest
from emberbox.sandbox.listeners import Listeners

async def main():
    engine = Engine(durable=True)
    box = await engine.lease("alice", template="minimal")
    await engine.execute(ExecuteRequest(box, "python", "n = 1"))
    code = "print('on', flush=True)\\nwhile True: pass"
    await engine.execute(ExecuteRequest(box, "python", code), Listeners(lambda _: os.kill(os.getpid(), signal.SIGKILL)))

asyncio.run(main())
"""


async def killed() -> None:
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", KILLED], timeout=90, check=False)
    assert done.returncode == -9


async def value(engine: Engine) -> str | None:
    box = await engine.lease("alice")
    return (await engine.execute(ExecuteRequest(box, "python", "n"))).text


async def test_it_can_be_interrupted(settings: Settings) -> None:
    await killed()
    async with Engine(settings, durable=True) as engine:
        box = await engine.lease("alice")
        assert box.recovered is not None
        assert box.recovered.how == "adopted"
        assert await box.runner.interrupt("python") == 1
        async with asyncio.timeout(30):
            while any(context.busy for context in await box.contexts.list()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await value(engine) == "1"
        assert await box.runner.interrupt() == 0
        await box.kill()


async def test_a_close_puts_the_sandbox_aside(settings: Settings) -> None:
    await killed()
    async with Engine(settings, durable=True) as engine:
        await engine.list_sandboxes()
        assert [found.how for found in engine.recovered] == ["adopted"]
    async with Engine(settings, durable=True) as engine:
        assert await value(engine) == "1"
        assert [found.how for found in engine.recovered] == ["dormant"]
        await (await engine.lease("alice")).kill()
