"""The desk where questions wait for people who are elsewhere."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from emberbox.errors import NoCapacity, ValidationFailed
from emberbox.hooks import ApprovalDesk, ApprovalRequest, ApprovalResponse, AskUser, Hook, HookManager, PreToolContext
from emberbox.hooks.contract import Allow, HookDecision


def question(approval_id: str, agent_id: str = "local") -> ApprovalRequest:
    later = datetime.now(UTC) + timedelta(minutes=5)
    return ApprovalRequest(
        approval_id=approval_id, prompt="?", code="x", stage="pre_tool", hook="h", agent_id=agent_id, expires_at=later
    )


async def test_a_question_waits_until_it_is_answered_by_its_id() -> None:
    told: list[str] = []
    desk = ApprovalDesk(on_request=lambda request: told.append(request.approval_id))
    first, second = asyncio.create_task(desk(question("ap-1"))), asyncio.create_task(desk(question("ap-2", "bot")))
    await asyncio.sleep(0)
    assert told == ["ap-1", "ap-2"]
    assert [request.approval_id for request in desk.pending()] == ["ap-1", "ap-2"]
    assert [request.approval_id for request in desk.pending("bot")] == ["ap-2"]
    desk.answer(ApprovalResponse(approval_id="ap-2", approve=False, by="ada"))
    assert (await second).by == "ada"
    desk.answer(ApprovalResponse(approval_id="ap-1", approve=True))
    assert (await first).approve
    assert desk.pending() == []


async def test_a_question_is_answered_once_and_only_if_it_waits() -> None:
    desk = ApprovalDesk()
    asking = asyncio.create_task(desk(question("ap-1")))
    await asyncio.sleep(0)
    desk.answer(ApprovalResponse(approval_id="ap-1", approve=True))
    for approval_id in ("ap-1", "ap-other"):
        with pytest.raises(ValidationFailed, match=f"No question '{approval_id}' waits"):
            desk.answer(ApprovalResponse(approval_id=approval_id, approve=False))
    assert (await asking).approve


async def test_only_so_many_questions_wait() -> None:
    desk = ApprovalDesk(most=1)
    asking = asyncio.create_task(desk(question("ap-1")))
    await asyncio.sleep(0)
    with pytest.raises(NoCapacity, match="1 questions wait already"):
        await desk(question("ap-2"))
    asking.cancel()
    await asyncio.wait([asking])
    assert desk.pending() == []


async def test_a_question_that_expired_is_gone_from_the_desk() -> None:
    class Asks(Hook):
        async def pre_tool(self, context: PreToolContext) -> HookDecision:
            return AskUser(prompt="?") if context.code else Allow()

    desk = ApprovalDesk()
    manager = HookManager([Asks()], approver=desk, approval_timeout_seconds=0.01)
    decision = await manager.run_pre_tool(PreToolContext(code="x", language="bash"))
    assert decision.decision == "block"
    assert desk.pending() == []
