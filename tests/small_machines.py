"""Small sandboxes of an engine, for the tests of back ends whose processors may be emulated."""

from __future__ import annotations

from backends import warmed
from emberbox import Engine, MachineLimits
from emberbox.engine import ExecuteRequest
from emberbox.models import Execution
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import RunOptions

LIMITS = MachineLimits(memory_mb=256, disk_mb=64, tmp_mb=32, vcpus=1)


async def start(engine: Engine) -> SandboxInstance:
    return await engine.create_sandbox(warmed("minimal"), limits=LIMITS)


async def run(
    engine: Engine, session: SandboxInstance, code: str, language: str = "python", seconds: float = 60
) -> Execution:
    done = await engine.execute(ExecuteRequest(session, language, code, RunOptions(timeout=seconds)))
    assert done.error is None, (done.error, done.stderr)
    return done
