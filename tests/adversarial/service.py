"""A service that is killed at a named moment: `python service.py ACTION [CLASS.METHOD before|after [WHEN]]`.

It keeps alice's sandbox (variable `x`, file `f`), says on its standard output what has been acknowledged to it, one
JSON document a line, and then does ACTION. The method kills the process, once it is armed and WHEN holds.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from emberbox import Engine, load_settings
from emberbox.engine import ExecuteRequest
from emberbox.history.recorder import HistoryRecorder
from emberbox.host.spawner import Spawner
from emberbox.machines.channel import Channel
from emberbox.machines.gvisor.factory import GvisorFactory
from emberbox.machines.gvisor.machine import GvisorMachine
from emberbox.sandbox.durability.registry import SandboxRegistry
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import Listeners, RunOptions
from emberbox.sandbox.snapshots.service import SnapshotService
from emberbox.sandbox.snapshots.store import SnapshotStore

CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Channel, SnapshotService, GvisorFactory, GvisorMachine, HistoryRecorder, SandboxRegistry, SandboxInstance,
        SnapshotStore, Spawner,
    )
}  # fmt: skip
armed = False

WHENS: dict[str, Callable[..., bool]] = {
    "always": lambda *_: True,
    "is started": lambda _, entry: entry.state == "started",
    "is finished": lambda _, entry: entry.state == "finished",
    "is suspended": lambda _, record: record.machine is None,
    "is of bob": lambda _, record: record.agent_id == "bob",
    # a frame is half in the pipe, and more of it is missing than the pipe holds
    "is half-way": lambda channel: any(len(c) < len(c.obj) and len(c) > 65536 for c in channel._out),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def deadly(place: str, moment: str, when: str = "always") -> None:
    """From now on the method kills the process, before or after it does its work."""
    kind, name = place.split(".")
    original = getattr(CLASSES[kind], name)
    condition = WHENS[when]

    @functools.wraps(original)
    async def a_sync(*args: Any, **kwargs: Any) -> Any:
        if armed and moment == "before" and condition(*args):
            die()
        result = await original(*args, **kwargs)
        if armed and moment == "after" and condition(*args):
            die()
        return result

    @functools.wraps(original)
    def sync(*args: Any, **kwargs: Any) -> Any:
        if armed and moment == "before" and condition(*args):
            die()
        result = original(*args, **kwargs)
        if armed and moment == "after" and condition(*args):
            die()
        return result

    patched = a_sync if inspect.iscoroutinefunction(original) else sync
    static = isinstance(inspect.getattr_static(CLASSES[kind], name), staticmethod)
    setattr(CLASSES[kind], name, staticmethod(patched) if static else patched)


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


class Service:
    def __init__(self) -> None:
        self.engine = Engine(load_settings(), durable=True)
        self.alice: SandboxInstance

    async def run(self, code: str, listeners: Listeners | None = None) -> None:
        request = ExecuteRequest(self.alice, "python", code, RunOptions(timeout=2), agent_id="alice")
        say(ran=(await self.engine.execute(request, listeners)).execution_id)

    async def begin(self) -> None:
        self.alice = await self.engine.lease("alice", template="minimal", envs={"SECRET": "s3cret"})
        say(sandbox=self.alice.id)
        await self.run("x = 1; print(open('f', 'w').write('one'))")

    async def state_two(self) -> None:
        say(snapshot=(await self.engine.checkpoints.snapshot(self.alice, "one")).snapshot_id)
        await self.run("x = 2; print(open('f', 'w').write('two'))")

    # --- what it is killed in -------------------------------------------------------------------------------------

    async def idle(self) -> None:
        die()

    async def idle_with_snapshot(self) -> None:
        await self.state_two()
        die()

    async def without_stderr(self) -> None:
        machine = self.alice.machine
        assert isinstance(machine, GvisorMachine)
        assert machine._stderr is not None
        machine._stderr.close()  # runsc has closed its end
        await machine.survive_owner(60)
        die()

    async def wake(self) -> None:
        await self.engine.lease("alice")

    async def paused(self) -> None:
        await self.alice.pause()
        die()

    async def execute(self) -> None:
        await self.run("y = 1")

    async def noise(self) -> None:
        await self.run("while True: print('noise' * 1000)", Listeners(on_stdout=lambda _: die()))

    async def write(self) -> None:
        await self.alice.files.write("big", b"b" * (16 << 20))

    async def snapshot(self) -> None:
        await self.engine.checkpoints.snapshot(self.alice, "one")

    async def rollback(self) -> None:
        await self.engine.checkpoints.rollback(self.alice, "one")
        await self.alice._replaced_is_gone()  # which rollback does not wait for

    async def create(self) -> None:
        await self.engine.lease("bob", template="minimal")

    async def suspend(self) -> None:
        assert self.engine._sandboxes is not None
        await self.engine._sandboxes.end(self.alice)

    async def close(self) -> None:
        await self.engine.close()


async def main(action: str, *how: str) -> None:
    global armed  # noqa: PLW0603 (one service a process)
    service = Service()
    if how:
        deadly(*how)
    await service.begin()
    if action in ("rollback", "suspend", "close"):
        await service.state_two()
    if action == "wake":
        await service.suspend()
    armed = True
    await getattr(service, action)()
    say(survived=True)
    await service.engine.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
