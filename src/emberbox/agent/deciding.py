"""Which of the code that was found runs, and whom to ask before. Pure, but for the hook that asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from emberbox._extraction.scoring import BLOCK_RULES
from emberbox.hooks.contract import Allow, AskUser, Hook, HookDecision, PreToolContext
from emberbox.hooks.manager import HookManager
from emberbox.models import CodeBlock, ExecutionIntent

QUESTION = "emberbox.agent.question"
"""Key of an execution's metadata: what to ask a person before it runs."""
_LAST = 1_000
"""The order of the hook that asks: people see the code as the other hooks left it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A block that is to run."""

    block: CodeBlock
    question: str | None = None
    """What a person is asked before; None: nothing."""
    broken: bool = False
    """It would run if it had no syntax error: it is for the model to repair."""


def choose(
    blocks: Sequence[CodeBlock],
    intent: ExecutionIntent,
    *,
    threshold: float,
    ask: Literal["unsure", "always", "never"],
    somebody: bool,
    repairs: bool,
) -> list[Choice]:
    """The blocks of a text that run, in the order of the text.

    Args:
        blocks: that were found in it.
        intent: of the text. With `none`, nothing runs.
        threshold: the least confidence.
        ask: `always`; `never`; or `unsure`: where the intent is less than `auto-execute`, if there is `somebody`.
        somebody: there is a person who can be asked.
        repairs: a model can mend what does not parse.
    """
    in_order = sorted(blocks, key=lambda block: block.start_pos)
    broken = [block for block in in_order if repairs and is_nearly_sure(block, threshold)]
    if intent.suggested_action == "none":
        return [Choice(block, broken=True) for block in broken]
    unsure = ask == "unsure" and somebody and intent.suggested_action != "auto-execute"
    question = None
    if ask == "always" or unsure:
        question = _question(intent)
    chosen: list[Choice] = []
    for block in in_order:
        if block.execution_confidence >= threshold:
            chosen.append(Choice(block, question))
        elif block in broken:
            chosen.append(Choice(block, broken=True))
    return chosen


def question_about_a_call() -> str:
    """What is asked before the code of a tool call."""
    return "The model wants to run this code. Run it?"


def _question(intent: ExecutionIntent) -> str:
    if intent.suggested_action == "auto-execute":
        return "Run this code?"
    return f"The text does not clearly ask to run this code (intent {intent.confidence:.2f}). Run it?"


def is_nearly_sure(block: CodeBlock, threshold: float) -> bool:
    """Whether a block is below the threshold for its syntax error alone."""
    why = block.metadata.get("why", [])
    others = [entry for entry in why if entry["rule"] != "incomplete"]
    if len(others) == len(why) or block.execution_confidence >= threshold:
        return False
    total = sum(entry["weight"] for entry in others) + BLOCK_RULES["complete"].weight
    return bool(min([total, *(entry.get("cap", 1.0) for entry in others)]) >= threshold)


class AskFirstHook(Hook):
    """Asks a person before code whose metadata has a question, so that the answer is in the audit trail."""

    def __init__(self) -> None:
        self._asked: deque[str | None] = deque(maxlen=_LAST)

    @property
    def name(self) -> str:
        return "agent"

    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        question = context.metadata.get(QUESTION)
        if not isinstance(question, str) or context.execution_id in self._asked:
            return Allow()  # after a yes with an edit, the edited code is looked at again
        self._asked.append(context.execution_id)
        return AskUser(prompt=question)


def let_ask(manager: HookManager) -> None:
    """Give a manager the hook that asks, as its last one."""
    if not any(isinstance(hook, AskFirstHook) for hook in manager.hooks):
        manager.add_hook(AskFirstHook(), order=_LAST)


def not_repeated(choices: Iterable[Choice], done: set[tuple[str, str]]) -> list[Choice]:
    """Without code that has already run and succeeded: a model likes to show it once more with its answer."""
    return [choice for choice in choices if (choice.block.language, choice.block.code.strip()) not in done]
