"""Answers of language models: find the code, run what is meant to run."""

from __future__ import annotations

import asyncio
from functools import partial

from emberbox.config import Settings
from emberbox.engine import BlockListener, ExecuteRequest
from emberbox.errors import UnsupportedLanguage, ValidationFailed, VmExecutionError
from emberbox.models import (
    BlockError,
    CodeBlock,
    Execution,
    ParseExecuteRequest,
    ParseExecuteResponse,
    VmExecutionConfig,
)
from emberbox.sandbox.listeners import Listeners
from emberbox.server import bounds
from emberbox.server.auth import Principal
from emberbox.server.service import Service


class SameListeners:
    """All blocks are heard by the same listeners."""

    def __init__(self, listeners: Listeners) -> None:
        self._listeners = listeners

    async def block_begins(self, index: int, block: CodeBlock) -> Listeners:
        """A block is about to run."""
        del index, block
        return self._listeners

    async def block_ran(self, index: int, execution: Execution) -> None:
        """It ran."""

    async def block_refused(self, index: int, error: VmExecutionError) -> None:
        """It did not."""


async def parse_execute(
    service: Service,
    principal: Principal,
    body: ParseExecuteRequest,
    agent_id: str | None,
    listener: BlockListener,
    vm_id: str | None = None,
) -> ParseExecuteResponse:
    """Find the code in a text and run what is meant to run, in the agent's own machine, or the one that is named.

    Args:
        service: runs it.
        principal: for whom.
        body: the text, and from which confidence code is run.
        agent_id: as the request names it.
        listener: hears of the blocks.
        vm_id: the machine.

    Raises:
        VmExecutionError: nothing could run at all. Why a single block did not is in the answer.
    """
    config = _config(service.settings, body.vm_config)
    seconds = bounds.config_seconds(service.settings, body.vm_config)
    most = min(service.config.max_answer_length, service.settings.max_input_bytes)
    if len(body.llm_response) > most:
        raise ValidationFailed(
            f"llm_response: {len(body.llm_response):,} characters are more than the {most:,} of an answer.",
            remediation="Give less at once, or raise server.max_answer_length.",
        )
    extractor = service.engine.extractor
    text = body.llm_response  # a long one takes a while: others are served meanwhile
    blocks, intent = await asyncio.to_thread(extractor.read, text, continues=True)
    found = ParseExecuteResponse(code_blocks=blocks, intent=intent)
    if not body.auto_execute:
        return found
    agent = agent_id if vm_id is not None else principal.agent(agent_id)

    async def execute(request: ExecuteRequest, listeners: Listeners) -> Execution:
        if service.engine.runnable_language(request.language, request.sandbox) not in config.allowed_languages:
            raise UnsupportedLanguage(f"{request.language} is not allowed by vm_config.", remediation="Allow it there.")
        return await service.execute(principal, request, listeners)

    results, errors = await service.engine.run_answer(
        blocks,
        partial(service.lease, principal, agent, vm_id),
        threshold=body.auto_execute_threshold,
        timeout=seconds,
        listener=listener,
        agent_id=agent or await service.visible(principal, vm_id or ""),
        execute=execute,
    )
    found.execution_results, found.errors = results, errors
    return found


def block_error(index: int, error: VmExecutionError) -> BlockError:
    """Why a block did not run."""
    return BlockError(block=index, code=error.code, message=error.message, remediation=error.remediation)


def _config(settings: Settings, wanted: VmExecutionConfig | None) -> VmExecutionConfig:
    """What of a request's own settings counts: languages, where they are narrower than the server's.
    Policy, history and limits are the server's: a client must not choose what it is allowed."""
    own = settings.vm_execution
    if wanted is None:
        return own
    if not wanted.enabled and "enabled" in wanted.model_fields_set:
        raise ValidationFailed(
            "vm_config says enabled: false, so that nothing may run.",
            remediation="Use auto_execute: false to look only.",
        )
    return own.model_copy(
        update={
            "allowed_languages": [one for one in own.allowed_languages if one in wanted.allowed_languages],
        }
    )
