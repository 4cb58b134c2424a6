"""Machines of nothing: they answer what a sandbox asks of its agent while it starts, and die as they are told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emberbox.errors import SnapshotFailed, VmConnectionError
from emberbox.guest.protocol import PROTOCOL_VERSION
from emberbox.images.store import Image
from emberbox.machines.contract import Death, MachineStats, Snapshot
from emberbox.models import MachineLimits, TerminationReason


class FakeChannel:
    """Answers every request, or raises what it is told to."""

    def __init__(self) -> None:
        self.closed: VmConnectionError | None = None
        self.quiet = True
        self.last_request = 0
        self.error: Exception | None = None
        self.asked: list[str] = []
        self.hello: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.hello.set_result({"protocol": PROTOCOL_VERSION})

    async def call(self, op: str, *_: object, **__: object) -> tuple[dict[str, Any], bytes]:
        self.asked.append(op)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if self.closed is not None:
            raise self.closed
        return {}, b""

    def held(self) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    def resync(self, *_: object, **__: object) -> None:
        pass


class FakeMachine:
    """A machine that lives until it is killed or dies."""

    backend = "fake"

    def __init__(self, name: str) -> None:
        self.id = name
        self.channel = FakeChannel()
        self.survives = False
        self.checkpoint_fails = False
        self.on_checkpoint: Callable[[], object] = lambda: None
        """Called while it is written down."""
        self.may_end = asyncio.Event()
        """A kill takes until it is set."""
        self.may_end.set()
        self.on_survive: Callable[[], object] = lambda: None
        """Called while it is told to survive its owner."""
        self._dead: asyncio.Future[Death] = asyncio.get_running_loop().create_future()

    @property
    def killed(self) -> bool:
        return self._dead.done()

    async def wait(self) -> Death:
        return await asyncio.shield(self._dead)

    async def kill(self, death: Death | None = None) -> Death:
        await self.may_end.wait()
        self.die(death or Death(TerminationReason.KILLED, "it was killed"))
        return await self.wait()

    def die(self, death: Death) -> None:
        if not self._dead.done():
            self.channel.closed = VmConnectionError("The machine is gone.")
            self._dead.set_result(death)

    async def survive_owner(self, seconds: float) -> None:
        self.on_survive()
        await asyncio.sleep(0)
        self.survives = seconds > 0

    async def checkpoint(self, directory: Path) -> int:
        if self.checkpoint_fails:
            raise SnapshotFailed("It refuses.")
        self.on_checkpoint()
        await asyncio.sleep(0)
        directory.mkdir(mode=0o700)
        (directory / "pages.img").write_bytes(b"memory")
        return 6

    def rest(self) -> None:
        return None

    def stats(self) -> MachineStats:
        return MachineStats()


class FakeFactory:
    """Makes them. What `failures` holds is raised by the next forks, one after the other."""

    backend = "fake"
    identity = "fake 1"

    def __init__(self) -> None:
        self.machines: list[FakeMachine] = []
        self.forked: list[str] = []
        """Names of the snapshots."""
        self.failures: list[Exception] = []
        self.prepared: Callable[[FakeMachine], object] = lambda _: None
        """Called with each machine before it is handed out."""

    async def fork(self, snapshot: Snapshot, blank: FakeMachine | None = None) -> FakeMachine:
        self.forked.append(snapshot.directory.name)
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        return self._made()

    async def boot(self, image: Image, limits: MachineLimits) -> FakeMachine:
        return self._made()

    async def prepare(self, image: Image, limits: MachineLimits) -> FakeMachine:
        return self._made()

    def _made(self) -> FakeMachine:
        machine = FakeMachine(f"fk-{len(self.machines)}")
        self.machines.append(machine)
        self.prepared(machine)
        return machine
