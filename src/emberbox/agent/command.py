"""One command of an agent, from its text to its output."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emberbox.agent import prompts
from emberbox.agent.chat import ChatAnswer, ChatClient, Message, ToolsRefusedError
from emberbox.agent.conversation import Conversation, Turn, size_of, without_tools
from emberbox.agent.deciding import Choice, choose, not_repeated
from emberbox.agent.listening import AgentListener
from emberbox.agent.models import CommandInput, CommandOutput, CommandStatus, CommandType, TokenUsage
from emberbox.agent.running import Executions, Outcome
from emberbox.agent.runtime import Runtime
from emberbox.agent.tool_calls import understood
from emberbox.errors import ApiError, ConfigError, PolicyBlocked, VmExecutionError
from emberbox.hooks.contract import PostLlmContext, PreLlmContext
from emberbox.models import BlockError, VmExecuteResponse


@dataclass(slots=True)
class ChatAccess:
    """A model, and whether it takes tools: what is learnt of it stays for the next command."""

    client: ChatClient
    tools: bool


_NO_ANSWER = ChatAnswer("", (), "", None, cut=False)


class Command:
    """A command under way; `run` it once.

    Args:
        given: the command.
        place: where code runs.
        asking: the model; None: there is none.
        conversation: what was said before; gets this turn when it ends well.
        listener: told of every step.
    """

    def __init__(
        self,
        given: CommandInput,
        runtime: Runtime,
        asking: ChatAccess | None,
        conversation: Conversation,
        listener: AgentListener,
    ) -> None:
        self._given = given
        self._runtime = runtime
        self._role = runtime.role
        self._asking = asking
        self._conversation = conversation
        self._listener = listener
        self._output = CommandOutput()
        self._turn = Turn()
        self._executions = Executions(runtime, self._output, listener)
        self._called = False
        """The model has called the tool in this command."""

    async def run(self) -> CommandOutput:
        """The output; raises what kept the command from beginning (see `TerraphimAgent.process_command`)."""
        began = time.monotonic()
        output = self._output
        try:
            await self._work()
            output.status = self._status()
        except PolicyBlocked as exc:
            self._note(exc)
            output.status, output.text = CommandStatus.BLOCKED, ""
        except VmExecutionError as exc:
            if not output.execution_results:
                raise
            # what has run is not to be lost because the model cannot be asked about it
            self._note(exc)
            output.status = CommandStatus.FAILED
        finally:
            await self._executions.done()
        if output.rounds == 0 and output.status is not CommandStatus.BLOCKED:
            output.text = _printed(output.execution_results)
        output.sandbox_id = self._runtime.vm_id
        output.duration_ms = round((time.monotonic() - began) * 1000, 3)
        return output

    async def _work(self) -> None:
        opening = self._given.text
        if self._given.command is CommandType.EXECUTE:
            answered = await self._execute()
            if answered is None or self._asking is None:
                return
            opening = answered
        await self._converse(opening)

    def _note(self, error: VmExecutionError) -> None:
        told = BlockError(code=error.code, message=error.message, remediation=error.remediation)
        self._output.errors.append(told)

    def _status(self) -> CommandStatus:
        outcomes = self._executions.last
        if not outcomes:
            return CommandStatus.COMPLETED if self._output.rounds else CommandStatus.NOTHING_RUN
        if any(outcome.timed_out for outcome in outcomes):
            return CommandStatus.TIMEOUT
        if any(outcome.failed for outcome in outcomes):
            return CommandStatus.FAILED
        refused = any(outcome.refused for outcome in outcomes)
        return CommandStatus.REFUSED if refused else CommandStatus.COMPLETED

    # --- a text with code -------------------------------------------------------------------------------------------

    async def _execute(self) -> str | None:
        """Run the code of the command's own text. What to tell the model then; None: nothing."""
        text, extractor = self._given.text, self._runtime.extractor
        blocks, intent = extractor.read(text, continues=True)
        self._output.intent = intent
        if not blocks:
            return text
        self._executions.found(blocks)
        choices = choose(
            blocks,
            intent,
            threshold=extractor.threshold,
            ask=self._role.ask,
            somebody=self._runtime.hooks.approver is not None,
            repairs=self._asking is not None,
        )
        if not choices:
            self._say_once("None of the code is sure enough to be meant to run.")
            return None
        outcomes = await self._executions.run(choices)
        if not self._role.vm_execution.enabled:
            return None
        most = self._role.max_conversation_chars // 4
        failed = any(outcome.failed for outcome in outcomes)
        return prompts.ran_by_the_person(
            prompts.clipped(text, most), self._reports(outcomes), failed=failed, back=failed and self._goes_back
        )

    # --- the model --------------------------------------------------------------------------------------------------

    async def _converse(self, opening: str) -> None:
        """Ask the model, run what it wants to run, tell it what came of it, until it answers in words."""
        if self._asking is None:
            raise ConfigError(
                f"The role {self._role.name!r} names no model to ask.",
                remediation="Give llm_provider and llm_model in the role file, or a text with code and EXECUTE.",
            )
        self._turn.open({"role": "user", "content": opening})
        new = self._turn.messages
        answer = _NO_ANSWER
        for number in range(self._role.max_rounds + 1):
            spent = self._bound(number)
            if spent is not None:
                self._output.bound = spent
                closing: Message = {"role": "user", "content": prompts.NO_MORE}
                self._turn.add(closing)
                new = [*new, closing]
            answer = await self._ask(new, tools=spent is None)
            wanted = [] if spent else self._wanted(answer)
            calls = answer.tool_calls if spent is None else ()
            if not wanted and not calls:
                break
            self._turn.open(_spoken(answer))
            await self._listener.model_answered(answer.text, final=False)
            new = await self._answered(answer, wanted)
            self._turn.add(*new)
        if not answer.text.strip():
            self._say_once("The model gave an empty answer.")
        self._output.text = answer.text
        await self._listener.model_answered(answer.text, final=True)
        self._turn.open({"role": "assistant", "content": answer.text})
        self._conversation.keep(self._turn)

    def _bound(self, number: int) -> Any:
        """Which limit keeps the next answer's code from being run."""
        if number == self._role.max_rounds:
            return "rounds"
        spent = self._executions.failed and self._output.repairs >= self._role.max_repairs
        return "repairs" if spent else None

    async def _ask(self, new: Sequence[Message], *, tools: bool) -> ChatAnswer:
        """The model's answer, after the hooks. `new` are the messages that it has not seen."""
        assert self._asking is not None  # noqa: S101 (checked by `_converse`)
        await self._check(new)
        messages, dropped = self._conversation.with_turn(self._turn)
        if dropped:
            self._say_once("The conversation has reached its limit: its oldest messages were dropped.")
        answer = await self._complete(self._asking, messages, tools=tools)
        output = self._output
        output.rounds, output.model = output.rounds + 1, answer.model
        if answer.usage is not None:
            output.usage = (output.usage or TokenUsage()).plus(answer.usage)
        if answer.cut:
            self._say_once("The model's answer was cut off at its limit of tokens (llm_max_tokens).")
        context = PostLlmContext(
            prompt=str(new[-1]["content"]),
            response=answer.text,
            token_count=None if answer.usage is None else answer.usage.completion_tokens,
            model=answer.model,
            metadata={"tool_calls": [{"name": call.name, "arguments": call.arguments} for call in answer.tool_calls]},
            **self._context(),
        )
        text = await self._runtime.check_response(context)
        return ChatAnswer(text, answer.tool_calls, answer.model, answer.usage, answer.cut)

    async def _check(self, new: Sequence[Message]) -> None:
        """Put every new message through the hooks, which may change it."""
        known, _ = self._conversation.with_turn(self._turn)
        known = [dict(message) for message in known[: len(known) - len(new)]]
        for message in new:
            context = PreLlmContext(prompt=str(message["content"]), conversation_history=list(known), **self._context())
            message["content"] = await self._runtime.check_prompt(context)
            known.append(dict(message))

    def _context(self) -> dict[str, Any]:
        return {"agent_id": self._role.agent, "role": self._role.name, "vm_id": self._runtime.vm_id}

    async def _complete(self, asking: ChatAccess, messages: list[Message], *, tools: bool) -> ChatAnswer:
        languages = self._runtime.settings.vm_execution.allowed_languages
        while True:
            with_tools = asking.tools and self._role.vm_execution.enabled
            system = {"role": "system", "content": prompts.system_prompt(self._role, languages, tools=with_tools)}
            sent = [system, *(messages if with_tools else without_tools(messages))]
            try:
                known = [prompts.tool(languages)] if with_tools else []
                return self._bounded(await asking.client.complete(sent, known, may_call=tools))
            except ToolsRefusedError as exc:
                if self._role.use_tools == "always":
                    raise exc.error from exc
                asking.tools = False
                self._say_once("The model takes no tools: the code blocks of its answers are run instead.")

    def _bounded(self, answer: ChatAnswer) -> ChatAnswer:
        """The answer, unless it is longer than what can be kept of one."""
        most = self._role.max_conversation_chars // 4
        if size_of([_spoken(answer)]) > most:
            raise ApiError(
                f"The model's answer is longer than {most} characters, a quarter of the conversation.",
                remediation="Lower llm_max_tokens, or raise max_conversation_chars, in the role file.",
            )
        return answer

    def _say_once(self, note: str) -> None:
        if note not in self._output.notes:
            self._output.notes.append(note)

    # --- what the model wants to run --------------------------------------------------------------------------------

    def _wanted(self, answer: ChatAnswer) -> list[Choice]:
        """The code blocks of an answer that run. (Tool calls are seen to by `_answered`.)"""
        if answer.tool_calls or not self._role.vm_execution.enabled:
            return []
        extractor = self._runtime.extractor
        blocks, intent = extractor.read(answer.text, continues=True)
        if not blocks:
            return []
        self._executions.found(blocks, self._output.rounds)
        if self._asking is not None and self._asking.tools:
            # with tools, code in the text is mostly there to be read: but for calls that were written as text, and
            # models that never call anything and say that they run it
            calls = [block for block in blocks if block.metadata.get("kind") == "tool-call"]
            if calls or self._called or intent.suggested_action != "auto-execute":
                blocks = calls
        choices = choose(
            blocks,
            intent,
            threshold=extractor.threshold,
            ask=self._role.ask,
            somebody=self._runtime.hooks.approver is not None,
            repairs=True,
        )
        return not_repeated(choices, self._executions.succeeded)

    async def _answered(self, answer: ChatAnswer, wanted: Sequence[Choice]) -> list[Message]:
        """Run what an answer wants to run; the messages that tell of it."""
        if not answer.tool_calls:
            outcomes = await self._executions.run(wanted)
            back = any(outcome.failed for outcome in outcomes) and self._goes_back
            return [{"role": "user", "content": prompts.ran(self._reports(outcomes), back=back)}]
        self._called = True
        calls = understood(answer.tool_calls, self._role.ask, self._output.rounds)
        good = [call.choice for call in calls if call.choice is not None]
        self._executions.found([choice.block for choice in good], self._output.rounds)
        for call in calls:
            if call.choice is None:
                self._executions.bad_call(call.problem)
        outcomes = await self._executions.run(good)
        reports = iter(self._reports(outcomes))
        back = any(outcome.failed for outcome in outcomes) and self._goes_back
        return [
            {
                "role": "tool",
                "tool_call_id": call.id,
                "content": call.problem if call.choice is None else prompts.with_tool_note(next(reports), back=back),
            }
            for call in calls
        ]

    @property
    def _goes_back(self) -> bool:
        return self._role.rollback_between_tries and self._output.repairs < self._role.max_repairs

    def _reports(self, outcomes: Sequence[Outcome]) -> list[str]:
        """What to tell the model of each; all together a quarter of the conversation at most, as each has up to four
        texts."""
        share = self._role.max_conversation_chars // (16 * max(1, len(outcomes)))
        most = min(self._role.max_output_chars, share)
        return [
            prompts.report(number, outcome.language, outcome.came, most) for number, outcome in enumerate(outcomes, 1)
        ]


def _spoken(answer: ChatAnswer) -> Message:
    """An answer as it stands in the conversation."""
    if not answer.tool_calls:
        return {"role": "assistant", "content": answer.text}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in answer.tool_calls
    ]
    return {"role": "assistant", "content": answer.text or None, "tool_calls": calls}


def _printed(results: Sequence[VmExecuteResponse]) -> str:
    """What the code printed, and what its last expressions were."""
    parts: list[str] = []
    for run in results:
        shown = [result.text for result in run.results if result.is_main_result and result.text is not None]
        parts += [part.rstrip("\n") for part in (run.stdout, *shown) if part]
    return "\n".join(parts)
