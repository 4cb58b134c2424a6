"""The machine contract: one isolated computer that we own, and the factory that makes them.

Every back end implements these two. Nothing above this room knows which one it is talking to; what a back end can or
cannot do is said by `Capabilities`, never by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from emberbox.images.store import Image
from emberbox.machines.channel import Channel
from emberbox.models import MachineLimits, TerminationReason


class MachineState(StrEnum):
    """Life of a machine. `next_states` has the arrows."""

    STARTING = "starting"
    RUNNING = "running"
    DEAD = "dead"


_ARROWS: dict[MachineState, frozenset[MachineState]] = {
    MachineState.STARTING: frozenset({MachineState.RUNNING, MachineState.DEAD}),
    MachineState.RUNNING: frozenset({MachineState.DEAD}),
    MachineState.DEAD: frozenset(),
}


def next_states(state: MachineState) -> frozenset[MachineState]:
    """The states that may follow."""
    return _ARROWS[state]


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
    """SHA-256 of each file, checked before the snapshot is used; None for files that never left this process's care."""


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
    oom_kills: int = 0


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
        """Wait for the end of the machine, whoever caused it."""

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

    async def pause(self) -> None:
        """Stop all of its processes; it keeps its memory and uses no CPU."""

    async def resume(self) -> None:
        """Let it go on after `pause`."""

    def stats(self, *, reset_peak: bool = False) -> MachineStats:
        """Figures of now; `reset_peak` starts the peak anew where the kernel allows it."""


@runtime_checkable
class MachineFactory(Protocol):
    """Makes machines of one back end."""

    backend: str

    @property
    def identity(self) -> str:
        """Name and version of what runs the machines: a snapshot of one is of no use to another."""

    def capabilities(self) -> Capabilities:
        """What was found on this host, without starting anything."""

    async def boot(self, image: Image, limits: MachineLimits) -> Machine:
        """Start a machine from nothing; returns when its channel is open (the agent's hello comes through it)."""

    async def fork(self, snapshot: Snapshot) -> Machine:
        """Start a machine that goes on from the snapshot; returns when its channel is open and its agent runs (the
        first request must be `wake`)."""

    async def sweep(self) -> int:
        """Remove what machines of dead owners left behind; the number of machines found."""

    async def close(self) -> None:
        """Kill every machine that this factory made."""

    def abandon(self) -> None:
        """Let go of every machine, without an event loop; none of them survives it."""
