"""What a sandbox is, whatever machine it gets."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from emberbox.sandbox.lineage import SnapshotPoint

LOCAL_AGENT = "local"
"""The user of the SDK or the command line, who shares the host with nobody."""


def new_sandbox_id() -> str:
    """Make up an id that no other sandbox has."""
    return f"sb-{secrets.token_hex(6)}"


@dataclass(frozen=True, slots=True)
class SandboxOptions:
    """What a sandbox is other than its machine, image and limits.

    Args:
        envs: its own environment.
        metadata: its words.
        agent_id: whose it is.
        sandbox_id: its name; a new one by default.
        own: it is the one that its agent gets without naming one.
        durable: it outlives this process where others do.
        idle_seconds: it ends, or is suspended, when it is not used for so long; None: it does not.
        origin: what it goes on from, where it is a copy.
    """

    envs: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    agent_id: str = LOCAL_AGENT
    sandbox_id: str = field(default_factory=new_sandbox_id)
    own: bool = False
    durable: bool = True
    idle_seconds: float | None = None
    origin: SnapshotPoint = field(default_factory=SnapshotPoint)
