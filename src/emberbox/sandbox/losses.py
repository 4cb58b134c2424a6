"""What agents have lost with the sandbox that they have without naming it, until somebody is told.

Such a sandbox died, and there is no snapshot for it to go on from. Whoever runs code in the next one of its agent does
not know that it is another: the first execution there says so, and what went with the one before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from emberbox.sandbox.durability.records import SandboxRecords
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.lineage import Restoration

_MOST_AGENTS = 10_000


@dataclass(slots=True)
class _Lost:
    restoration: Restoration
    sandboxes: list[str] = field(default_factory=list)
    """Their ids; the records of durable ones stay until the loss is told, or written down with another sandbox."""


class Losses:
    """The losses of one engine's agents.

    Args:
        records: of sandboxes that outlive the process; None: none does.
    """

    def __init__(self, records: SandboxRecords | None) -> None:
        self._records = records
        self._by_agent: dict[str, _Lost] = {}

    def note(self, agent_id: str, sandbox_id: str, loss: Restoration) -> None:
        """Note that the sandbox which an agent has without naming it is lost. Of more than 10,000 agents, those that
        lost theirs longest ago are not told."""
        before = self._by_agent.pop(agent_id, None)
        ids, earlier = ([], None) if before is None else (before.sandboxes, before.restoration)
        self._by_agent[agent_id] = _Lost(loss.and_before(earlier), [*ids, sandbox_id])
        if len(self._by_agent) > _MOST_AGENTS:
            self._forget(self._by_agent.pop(next(iter(self._by_agent))))

    @contextlib.contextmanager
    def told_in(self, instance: SandboxInstance) -> Iterator[None]:
        """Have whoever runs code in a sandbox learn what its agent has lost. The sandbox is written down meanwhile;
        where that fails, another one tells it."""
        lost = self._by_agent.pop(instance.agent_id, None) if instance.own else None
        if lost is None:
            yield
            return
        instance.replaces(lost.restoration)
        try:
            yield
        except BaseException:
            self._by_agent[instance.agent_id] = lost
            raise
        if instance.durable:
            self._forget(lost)

    def _forget(self, lost: _Lost) -> None:
        if self._records is not None:
            self._records.forget_left(lost.sandboxes)
