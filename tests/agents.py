"""Agents of tests: made with a scripted model or none, and closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chat_server import ChatServer
from emberbox.agent import CommandInput, CommandOutput, CommandType, Role, TerraphimAgent
from emberbox.hooks import ApprovalRequest, ApprovalResponse

VM = {"enabled": True, "default_vm_type": "minimal", "history": {"integration_mode": "direct"}}
ALONE = {"name": "alone", "vm_execution": VM}
"""A role without a model."""
FAILS = "open('trace', 'a').write('x')\ncount = globals().get('count', 0) + 1\n1 / 0"
LOOKS = "import os\nprint(open('trace').read() if os.path.exists('trace') else 'no trace', 'count' in globals())"


class Agents:
    """Makes agents, and closes them."""

    def __init__(self) -> None:
        self._made: list[TerraphimAgent] = []

    def make(self, role: dict[str, Any] | Path | Role, **options: Any) -> TerraphimAgent:
        self._made.append(TerraphimAgent(role, **options))
        return self._made[-1]

    def of(self, server: ChatServer, options: dict[str, Any] | None = None, **keys: Any) -> TerraphimAgent:
        """One that asks a server."""
        return self.make(server.role(**{"vm_execution": VM, **keys}), **(options or {}))

    async def close(self) -> None:
        for agent in self._made:
            await agent.close()


class Person:
    """Answers questions, and remembers them."""

    def __init__(self, *answers: bool | str) -> None:
        self._answers = list(answers)
        self.asked: list[ApprovalRequest] = []

    def __call__(self, request: ApprovalRequest) -> ApprovalResponse:
        self.asked.append(request)
        answer = self._answers.pop(0)
        edited = answer if isinstance(answer, str) else None
        return ApprovalResponse(approval_id=request.approval_id, approve=bool(answer), edited_code=edited, by="ada")


async def execute(agent: TerraphimAgent, text: str) -> CommandOutput:
    return await agent.process_command(CommandInput(command=CommandType.EXECUTE, text=text))


async def chat(agent: TerraphimAgent, text: str = "compute it") -> CommandOutput:
    return await agent.process_command(CommandInput(command=CommandType.CHAT, text=text))


def fenced(code: str, language: str = "python", words: str = "Run this:") -> str:
    return f"{words}\n\n```{language}\n{code}\n```\n"


def printed(output: CommandOutput) -> list[str]:
    return [run.stdout for run in output.execution_results]
