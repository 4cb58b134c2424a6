"""The conversation within its bounds."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from emberbox.agent.chat import Message
from emberbox.agent.conversation import Conversation, Turn, size_of, without_tools


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def called(*ids: str) -> list[Message]:
    """An answer that calls a tool, and the results."""
    made = [{"id": one, "type": "function", "function": {"name": "ExecuteInVM", "arguments": "{}"}} for one in ids]
    results: list[Message] = [{"role": "tool", "tool_call_id": one, "content": f"result {one}"} for one in ids]
    return [{"role": "assistant", "content": None, "tool_calls": made}, *results]


def turn(*groups: list[Message]) -> Turn:
    return Turn([list(group) for group in groups])


def test_turns_are_kept_in_order() -> None:
    conversation = Conversation(100, 10_000)
    conversation.keep(turn([user("1")], [assistant("one")]))
    messages, dropped = conversation.with_turn(turn([user("2")]))
    assert [message["content"] for message in messages] == ["1", "one", "2"]
    assert dropped == 0
    assert [message["content"] for message in conversation.messages] == ["1", "one"]
    conversation.clear()
    assert conversation.messages == []


def test_the_oldest_turns_go_whole_and_only_when_the_new_one_is_kept() -> None:
    conversation = Conversation(6, 10_000)
    conversation.keep(turn([user("1")], called("a", "b"), [assistant("one")]))
    new = turn([user("2")], [assistant("two")])
    messages, dropped = conversation.with_turn(new)
    assert ([message["content"] for message in messages], dropped) == (["2", "two"], 5)
    assert len(conversation.messages) == 5
    conversation.keep(new)
    assert [message["content"] for message in conversation.messages] == ["2", "two"]


def test_a_long_turn_keeps_its_question_and_its_newest_part() -> None:
    conversation = Conversation(5, 10_000)
    long = turn([user("q")], called("a"), called("b"), called("c"))
    messages, dropped = conversation.with_turn(long)
    assert [message.get("tool_call_id", message["content"]) for message in messages] == ["q", None, "b", None, "c"]
    assert dropped == 2


def test_changing_a_copy_changes_nothing() -> None:
    conversation = Conversation(100, 10_000)
    conversation.keep(turn([user("1")], [assistant("one")]))
    conversation.messages[0]["content"] = "other"
    assert conversation.messages[0]["content"] == "1"


_groups = st.one_of(
    st.text(max_size=300).map(lambda text: [assistant(text)]),
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True).map(lambda ids: called(*ids)),
)


@given(st.lists(st.lists(_groups, min_size=1, max_size=6), max_size=8), st.integers(10, 40), st.integers(1_000, 3_000))
def test_bounds_hold_and_calls_keep_their_results(turns: list[list[list[Message]]], most: int, chars: int) -> None:
    conversation = Conversation(most, chars)
    for groups in turns:
        conversation.keep(turn([user("question")], *groups))
        messages = conversation.messages
        newest = [user("question"), *groups[-1]]
        assert len(messages) <= max(most, len(newest))
        assert size_of(messages) <= max(chars, size_of(newest))
        assert messages[0]["role"] == "user"
        assert messages[-len(groups[-1]) :] == groups[-1]
        _whole(messages)


def _whole(messages: list[Message]) -> None:
    waiting: list[Any] = []
    for message in messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] == waiting.pop(0)
        else:
            assert waiting == []
            waiting = [call["id"] for call in message.get("tool_calls", [])]
    assert waiting == []


def test_without_tools_everything_is_still_said() -> None:
    plain = without_tools([user("q"), *called("a"), assistant("done")])
    assert [message["role"] for message in plain] == ["user", "assistant", "user", "assistant"]
    assert "ExecuteInVM: {}" in plain[1]["content"]
    assert plain[2]["content"] == "result a"
    assert all("tool_calls" not in message for message in plain)
