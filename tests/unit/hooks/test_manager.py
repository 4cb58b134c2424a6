"""The manager: order, scope, chains of changes, failing closed, asking people."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberbox.hooks import (
    Allow,
    ApprovalRequest,
    ApprovalResponse,
    AskUser,
    Block,
    Hook,
    HookDecision,
    HookManager,
    Modify,
    PostLlmContext,
    PostToolContext,
    PreLlmContext,
    PreToolContext,
    ToolOutput,
)
from emberbox.models import DecisionRecord

CONTEXT = PreToolContext(code="x", language="python")


class Says(Hook):
    """Gives one decision, and remembers what it was asked about."""

    def __init__(self, decision: HookDecision, name: str = "says") -> None:
        self._decision, self._name, self.saw = decision, name, list[str]()

    @property
    def name(self) -> str:
        return self._name

    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        self.saw.append(context.code)
        return self._decision


class Appends(Hook):
    def __init__(self, text: str) -> None:
        self._text = text

    def pre_tool(self, context: PreToolContext) -> HookDecision:
        return Modify(value=context.code + self._text, reason=f"+{self._text}")


async def test_nothing_to_say_is_allow() -> None:
    assert await HookManager().run_pre_tool(CONTEXT) == Allow()
    assert await HookManager([Hook(), Says(Allow())]).run_pre_tool(CONTEXT) == Allow()


async def test_what_one_hook_makes_of_it_is_what_the_next_one_sees() -> None:
    last = Says(Allow())
    assert await HookManager([Appends("1"), Appends("2"), last]).run_pre_tool(CONTEXT) == Modify(value="x12")
    assert last.saw == ["x12"]


async def test_block_ends_the_run() -> None:
    late = Says(Allow())
    decision = await HookManager([Appends("1"), Says(Block(reason="no"), "strict"), late]).run_pre_tool(CONTEXT)
    assert decision == Block(reason="no", hook="strict")
    assert late.saw == []


@given(st.permutations(range(6)))
async def test_hooks_run_by_order_and_then_as_they_were_added(orders: list[int]) -> None:
    manager = HookManager()
    for order in orders:
        manager.add_hook(Appends(str(order // 2)), order=order // 2)
    decision = await manager.run_pre_tool(CONTEXT)
    assert decision == Modify(value="x001122")


async def test_hooks_may_be_for_some_agents_and_templates_only() -> None:
    manager = HookManager()
    manager.add_hook(Appends("a"), agents=["bot-*"])
    manager.add_hook(Appends("t"), templates=["data", "science"])

    async def made(agent: str, template: str | None) -> str:
        context = CONTEXT.model_copy(update={"agent_id": agent, "template": template})
        decision = await manager.run_pre_tool(context)
        return decision.value if isinstance(decision, Modify) and isinstance(decision.value, str) else "x"

    asked = [("bot-1", "data"), ("bot-1", None), ("me", "science"), ("me", "x")]
    assert [await made(*one) for one in asked] == ["xat", "xa", "xt", "x"]
    with pytest.raises(TypeError, match="lists of names"):
        manager.add_hook(Hook(), agents="bot")


# --- failing closed -------------------------------------------------------------------------------------------------


class Broken(Hook):
    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        raise KeyError("oops")


class Hangs(Hook):
    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        await asyncio.Event().wait()
        return Allow()


class HangsInAThread(Hook):
    def __init__(self) -> None:
        self.never = threading.Event()

    def pre_tool(self, context: PreToolContext) -> HookDecision:
        self.never.wait()
        return Allow()


class ReturnsNonsense(Hook):
    def __init__(self, value: Any) -> None:
        self._value = value

    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        return self._value  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("hook", "why"),
    [
        (Broken(), "hook broken raised KeyError: 'oops'"),
        (Hangs(), "hook hangs took more than its 0.01 s"),
        (HangsInAThread(), "hook hangs-in-athread took more than its 0.01 s"),
        (ReturnsNonsense(None), "hook returns-nonsense returned NoneType, no decision"),
        (ReturnsNonsense("allow"), "hook returns-nonsense returned str, no decision"),
        (ReturnsNonsense(Modify(value=ToolOutput())), "hook returns-nonsense returned a Modify without text"),
    ],
)
async def test_a_hook_that_fails_blocks_and_is_named(hook: Hook, why: str) -> None:
    late = Says(Allow())
    manager = HookManager()
    manager.add_hook(hook, timeout_seconds=0.01)
    manager.add_hook(late)
    assert await manager.run_pre_tool(CONTEXT) == Block(reason=why, hook=hook.name)
    assert late.saw == []
    if isinstance(hook, HangsInAThread):
        hook.never.set()


async def test_objects_with_some_of_the_methods_are_hooks_too() -> None:
    class Duck:
        def pre_tool(self, context: PreToolContext) -> HookDecision:
            return Block(reason="quack")

    manager = HookManager()
    manager.add_hook(Duck())  # type: ignore[arg-type]
    assert await manager.run_pre_tool(CONTEXT) == Block(reason="quack", hook="Duck")
    assert await manager.run_post_llm(PostLlmContext(prompt="", response="")) == Allow()


# --- people ---------------------------------------------------------------------------------------------------------

ASKS = Says(AskUser(prompt="Run it?"), "careful")


def answers(**fields: Any) -> Any:
    return lambda request: ApprovalResponse(approval_id=request.approval_id, **fields)


async def test_a_question_that_nobody_answers_is_a_no() -> None:
    alone = await HookManager([ASKS]).run_pre_tool(CONTEXT)
    assert alone == Block(reason="nobody approved it: Run it?", hook="careful")

    async def sleeps(request: ApprovalRequest) -> bool:
        await asyncio.Event().wait()
        return True

    manager = HookManager([ASKS], approver=sleeps, approval_timeout_seconds=0.01)
    assert await manager.run_pre_tool(CONTEXT) == alone


@pytest.mark.parametrize("approver", [answers(approve=True), lambda _: True])
async def test_a_yes_lets_it_pass(approver: Any) -> None:
    late = Says(Allow())
    assert await HookManager([ASKS, late], approver=approver).run_pre_tool(CONTEXT) == Allow()
    assert late.saw == ["x"]


async def test_a_no_blocks_with_the_reason_of_who_said_it() -> None:
    approver = answers(approve=False, by="ada", reason="not today")
    decision = await HookManager([ASKS], approver=approver).run_pre_tool(CONTEXT)
    assert decision == Block(reason="ada refused it: not today (Run it?)", hook="careful")


async def test_who_answers_is_asked_about_everything_that_matters() -> None:
    seen: list[ApprovalRequest] = []

    def approver(request: ApprovalRequest) -> bool:
        seen.append(request)
        return True

    context = PreToolContext(code="rm x", language="bash", agent_id="a", vm_id="sb-1")
    await HookManager([ASKS], approver=approver).run_pre_tool(context)
    (request,) = seen
    assert (request.code, request.language, request.agent_id, request.vm_id, request.hook, request.stage) == (
        "rm x", "bash", "a", "sb-1", "careful", "pre_tool",
    )  # fmt: skip


class AsksAboutRm(Hook):
    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        if "sudo" in context.code:
            return Block(reason="sudo")
        return AskUser(prompt="rm?") if "rm" in context.code else Allow()


async def test_what_a_person_edits_is_looked_at_again_and_goes_on_from_there() -> None:
    late = Says(Allow())
    context = PreToolContext(code="rm a", language="bash")
    manager = HookManager([AsksAboutRm(), late], approver=answers(approve=True, edited_code="ls a"))
    assert await manager.run_pre_tool(context) == Modify(value="ls a")
    assert late.saw == ["ls a"]
    manager.approver = answers(approve=True, edited_code="sudo rm a")
    assert await manager.run_pre_tool(context) == Block(reason="sudo", hook="asks-about-rm")
    manager.approver = answers(approve=True, edited_code="rm b")  # asked about again and again
    decision = await manager.run_pre_tool(context)
    assert isinstance(decision, Block)
    assert "asked 5 times" in decision.reason


@pytest.mark.parametrize(
    "approver",
    [
        lambda _: 1 / 0,
        lambda _: "yes",
        lambda _: ApprovalResponse(approval_id="ap-other", approve=True),
        lambda _: None,
    ],
)
async def test_an_approver_that_fails_or_answers_something_else_is_nobody(approver: Any) -> None:
    decision = await HookManager([ASKS], approver=approver).run_pre_tool(CONTEXT)
    assert decision == Block(reason="nobody approved it: Run it?", hook="careful")


# --- the other stages -----------------------------------------------------------------------------------------------


class EveryStage(Hook):
    async def post_tool(self, context: PostToolContext) -> HookDecision:
        return Modify(value=context.output.upper())

    async def pre_llm(self, context: PreLlmContext) -> HookDecision:
        return Modify(value=f"{context.prompt}!")

    async def post_llm(self, context: PostLlmContext) -> HookDecision:
        return AskUser(prompt="take it?")


async def test_every_stage_has_its_own_subject() -> None:
    manager = HookManager([EveryStage()], approver=answers(approve=True, edited_code="better"))
    parts = ToolOutput(stdout="out", stderr="err")
    post = PostToolContext(original_code="x", output="outerr", exit_code=0, duration_ms=1, parts=parts)
    # a text takes the place of everything, so that nothing gets past a hook that looks at the output only
    assert await manager.run_post_tool(post) == Modify(value=ToolOutput(stdout="OUTERR"))
    assert await manager.run_pre_llm(PreLlmContext(prompt="hi")) == Modify(value="hi!")
    decision = await manager.run_post_llm(PostLlmContext(prompt="hi", response="ho"))
    assert isinstance(decision, Block)  # it asks about the edited text for ever


async def test_an_output_may_be_changed_part_by_part() -> None:
    class DropsErrors(Hook):
        async def post_tool(self, context: PostToolContext) -> HookDecision:
            return Modify(value=context.parts.model_copy(update={"stderr": ""}))

    parts = ToolOutput(stdout="out", stderr="err")
    post = PostToolContext(original_code="x", output="outerr", exit_code=0, duration_ms=1, parts=parts)
    assert await HookManager([DropsErrors()]).run_post_tool(post) == Modify(value=ToolOutput(stdout="out"))


async def test_every_decision_is_in_the_trail() -> None:
    trail: list[DecisionRecord] = []
    manager = HookManager(
        [Says(Allow(), "first"), Appends("1"), ASKS, Broken()], approver=answers(approve=True, by="ada")
    )
    await manager.run_pre_tool(CONTEXT, trail)
    assert [(r.hook, r.decision, r.reason, r.approved, r.approved_by) for r in trail] == [
        ("first", "allow", "", None, ""),
        ("appends", "modify", "+1", None, ""),
        ("careful", "ask_user", "Run it?", True, "ada"),
        ("broken", "block", "hook broken raised KeyError: 'oops'", None, ""),
    ]


async def test_who_is_cancelled_while_a_person_thinks_takes_the_question_back() -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def approver(request: ApprovalRequest) -> bool:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return True

    task = asyncio.create_task(HookManager([ASKS], approver=approver).run_pre_tool(CONTEXT))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
