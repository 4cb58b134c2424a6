"""Hooks on the client's side of a server: what the engine's guardrails do, for code that runs elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from emberbox.code_extractor import CodeBlockExtractor
from emberbox.engine.guardrails import ExecutionSubject, Guardrails
from emberbox.hooks.manager import HookManager
from emberbox.languages import get_language
from emberbox.models import VmExecuteRequest, VmExecuteResponse, VmExecutionConfig
from emberbox.sandbox.listeners import Listeners

Run = Callable[[VmExecuteRequest, Listeners], Awaitable[VmExecuteResponse]]


class Guarded:
    """Executions behind hooks of this side.

    Args:
        hooks: in force.
        config: its policy and limits are checked as well, before code leaves.
    """

    def __init__(self, hooks: HookManager, config: VmExecutionConfig) -> None:
        self._guardrails = Guardrails(hooks, CodeBlockExtractor(config=config))

    async def execute(self, request: VmExecuteRequest, listeners: Listeners, run: Run) -> VmExecuteResponse:
        """Run what the hooks let through; the answer is what they let the caller see.

        Args:
            request: what is wanted.
            listeners: hear what the hooks' filters let through.
            run: runs it on the server.

        Raises:
            PolicyBlocked: a hook, a rule or a person refused it, or withholds the output.
        """
        language = get_language(request.language).config.name
        subject = ExecutionSubject(agent_id=request.agent_id, vm_id=request.vm_id, metadata=request.metadata or {})
        async with self._guardrails.guarded(subject, language, request.code, listeners, []) as guarded:
            checked = request.model_copy(update={"code": guarded.code})
            guarded.execution = (await run(checked, guarded.listeners)).execution()
        return VmExecuteResponse.of(guarded.seen)
