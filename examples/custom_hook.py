"""Hooks of one's own: code that reaches for a production database is refused, long scripts are shown to a person first.

python examples/custom_hook.py
"""

from __future__ import annotations

import asyncio
import sys

from emberbox import AsyncSandbox, Engine, VmExecutionError
from emberbox.errors import PolicyBlocked
from emberbox.hooks import Allow, AskUser, Block, Hook, HookDecision, OutputSanitizerHook, PreToolContext
from emberbox.models import ApprovalRequest


class House(Hook):
    """The rules of this house."""

    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        """Before code runs."""
        if "prod-db" in context.code:
            return Block(reason="agents work on copies, not on prod-db")
        if context.language == "bash" and context.code.count("\n") > 3:
            return AskUser(prompt="A long script. Run it?")
        return Allow()


def ask(request: ApprovalRequest) -> bool:
    """Who is asked; a real one would show it to a person."""
    print(f"{request.prompt} ({len(request.code.splitlines())} lines) yes")
    return True


async def main() -> None:
    """Code that passes, code that is refused, output that is redacted."""
    async with Engine(hooks=[House(), OutputSanitizerHook()], approver=ask) as engine:
        sandbox = await AsyncSandbox.create(engine=engine)
        try:
            await sandbox.run_code("connect('prod-db')")
        except PolicyBlocked as refused:
            print(refused.message)
        run = await sandbox.run_code("echo one\necho two\necho three\necho four\necho mail ada@example.com", "bash")
        print(run.stdout)
        for entry in await sandbox.history():
            print(entry.state, [f"{one.hook}: {one.decision}" for one in entry.decisions])


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except VmExecutionError as error:
        sys.exit(f"{error.message} {error.remediation}")
