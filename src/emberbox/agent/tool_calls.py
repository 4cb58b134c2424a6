"""Calls of the tool, as a model made them: code to run, or what is wrong with them. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from emberbox.agent import prompts
from emberbox.agent.chat import ToolCall
from emberbox.agent.deciding import Choice, question_about_a_call
from emberbox.models import CodeBlock

MOST_CALLS = 16
"""Of one answer; the rest is not run."""


@dataclass(frozen=True, slots=True)
class UnderstoodCall:
    """A call: what is to run, or the problem in words for the model."""

    id: str
    choice: Choice | None = None
    problem: str = ""


def understood(
    calls: Sequence[ToolCall], ask: Literal["unsure", "always", "never"], number: int
) -> list[UnderstoodCall]:
    """The calls of one answer, in their order.

    Args:
        calls: as the model made them.
        ask: of the role: `always` has a person asked about each.
        number: of the answer.
    """
    return [
        _understood(call, ask, number)
        if runtime < MOST_CALLS
        else UnderstoodCall(call.id, problem=f"Nothing was run: at most {MOST_CALLS} calls in one answer.")
        for runtime, call in enumerate(calls)
    ]


def _understood(call: ToolCall, ask: str, number: int) -> UnderstoodCall:
    if call.name != prompts.TOOL_NAME:
        problem = f"Nothing was run: there is no tool {call.name!r:.100}; the only one is {prompts.TOOL_NAME}."
        return UnderstoodCall(call.id, problem=problem)
    try:
        arguments = json.loads(call.arguments, strict=False)  # models write line ends into strings as they are
    except (ValueError, RecursionError) as exc:
        problem = prompts.bad_arguments(f"the arguments are not valid JSON ({exc}).")
        return UnderstoodCall(call.id, problem=problem)
    if not isinstance(arguments, dict):
        return UnderstoodCall(call.id, problem=prompts.bad_arguments("the arguments must be an object."))
    for key in ("language", "code"):
        value = arguments.get(key)
        if not isinstance(value, str) or not value.strip():
            problem = prompts.bad_arguments(f"the argument {key!r} is missing, empty or no text.")
            return UnderstoodCall(call.id, problem=problem)
    block = CodeBlock(
        language=_known(arguments["language"]),
        code=arguments["code"].encode("utf-8", "replace").decode(),
        execution_confidence=1,
        start_pos=0,
        end_pos=0,
        metadata={"kind": "tool-call", "tool": call.name, "call_id": call.id, "round": number},
    )
    return UnderstoodCall(call.id, Choice(block, question_about_a_call() if ask == "always" else None))


def _known(language: str) -> str:
    from emberbox.languages import resolve

    return resolve(language) or language.strip()[:100]
