"""What was said, within bounds. Pure: no I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from emberbox.agent.chat import Message


@dataclass(slots=True)
class Turn:
    """A person's message, and what followed from it. A group is one answer of the model with all results of its code:
    it is kept or dropped as a whole."""

    groups: list[list[Message]] = field(default_factory=list)

    def open(self, *messages: Message) -> None:
        """Begin a new group."""
        self.groups.append(list(messages))

    def add(self, *messages: Message) -> None:
        """Go on with the last group."""
        self.groups[-1] += messages

    @property
    def messages(self) -> list[Message]:
        return [message for group in self.groups for message in group]


class Conversation:
    """The turns that are kept.

    Args:
        max_messages: of all turns together.
        max_chars: of all their texts and tool calls together.
    """

    def __init__(self, max_messages: int, max_chars: int) -> None:
        self._max_messages = max_messages
        self._max_chars = max_chars
        self._turns: list[Turn] = []

    @property
    def messages(self) -> list[Message]:
        """A copy of all messages that are kept, oldest first."""
        return [dict(message) for turn in self._turns for message in turn.messages]

    def with_turn(self, turn: Turn) -> tuple[list[Message], int]:
        """All messages, those of a turn under way last, and how many of the older ones had to be dropped.

        The oldest turns go first; then the oldest groups of this one, but for its first and its last."""
        before = sum(len(kept.messages) for kept in (*self._turns, turn))
        turns = self._that_fit(turn)
        messages = [message for kept in (*turns, turn) for message in kept.messages]
        return messages, before - len(messages)

    def keep(self, turn: Turn) -> None:
        """A turn has ended: it belongs to the conversation."""
        self._turns = [*self._that_fit(turn), turn]

    def clear(self) -> None:
        """Forget everything."""
        self._turns.clear()

    def _that_fit(self, turn: Turn) -> list[Turn]:
        """The kept turns that fit beside one under way, which itself is made to fit."""
        turns = list(self._turns)
        while turns and not self._fit([*turns, turn]):
            del turns[0]
        while len(turn.groups) > 2 and not self._fit([turn]):
            del turn.groups[1]
        return turns

    def _fit(self, turns: Sequence[Turn]) -> bool:
        messages = [message for turn in turns for message in turn.messages]
        return len(messages) <= self._max_messages and size_of(messages) <= self._max_chars


def size_of(messages: Iterable[Message]) -> int:
    """Characters of the texts and the tool calls."""
    return sum(len(message.get("content") or "") + _size_of_calls(message) for message in messages)


def _size_of_calls(message: Message) -> int:
    return len(json.dumps(message["tool_calls"])) if message.get("tool_calls") else 0


def without_tools(messages: Sequence[Message]) -> list[Message]:
    """The same conversation for a server that takes no tools: calls and their results as text."""
    plain: list[Message] = []
    for message in messages:
        if message.get("tool_calls"):
            made = [call["function"] for call in message["tool_calls"]]
            calls = "\n".join(f"{call['name']}: {call['arguments']}" for call in made)
            plain.append({"role": "assistant", "content": f"{message.get('content') or ''}\n{calls}".strip()})
        elif message["role"] == "tool":
            plain.append({"role": "user", "content": message["content"]})
        else:
            plain.append(message)
    return plain
