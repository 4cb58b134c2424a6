"""Hooks of a client's side: what runs, and what its caller sees."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from emberbox.clients.guarded import Guarded
from emberbox.errors import PolicyBlocked
from emberbox.hooks import Allow, Block, Hook, HookDecision, HookManager, Modify, PostToolContext, PreToolContext
from emberbox.hooks.output_sanitizer import OutputSanitizerHook
from emberbox.models import VmExecuteRequest, VmExecuteResponse, VmExecutionConfig
from emberbox.sandbox.listeners import Listeners

REQUEST = VmExecuteRequest(agent_id="a", language="python", code="print(1)", vm_id="vm")


class Signs(Hook):
    """Changes code, and may withhold output."""

    def __init__(self, *, blocks: bool = False) -> None:
        self._blocks = blocks
        self.saw: list[PostToolContext] = []

    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        return Block(reason="no") if "secret" in context.code else Modify(value=context.code + "  # signed")

    async def post_tool(self, context: PostToolContext) -> HookDecision:
        self.saw.append(context)
        return Block(reason="not for you") if self._blocks else Allow()


class Server:
    """Answers as a server does, with what the output is to be."""

    def __init__(self, *pieces: str, error: Exception | None = None) -> None:
        self._pieces = pieces
        self._error = error
        self.ran: list[str] = []

    async def run(self, request: VmExecuteRequest, listeners: Listeners) -> VmExecuteResponse:
        self.ran.append(request.code)
        for piece in self._pieces:
            await listeners.text("stdout", piece)
        if self._error is not None:
            raise self._error
        now = datetime.now(UTC)
        return VmExecuteResponse(
            execution_id="e",
            vm_id="vm",
            backend="gvisor",
            language="python",
            exit_code=0,
            stdout="".join(self._pieces),
            stderr="",
            started_at=now,
            completed_at=now,
            duration_ms=1,
        )


def guarded(*hooks: Hook) -> Guarded:
    return Guarded(HookManager(hooks), VmExecutionConfig())


async def test_the_server_gets_what_the_hooks_made_of_the_code() -> None:
    hook, server = Signs(), Server("1\n")
    seen = await guarded(hook).execute(REQUEST, Listeners(), server.run)
    assert server.ran == ["print(1)  # signed"]
    assert seen.stdout == "1\n"
    assert [(one.original_code, one.parts.stdout) for one in hook.saw] == [("print(1)  # signed", "1\n")]


async def test_what_a_hook_refuses_never_leaves() -> None:
    server = Server()
    with pytest.raises(PolicyBlocked, match="no"):
        await guarded(Signs()).execute(REQUEST.model_copy(update={"code": "secret"}), Listeners(), server.run)
    assert server.ran == []


async def test_output_that_a_hook_withholds_is_not_returned() -> None:
    with pytest.raises(PolicyBlocked, match="not for you"):
        await guarded(Signs(blocks=True)).execute(REQUEST, Listeners(), Server("1\n").run)


async def test_what_streams_goes_through_the_filters_to_its_end() -> None:
    heard: list[str] = []
    server = Server("mail ada@exam", "ple.com now")
    seen = await guarded(OutputSanitizerHook()).execute(REQUEST, Listeners(heard.append), server.run)
    assert "".join(heard) == seen.stdout == "mail [REDACTED:email] now"


async def test_an_error_of_the_server_is_the_callers_and_nothing_half_is_shown() -> None:
    heard: list[str] = []
    server = Server("mail ada@exam", error=OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        await guarded(OutputSanitizerHook()).execute(REQUEST, Listeners(heard.append), server.run)
    assert "ada@" not in "".join(heard)
