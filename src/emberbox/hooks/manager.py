"""Runs hooks in their order, and makes one decision of theirs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, TypeVar
from uuid import uuid4

from emberbox.hooks._calls import Caller, CallFailedError
from emberbox.hooks.approval import Approver
from emberbox.hooks.contract import (
    Allow,
    AskUser,
    Block,
    Context,
    Hook,
    HookDecision,
    Modify,
    PostLlmContext,
    PostToolContext,
    PreLlmContext,
    PreToolContext,
    ToolOutput,
)
from emberbox.hooks.filters import FilterChain
from emberbox.models import ApprovalRequest, ApprovalResponse, DecisionRecord, HooksConfig, HookStage

_DEFAULTS = HooksConfig()
_EDITS = 5
"""How often one hook may ask about what a person has edited before."""
_SHORT = 2000
_SUBJECT: dict[HookStage, str] = {
    "pre_tool": "code",
    "post_tool": "output",
    "pre_llm": "prompt",
    "post_llm": "response",
}
C = TypeVar("C", PreToolContext, PostToolContext, PreLlmContext, PostLlmContext)


@dataclass(frozen=True, slots=True)
class _Registered:
    hook: Hook
    name: str
    order: int
    agents: tuple[str, ...]
    templates: tuple[str, ...]
    seconds: float
    caller: Caller = field(default_factory=Caller)

    def concerns(self, context: Context) -> bool:
        return (not self.agents or any(fnmatchcase(context.agent_id, one) for one in self.agents)) and (
            not self.templates or any(fnmatchcase(context.template or "", one) for one in self.templates)
        )

    def overrides(self, method: str) -> bool:
        own = getattr(self.hook, method, None)
        return own is not None and getattr(own, "__func__", own) is not getattr(Hook, method)


class HookManager:
    """The hooks of a program, in their order.

    A Modify is what the next hook sees; a Block ends the run; AskUser waits for the approver. A hook that raises, takes
    too long or returns something else blocks, and the decision says which hook it was.

    Args:
        hooks: added in this order.
        approver: asks a person; without one, AskUser blocks.
        timeout_seconds: what a hook has for one decision, unless `add_hook` says otherwise.
        approval_timeout_seconds: what a person has for one answer; none counts as no.
    """

    def __init__(
        self,
        hooks: Iterable[Hook] = (),
        *,
        approver: Approver | None = None,
        timeout_seconds: float = _DEFAULTS.timeout_seconds,
        approval_timeout_seconds: float = _DEFAULTS.approval_timeout_seconds,
    ) -> None:
        self.approver = approver
        self._timeout = timeout_seconds
        self._approval_timeout = approval_timeout_seconds
        self._approvals = Caller()
        self._hooks: list[_Registered] = []
        for hook in hooks:
            self.add_hook(hook)

    def add_hook(
        self,
        hook: Hook,
        *,
        order: int = 0,
        agents: Sequence[str] = (),
        templates: Sequence[str] = (),
        timeout_seconds: float | None = None,
    ) -> None:
        """Add a hook behind those of the same or a lower order.

        Args:
            hook: a Hook, or any object with some of its methods.
            order: lower ones run first.
            agents, templates: only for these (names, or patterns with `*`); for all if empty.
            timeout_seconds: for one decision of this hook.
        """
        if isinstance(agents, str) or isinstance(templates, str):
            raise TypeError("agents and templates are lists of names")
        seconds = self._timeout if timeout_seconds is None else timeout_seconds
        name = str(getattr(hook, "name", None) or type(hook).__name__)[:100]
        self._hooks.append(_Registered(hook, name, order, tuple(agents), tuple(templates), seconds))
        self._hooks.sort(key=lambda one: one.order)

    @property
    def hooks(self) -> list[Hook]:
        """All hooks, in the order in which they run."""
        return [one.hook for one in self._hooks]

    # --- stages -----------------------------------------------------------------------------------------------------

    async def run_pre_tool(self, context: PreToolContext, trail: list[DecisionRecord] | None = None) -> HookDecision:
        """What all hooks together decide of code: Allow, Block, or Modify with the code to run.

        Args:
            context: the code.
            trail: gets a record of every decision.
        """
        return await self._run("pre_tool", context, trail)

    async def run_post_tool(self, context: PostToolContext, trail: list[DecisionRecord] | None = None) -> HookDecision:
        """What all hooks together decide of an output: Allow, Block, or Modify with a ToolOutput."""
        return await self._run("post_tool", context, trail)

    async def run_pre_llm(self, context: PreLlmContext, trail: list[DecisionRecord] | None = None) -> HookDecision:
        """What all hooks together decide of a prompt: Allow, Block, or Modify with the prompt to send."""
        return await self._run("pre_llm", context, trail)

    async def run_post_llm(self, context: PostLlmContext, trail: list[DecisionRecord] | None = None) -> HookDecision:
        """What all hooks together decide of a model's answer: Allow, Block, or Modify with the answer to take."""
        return await self._run("post_llm", context, trail)

    def handles(self, method: str) -> bool:
        """Whether any hook overrides a method, such as `post_tool`."""
        return any(one.overrides(method) for one in self._hooks)

    def output_filters(self, context: PreToolContext) -> FilterChain | None:
        """Filters for the output of one execution as it streams; None where no hook has one. A hook that cannot make
        its filter lets nothing through."""
        concerned = [one for one in self._hooks if one.overrides("output_filter") and one.concerns(context)]
        chain = FilterChain()
        for one in concerned:
            chain.add(one.name, lambda one=one: one.hook.output_filter(context))  # type: ignore[misc]
        return chain if chain else None

    async def _run(self, stage: HookStage, context: C, trail: list[DecisionRecord] | None) -> HookDecision:
        trail = [] if trail is None else trail
        changed = False
        for one in self._hooks:
            if not one.overrides(stage) or not one.concerns(context):
                continue
            decision, context = await self._step(one, stage, context, trail)
            if isinstance(decision, Block):
                return decision
            changed = changed or isinstance(decision, Modify)
        if not changed:
            return Allow()
        value = context.parts if isinstance(context, PostToolContext) else getattr(context, _SUBJECT[stage])
        return Modify(value=value)

    async def _step(
        self, one: _Registered, stage: HookStage, context: C, trail: list[DecisionRecord]
    ) -> tuple[HookDecision, C]:
        """One hook's decision, and the context as the next hook sees it."""
        outcome: HookDecision = Allow()
        for _ in range(_EDITS):
            began = time.monotonic()
            decision = await self._decide(one, stage, context)
            spent = (time.monotonic() - began) * 1000
            if not isinstance(decision, AskUser):
                trail.append(_record(stage, one.name, decision, spent))
                if isinstance(decision, Modify):
                    return decision, _changed(context, stage, decision.value)
                return (decision if isinstance(decision, Block) else outcome), context
            answer = await self.ask(stage, one.name, decision.prompt, context)
            trail.append(asked(stage, one.name, decision, answer, spent))
            if answer is None or not answer.approve:
                return Block(reason=refusal(decision.prompt, answer), hook=one.name), context
            if answer.edited_code is None:
                return outcome, context
            context = _changed(context, stage, answer.edited_code)
            outcome = Modify(value=answer.edited_code)  # what a person wrote is looked at again
        return Block(reason=f"{one.name} asked {_EDITS} times about edited text", hook=one.name), context

    async def _decide(self, one: _Registered, stage: HookStage, context: C) -> HookDecision:
        try:
            decision = await one.caller.call(getattr(one.hook, stage), context, one.seconds)
        except CallFailedError as exc:
            return Block(reason=f"hook {one.name} {exc}", hook=one.name)
        if isinstance(decision, Block):
            return decision if decision.hook else decision.model_copy(update={"hook": one.name})
        if isinstance(decision, Allow | AskUser):
            return decision
        if isinstance(decision, Modify) and (stage == "post_tool" or isinstance(decision.value, str)):
            return decision
        what = "a Modify without text" if isinstance(decision, Modify) else f"{type(decision).__name__}, no decision"
        return Block(reason=f"hook {one.name} returned {what}", hook=one.name)

    # --- people -----------------------------------------------------------------------------------------------------

    async def ask(self, stage: HookStage, hook: str, prompt: str, context: Context) -> ApprovalResponse | None:
        """A person's answer; None where there is nobody, or none in time. An approver that fails is nobody."""
        if self.approver is None:
            return None
        request = ApprovalRequest(
            approval_id=f"ap-{uuid4().hex[:16]}",
            prompt=prompt,
            code=getattr(context, _SUBJECT[stage]),
            stage=stage,
            hook=hook,
            language=getattr(context, "language", None),
            agent_id=context.agent_id,
            vm_id=context.vm_id,
            expires_at=datetime.now(UTC) + timedelta(seconds=self._approval_timeout),
        )
        try:
            answer = await self._approvals.call(self.approver, request, self._approval_timeout)
        except CallFailedError:
            return None
        if isinstance(answer, bool):
            return ApprovalResponse(approval_id=request.approval_id, approve=answer)
        return answer if isinstance(answer, ApprovalResponse) and answer.approval_id == request.approval_id else None


