"""Hearing of what an agent does while it does it."""

from __future__ import annotations

from typing import Protocol

from emberbox.errors import VmExecutionError
from emberbox.models import CodeBlock, Execution
from emberbox.sandbox.listeners import Listeners


class AgentListener(Protocol):
    """Told of each step of a command. `index` is that of the block in `CommandOutput.code_blocks`."""

    async def model_answered(self, text: str, *, final: bool) -> None:
        """What the model said, without tool calls; `final`: nothing of it runs."""
        ...

    async def taken_back(self, snapshot_id: str) -> None:
        """The sandbox was rolled back before another try."""
        ...

    async def block_begins(self, index: int, block: CodeBlock) -> Listeners:
        """Code is about to run; return who hears its output."""
        ...

    async def block_ran(self, index: int, execution: Execution) -> None: ...

    async def block_refused(self, index: int, error: VmExecutionError) -> None: ...


class Silent:
    """Hears nothing."""

    async def model_answered(self, text: str, *, final: bool) -> None:
        del text, final

    async def taken_back(self, snapshot_id: str) -> None:
        del snapshot_id

    async def block_begins(self, index: int, block: CodeBlock) -> Listeners:
        del index, block
        return Listeners()

    async def block_ran(self, index: int, execution: Execution) -> None:
        del index, execution

    async def block_refused(self, index: int, error: VmExecutionError) -> None:
        del index, error
