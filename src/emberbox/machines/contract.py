"""The machine contract: one isolated computer that we own, and the factory that makes them.

Every back end implements these two. Nothing above this room knows which one it is talking to; what a back end can or
cannot do is said by `Capabilities`, never by its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from emberbox.images.store import Image
from emberbox.machines.channel import Channel
from emberbox.models import MachineLimits, TerminationReason


class MachineState(StrEnum):
    """Life of a machine. `next_states` has the arrows."""

    STARTING = "starting"
    PREPARED = "prepared"
    RUNNING = "running"
    DEAD = "dead"


_ARROWS: dict[MachineState, frozenset[MachineState]] = {
    MachineState.STARTING: frozenset({MachineState.PREPARED, MachineState.RUNNING, MachineState.DEAD}),
    MachineState.PREPARED: frozenset({MachineState.RUNNING, MachineState.DEAD}),
    MachineState.RUNNING: frozenset({MachineState.DEAD}),
    MachineState.DEAD: frozenset(),
}


def next_states(state: MachineState) -> frozenset[MachineState]:
    """The states that may follow."""
    return _ARROWS[state]


class FileState(NamedTuple):
    """What changes whenever somebody writes to a file, replaces it, or touches its inode."""

    device: int
    inode: int
    size: int
    written_ns: int
    changed_ns: int
    """Of the inode (ctime in stat(2)), which no program can set back."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A machine as it was at one moment: memory, processes and files. Any number of machines can be forked from it."""

    directory: Path
    image: Image
    limits: MachineLimits
    last_request: int
    """Of the channel: numbers up to this one may still be in use inside."""
    size_bytes: int
    digests: Mapping[str, str] | None = None
    """SHA-256 of each file; None where nobody has read them since they were written."""
    written: Mapping[str, FileState] | None = None
    """Each file as this process left it; None for a snapshot that another one wrote. See `digests.py`."""
    idle: bool = False
    """Nothing of the user's ran in it but interpreters that wait; False where nobody looked."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a machine ended."""

    reason: TerminationReason
    message: str


@dataclass(frozen=True, slots=True)
class MachineStats:
    """Figures of the host about a machine, in bytes and seconds; None where the host cannot tell."""

    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    cpu_seconds: float | None = None
    reclaimable_bytes: int = 0
    """Of the memory, pages of files that the host drops when it needs room."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """The most memory that a machine used since a moment, in bytes, and whether its cap killed something in it."""

    peak_bytes: int | None
    killed: bool


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a back end can do on this host."""

    backend: str
    usable: bool
    why: str
    remedy: str = ""
    version: str = ""
    program: str = ""
    cgroup: str = "none"
    limitations: tuple[str, ...] = field(default_factory=tuple)
    features: tuple[str, ...] = field(default_factory=tuple)
    """What this version can do that not every one can, in words."""
    for_tests: bool = False
    """It emulates what should be hardware: `auto` never takes it."""
    unproven: bool = False
    """Nobody has seen it work on this host (machines/probe_cache.py): `auto` does not take it yet."""


@runtime_checkable
class Machine(Protocol):
    """One isolated computer."""

    id: str
    backend: str

    @property
    def channel(self) -> Channel:
        """The byte stream to the guest agent, framed."""

    @property
    def state(self) -> MachineState: ...

    async def wait(self) -> Death:
        """Wait for the end of the machine, whatever caused it."""

    async def kill(self, death: Death | None = None) -> Death:
        """End the machine now and remove what it left on the host. Harmless when it is dead already.

        `death` is what to tell others who wait; the first one given stands.
        """

    async def checkpoint(self, directory: Path) -> int:
        """Write the machine into `directory`, which appears when it is whole; its size in bytes. It runs on.

        The agent must be quiet meanwhile (`quiesce` before, `wake` after).

        Raises:
            SnapshotFailed: the machine or the disk refused; nothing is left.
        """

    async def survive_owner(self, seconds: float) -> None:
        """When this process dies, the machine goes on for so long; the factory of the next one can `adopt` it.

        Raises:
            VmNotAvailable: it cannot.
        """

    async def pause(self, *, idle: bool = False) -> None:
        """Stop all of its processes; it keeps its memory and uses no CPU.

        `idle`: nothing runs in it, so that less need be stopped and it is awake sooner.
        """

    async def resume(self) -> None:
        """Let it go on after `pause`."""

    def rest(self) -> asyncio.Future[None] | None:
        """Stop it until something is asked of its agent. Nothing may run in it.

        What is returned ends when it goes on, or is dead; None: it does not stop, because that would save nothing, or
        cost more than it saves.
        """

    def stats(self) -> MachineStats:
        """Figures of now."""

    def mark(self) -> int:
        """A moment for `since`. The peak of memory begins anew where the kernel allows it."""

    def since(self, mark: int) -> MemoryUse:
        """What became of the memory since a `mark`. Both are asked for every execution: they are to be fast."""


@runtime_checkable
class MachineFactory(Protocol):
    """Makes machines of one back end."""

    backend: str

    @property
    def identity(self) -> str:
        """Name and version of what runs the machines: a snapshot of one is of no use to another."""

    @property
    def probed(self) -> str:
        """What a probe of this host was made with: `identity`, or more where that does not tell one program from
        another. Blocks."""

    def capabilities(self) -> Capabilities:
        """What was found on this host, without starting anything."""

    async def boot(self, image: Image, limits: MachineLimits) -> Machine:
        """Start a machine from nothing; returns when its channel is open (the agent's hello comes through it)."""

    async def prepare(self, image: Image, limits: MachineLimits) -> Machine:
        """Make a machine that waits to be filled by `fork`, a blank: it costs memory and no CPU until then."""

    async def fork(self, snapshot: Snapshot, blank: Machine | None = None) -> Machine:
        """Start a machine that goes on from the snapshot; returns when its channel is open and its agent runs (the
        first request must be `wake`).

        `blank`: of the same image and limits; it is filled, which is faster. It is used up in any case: one that is
        dead or refuses is killed, and a fresh machine is made instead.
        """

    async def adopt(self) -> Mapping[str, Machine]:
        """Take over the machines that outlived the last process of the same settings, by id. Their first request must
        be `wake`. Before anything else is asked of the factory."""

    async def sweep(self) -> int:
        """Remove what machines of dead owners left behind; the number of machines found."""

    async def close(self) -> None:
        """Kill every machine that this factory made."""

    def abandon(self) -> None:
        """Let go of every machine, without an event loop; none of them survives it."""
