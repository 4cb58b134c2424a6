"""Which code runs, and when a person is asked."""

from __future__ import annotations

from typing import Any

import pytest

from emberbox import CodeBlockExtractor
from emberbox.agent.chat import ToolCall
from emberbox.agent.deciding import QUESTION, AskFirstHook, Choice, choose, let_ask, not_repeated
from emberbox.agent.tool_calls import MOST_CALLS, understood
from emberbox.hooks import HookManager, Modify, PreToolContext
from emberbox.models import ApprovalRequest, ApprovalResponse

REFERS = """Everything here is for your reference.

First some words.

About the data:

```python
import os
print(1)
```
"""
"""A block that is sure by itself, in a text whose intent is none."""
CODE = "```python\nprint(6 * 7)\n```\n"
ASKS = f"Run this:\n\n{CODE}"
"""Intent auto-execute."""
SPEAKS = f"Here is a script that computes it:\n\n{CODE}"
"""Intent ask."""
SHOWS = CODE
"""Intent show."""
FORBIDS = f"Do not run this:\n\n{CODE}"
BROKEN = "Run this:\n\n```python\nprint((6 * 7)\n```\n"


def chosen(text: str, **options: Any) -> list[Choice]:
    extractor = CodeBlockExtractor()
    given: dict[str, Any] = {"threshold": 0.7, "ask": "unsure", "somebody": False, "repairs": False, **options}
    return choose(extractor.extract_code_blocks(text), extractor.detect_execution_intent(text), **given)


@pytest.mark.parametrize(
    ("text", "ask", "somebody", "runs", "asks"),
    [
        (ASKS, "unsure", True, True, False),
        (SPEAKS, "unsure", True, True, True),
        (SHOWS, "unsure", True, True, True),
        (FORBIDS, "unsure", True, False, False),
        (ASKS, "unsure", False, True, False),
        (SPEAKS, "unsure", False, True, False),
        (SHOWS, "unsure", False, True, False),
        (FORBIDS, "unsure", False, False, False),
        (ASKS, "always", False, True, True),
        (SHOWS, "never", True, True, False),
        (FORBIDS, "never", True, False, False),
        (REFERS, "never", False, False, False),
    ],
)
def test_intent_and_role_decide(text: str, ask: str, somebody: bool, runs: bool, asks: bool) -> None:
    found = chosen(text, ask=ask, somebody=somebody)
    assert bool(found) is runs
    assert all((choice.question is not None) is asks for choice in found)


def test_below_the_threshold_nothing_runs() -> None:
    assert chosen(f"For reference only:\n\n{CODE}\nand run this:\n\n{CODE}")[0].block.start_pos > 40
    assert chosen(SHOWS, threshold=0.9) == []


def test_the_order_is_that_of_the_text() -> None:
    found = chosen(f"```bash\nls\n```\n\nRun this:\n\n{CODE}")
    assert [choice.block.language for choice in found] == ["bash", "python"]


def test_a_syntax_error_is_for_the_model_to_repair() -> None:
    assert chosen(BROKEN) == []
    assert [choice.broken for choice in chosen(BROKEN, repairs=True)] == [True]
    assert chosen(BROKEN.replace("Run this", "For reference only"), repairs=True) == []
    assert chosen(BROKEN.replace("Run this", "Do not run this"), repairs=True) == []


def test_what_ran_well_is_not_run_again() -> None:
    found = chosen(f"{ASKS}\n\n```bash\nls\n```")
    assert [c.block.language for c in not_repeated(found, {("python", "print(6 * 7)")})] == ["bash"]


async def test_the_hook_asks_once_about_the_code_as_it_is() -> None:
    asked: list[ApprovalRequest] = []

    def approver(request: ApprovalRequest) -> ApprovalResponse:
        asked.append(request)
        return ApprovalResponse(approval_id=request.approval_id, approve=True, edited_code="2")

    manager = HookManager(approver=approver)
    let_ask(manager)
    let_ask(manager)
    assert len(manager.hooks) == 1
    context = PreToolContext(code="1", language="python", execution_id="e", metadata={QUESTION: "really?"})
    decision = await manager.run_pre_tool(context)
    assert isinstance(decision, Modify)
    assert (decision.value, [(one.prompt, one.code, one.hook) for one in asked]) == ("2", [("really?", "1", "agent")])
    assert await AskFirstHook().pre_tool(context.model_copy(update={"metadata": {}})) is not None
    await manager.run_pre_tool(context.model_copy(update={"metadata": {}, "execution_id": "f"}))
    assert len(asked) == 1


# --- tool calls -----------------------------------------------------------------------------------------------------


def call(arguments: str, name: str = "ExecuteInVM") -> ToolCall:
    return ToolCall("id", name, arguments)


def test_a_good_call_is_code() -> None:
    (one,) = understood([call('{"language": "py", "code": "print(\\"hi\\")\n", "why": "x"}')], "unsure", 3)
    assert one.choice is not None
    assert one.choice.question is None
    assert (one.choice.block.language, one.choice.block.code) == ("python", 'print("hi")\n')
    assert one.choice.block.metadata["round"] == 3
    (asking,) = understood([call('{"language": "py", "code": "1"}')], "always", 1)
    assert asking.choice is not None
    assert asking.choice.question is not None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (call("{}", "Browse"), "there is no tool 'Browse'; the only one is ExecuteInVM"),
        (call(""), "not valid JSON"),
        (call("print(1)"), "not valid JSON"),
        (call("[" * 100_000), "not valid JSON"),
        (call("[]"), "must be an object"),
        (call('{"code": "1"}'), "'language' is missing"),
        (call('{"language": "python"}'), "'code' is missing"),
        (call('{"language": "python", "code": "  "}'), "'code' is missing, empty"),
        (call('{"language": "python", "code": ["1"]}'), "no text"),
    ],
)
def test_a_call_that_makes_no_sense_is_told(given: ToolCall, words: str) -> None:
    (one,) = understood([given], "unsure", 1)
    assert one.choice is None
    assert words in one.problem
    assert len(one.problem) < 600


def test_calls_are_bounded() -> None:
    many = understood([call('{"language": "python", "code": "1"}')] * (MOST_CALLS + 2), "unsure", 1)
    assert [one.choice is not None for one in many] == [True] * MOST_CALLS + [False] * 2
