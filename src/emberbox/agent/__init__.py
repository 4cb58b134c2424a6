"""An agent: a role file in, a message in, an executed answer out (docs/agent.md).

async with TerraphimAgent("role.json") as agent:
    output = await agent.process_command(CommandInput(command=CommandType.EXECUTE, text=answer))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emberbox.agent.agent import TerraphimAgent
    from emberbox.agent.listening import AgentListener
    from emberbox.agent.models import CommandInput, CommandOutput, CommandStatus, CommandType, TokenUsage
    from emberbox.agent.role import Role

_HOMES = {
    "AgentListener": "listening",
    "CommandInput": "models",
    "CommandOutput": "models",
    "CommandStatus": "models",
    "CommandType": "models",
    "Role": "role",
    "TerraphimAgent": "agent",
    "TokenUsage": "models",
}

__all__ = [
    "AgentListener",
    "CommandInput",
    "CommandOutput",
    "CommandStatus",
    "CommandType",
    "Role",
    "TerraphimAgent",
    "TokenUsage",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'emberbox.agent' has no attribute {name!r}")
    return getattr(import_module(f"emberbox.agent.{home}"), name)
