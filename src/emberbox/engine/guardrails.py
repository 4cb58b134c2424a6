"""What stands before and behind every execution: hooks, the policy of the settings, people who are asked.

The engine calls it in this order: `admit` (code in, code to run out), `listeners` (what streams goes through the hooks'
filters), `release` (what the caller gets to see).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from emberbox.code_extractor import CodeBlockExtractor, told
from emberbox.errors import PolicyBlocked
from emberbox.hooks.contract import (
    AskUser,
    Block,
    Modify,
    PostLlmContext,
    PostToolContext,
    PreLlmContext,
    PreToolContext,
    Stream,
    ToolOutput,
)
from emberbox.hooks.dangerous_pattern import question
from emberbox.hooks.filters import FilterChain
from emberbox.hooks.manager import HookManager, asked, refusal
from emberbox.models import DecisionRecord, Execution, Finding, HookStage, Language, Logs, Result
from emberbox.sandbox.listeners import Listeners, OnResult, OnText

IDLE_SECONDS = 0.2
"""After so long without output, what a filter holds back and knows to be harmless is shown: prompts, progress dots."""
_AT_ONCE = 2_000
"""Characters of code that the policy reads on the event loop: some 10 ms at most; longer code is read in a thread."""
_EDITS = 5
_POLICY = "policy"
_NOBODY = "Run it where somebody can be asked (a terminal, an `approver`), or change the policy."
_CHANGE = "Change the code."
_STREAMS: tuple[Stream, ...] = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class ExecutionSubject:
    """Who wants something run, and where."""

    agent_id: str
    execution_id: str | None = None
    vm_id: str | None = None
    template: str | None = None
    role: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """The fields that every context of a hook has."""
        return {
            "agent_id": self.agent_id,
            "vm_id": self.vm_id,
            "template": self.template,
            "role": self.role,
            "execution_id": self.execution_id,
            "metadata": dict(self.metadata),
        }


@dataclass(slots=True)
class GuardedRun:
    """An execution between `admit` and `release`."""

    code: str
    """To be run, instead of what was asked for."""
    listeners: Listeners
    execution: Execution | None = None
    """Set by who runs the code; then what its caller may see."""

    @property
    def seen(self) -> Execution:
        """What the caller may see, after the end."""
        if self.execution is None:
            raise RuntimeError("Nothing was run.")
        return self.execution


class Guardrails:
    """Hooks and policy of one engine.

    Args:
        hooks: in force.
        extractor: has the settings' own policy and limits.
    """

    def __init__(self, hooks: HookManager, extractor: CodeBlockExtractor) -> None:
        self.hooks = hooks
        self._extractor = extractor

    # --- before -----------------------------------------------------------------------------------------------------

    async def admit(
        self, subject: ExecutionSubject, language: Language, code: str, decisions: list[DecisionRecord]
    ) -> str:
        """The code to run: what hooks, policy and people made of it.

        Args:
            subject: who wants it, and where.
            language: of the code.
            code: what is wanted.
            decisions: gets every decision.

        Raises:
            ValidationFailed: it is empty or too long.
            PolicyBlocked: a hook, a rule or a person refused it.
        """
        context = PreToolContext(code=code, language=language, **subject.fields())
        decision = await self.hooks.run_pre_tool(context, decisions)
        if isinstance(decision, Block):
            raise _blocked(f"{language} code refused by hook {decision.hook}: {decision.reason}", decision)
        if isinstance(decision, Modify):
            context = context.model_copy(update={"code": decision.value})
        return await self._policy(context, language, decisions)

    async def _policy(self, context: PreToolContext, language: Language, decisions: list[DecisionRecord]) -> str:
        """The settings' own policy, after the hooks, so that what they wrote is looked at as well. Syntax is left to
        the interpreter: its message is better, and an SDK's user expects it as the execution's error."""
        for _ in range(_EDITS):
            if len(context.code) > _AT_ONCE:
                open_questions = await asyncio.to_thread(self._check, context, language)
            else:
                open_questions = self._check(context, language)
            if not open_questions:
                return context.code
            asking = AskUser(prompt=question(open_questions))
            answer = await self.hooks.ask("pre_tool", _POLICY, asking.prompt, context)
            decisions.append(asked("pre_tool", _POLICY, asking, answer, 0.0))
            if answer is None or not answer.approve:
                why = refusal("the policy asks a person", answer)
                raise _refused(language, open_questions, why, _NOBODY if answer is None else _CHANGE)
            if answer.edited_code is None:
                return context.code
            context = context.model_copy(update={"code": answer.edited_code})
        raise _refused(language, open_questions, f"asked {_EDITS} times about edited code", _CHANGE)

    def _check(self, context: PreToolContext, language: Language) -> list[Finding]:
        return self._extractor.check_code(
            context.code, language, syntax=False, agent_id=context.agent_id, role=context.role, asking=True
        )

    # --- while it runs ----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def filtered(
        self, subject: ExecutionSubject, language: Language, code: str, wanted: Listeners
    ) -> AsyncIterator[tuple[Listeners, FilteredOutput | None]]:
        """The listeners of an execution that the body runs, behind the hooks' filters, and these where there are some:
        `release` wants them."""
        filtered = self._filters(subject, language, code, wanted)
        if filtered is None:
            yield wanted, None
            return
        ended = False
        try:
            yield filtered.listeners, filtered
            ended = True
        finally:
            await filtered.close(ended=ended)

    def _filters(
        self, subject: ExecutionSubject, language: Language, code: str, wanted: Listeners
    ) -> FilteredOutput | None:
        if not self.hooks.handles("output_filter") or wanted == Listeners():
            return None
        chain = self.hooks.output_filters(PreToolContext(code=code, language=language, **subject.fields()))
        return None if chain is None else FilteredOutput(chain, wanted)

    # --- after ------------------------------------------------------------------------------------------------------

    async def release(
        self,
        subject: ExecutionSubject,
        code: str,
        execution: Execution,
        filtered: FilteredOutput | None,
        decisions: list[DecisionRecord],
    ) -> Execution:
        """The execution as its caller may see it.

        Raises:
            PolicyBlocked: a hook withholds it. The code has run.
        """
        if filtered is not None and filtered.failed is not None:
            name, how = filtered.failed
            why = f"The output was withheld: the filter of hook {name} {how}"
            raise _blocked(why, Block(reason=how, hook=name), retryable=False)
        execution.notes += _changes(decisions, "pre_tool", "code")
        if not self.hooks.handles("post_tool"):
            return execution
        parts = ToolOutput(
            stdout=execution.stdout, stderr=execution.stderr, results=execution.results, error=execution.error
        )
        context = PostToolContext(
            original_code=code,
            output=parts.stdout + parts.stderr,
            exit_code=execution.exit_code,
            duration_ms=execution.duration_ms,
            language=execution.language,
            parts=parts,
            **subject.fields(),
        )
        decision = await self.hooks.run_post_tool(context, decisions)
        if isinstance(decision, Block):
            why = f"The output was withheld by hook {decision.hook}: {decision.reason}"
            raise _blocked(why, decision, retryable=False)  # the code has run
        if isinstance(decision, Modify) and isinstance(decision.value, ToolOutput):
            return _with(execution, decision.value, decisions)
        return execution

    @contextlib.asynccontextmanager
    async def guarded(
        self,
        subject: ExecutionSubject,
        language: Language,
        code: str,
        wanted: Listeners,
        decisions: list[DecisionRecord],
    ) -> AsyncIterator[GuardedRun]:
        """Guard code that the body runs: `admit` before it, `listeners` while it runs, `release` behind it.

        Args:
            subject: who wants it, and where.
            language: of the code.
            code: what is wanted.
            wanted: hear what the hooks' filters let through.
            decisions: gets every decision.

        Raises:
            ValidationFailed, PolicyBlocked: it was refused, and the body not entered; or its output is withheld.
        """
        code = await self.admit(subject, language, code, decisions)
        async with self.filtered(subject, language, code, wanted) as (heard, filtered):
            run = GuardedRun(code, heard)
            yield run
        if run.execution is not None:
            run.execution = await self.release(subject, code, run.execution, filtered, decisions)

    # --- models -----------------------------------------------------------------------------------------------------

    async def prompt(self, context: PreLlmContext, decisions: list[DecisionRecord]) -> str:
        """The prompt to send; raises PolicyBlocked."""
        decision = await self.hooks.run_pre_llm(context, decisions)
        if isinstance(decision, Block):
            raise _blocked(f"The prompt was refused by hook {decision.hook}: {decision.reason}", decision)
        return str(decision.value) if isinstance(decision, Modify) else context.prompt

    async def answer(self, context: PostLlmContext, decisions: list[DecisionRecord]) -> str:
        """The answer to take; raises PolicyBlocked."""
        decision = await self.hooks.run_post_llm(context, decisions)
        if isinstance(decision, Block):
            raise _blocked(f"The model's answer was refused by hook {decision.hook}: {decision.reason}", decision)
        return str(decision.value) if isinstance(decision, Modify) else context.response


_IN_THREAD = 2048
"""Characters of output that are filtered in a thread, so that others are served meanwhile."""


class FilteredOutput:
    """Listeners behind filters. `close` must follow, when the execution has ended or not come about."""

    def __init__(self, chain: FilterChain, wanted: Listeners) -> None:
        self._chain = chain
        self._wanted = wanted
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._release: asyncio.Task[None] | None = None
        self.listeners = Listeners(
            self._of("stdout", wanted.on_stdout),
            self._of("stderr", wanted.on_stderr),
            None if wanted.on_result is None else self._result,
        )

    @property
    def failed(self) -> tuple[str, str] | None:
        """The hook whose filter failed, and how."""
        return self._chain.failed

    def _of(self, stream: Stream, listener: OnText | None) -> OnText | None:
        return None if listener is None else partial(self._text, stream)

    async def _text(self, stream: Stream, text: str) -> None:
        self._stop_timer()
        async with self._lock:
            if len(text) < _IN_THREAD:
                shown = self._chain.feed(stream, text)
            else:
                shown = await asyncio.to_thread(self._chain.feed, stream, text)
            await self._show(stream, shown)
        self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._idle)

    async def _result(self, result: Result) -> None:
        async with self._lock:
            shown = await asyncio.to_thread(self._chain.result, result)
            if shown is not None:
                await self._wanted.result(shown)

    async def _show(self, stream: Stream, text: str) -> None:
        if text:
            await self._wanted.text(stream, text)

    def _idle(self) -> None:
        self._release = asyncio.create_task(self._let_go())

    async def _let_go(self) -> None:
        async with self._lock:
            for stream in self._heard():
                await self._show(stream, self._chain.idle(stream))

    def _heard(self) -> list[Stream]:
        listeners: dict[Stream, OnText | OnResult | None] = {
            "stdout": self._wanted.on_stdout,
            "stderr": self._wanted.on_stderr,
        }
        return [stream for stream in _STREAMS if listeners[stream] is not None]

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def close(self, *, ended: bool) -> None:
        """Show the rest, if the execution has `ended`; leave no timer and no task."""
        self._stop_timer()
        if self._release is not None:
            if not ended:
                self._release.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._release
        if ended:
            async with self._lock:
                for stream in self._heard():
                    await self._show(stream, self._chain.finish(stream))


def _blocked(message: str, decision: Block, *, retryable: bool = True) -> PolicyBlocked:
    return PolicyBlocked(
        message,
        retryable=retryable,
        remediation=next((finding.remediation for finding in decision.findings if finding.remediation), None),
        details={"hook": decision.hook} | told(decision.findings),
    )


def _refused(language: Language, findings: list[Finding], why: str, remediation: str) -> PolicyBlocked:
    first = findings[0]
    return PolicyBlocked(
        f"{language} code refused: line {first.line}, column {first.column}: {first.message} [{first.rule}]; {why}",
        remediation=remediation,
        details={"hook": _POLICY} | told(findings),
    )


def _with(execution: Execution, output: ToolOutput, decisions: list[DecisionRecord]) -> Execution:
    """The execution with another output, and notes of who changed it."""
    return execution.model_copy(
        update={
            "logs": Logs(
                stdout=[output.stdout] if output.stdout else [], stderr=[output.stderr] if output.stderr else []
            ),
            "results": output.results,
            "error": output.error,
            "notes": execution.notes + _changes(decisions, "post_tool", "output"),
        }
    )


def _changes(decisions: list[DecisionRecord], stage: HookStage, what: str) -> list[str]:
    """What hooks changed and said why, for the caller."""
    return [
        f"{record.hook} changed the {what}: {record.reason}"
        for record in decisions
        if record.stage == stage and record.decision == "modify" and record.reason
    ]