def refusal(prompt: str, answer: ApprovalResponse | None) -> str:
    """Why something that needed a yes was not done."""
    if answer is None:
        return f"nobody approved it: {prompt}"
    said = f": {answer.reason}" if answer.reason else ""
    return f"{answer.by or 'a person'} refused it{said} ({prompt})"


def asked(
    stage: HookStage, hook: str, question: AskUser, answer: ApprovalResponse | None, spent_ms: float
) -> DecisionRecord:
    """The record of a question and its answer."""
    return DecisionRecord(
        stage=stage,
        hook=hook,
        decision="ask_user",
        reason=(question.reason or question.prompt)[:_SHORT],
        approved=None if answer is None else answer.approve,
        approved_by="" if answer is None else answer.by,
        edited=answer is not None and answer.approve and answer.edited_code is not None,
        duration_ms=round(spent_ms, 3),
        decided_at=datetime.now(UTC),
    )


def _record(stage: HookStage, hook: str, decision: HookDecision, spent_ms: float) -> DecisionRecord:
    return DecisionRecord(
        stage=stage,
        hook=hook,
        decision=decision.decision,
        reason=str(getattr(decision, "reason", ""))[:_SHORT],
        duration_ms=round(spent_ms, 3),
        decided_at=datetime.now(UTC),
    )


def _changed(context: C, stage: HookStage, value: str | ToolOutput) -> C:
    """The context with what a hook or a person put in its place."""
    update: dict[str, Any] = {_SUBJECT[stage]: value}
    if stage == "post_tool":
        parts = ToolOutput(stdout=value) if isinstance(value, str) else value
        update = {"parts": parts, "output": parts.stdout + parts.stderr}
    return context.model_copy(update=update)
