"""Text that can be sent and stored. A Python string may hold halves of surrogate pairs, of which no encoding of Unicode
knows; they are refused where they enter, by name, and not found deep inside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from emberbox.errors import ValidationFailed
from emberbox.models.base import RESERVED


def encoded(name: str, text: str) -> bytes:
    """UTF-8.

    Raises:
        ValidationFailed: it has halves of surrogate pairs; the message has the name.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise ValidationFailed(
            f"{name}: the character {text[exc.start]!a} at {exc.start} is half of a surrogate pair, and no text.",
            remediation="Give text that can be encoded as UTF-8.",
            details={"field": name},
        ) from exc


def check_texts(**values: str | Iterable[str] | Mapping[str, str] | None) -> None:
    """Refuse text, lists and tables of text that cannot be encoded; raises ValidationFailed as `encoded` does."""
    for name, value in values.items():
        if isinstance(value, str):
            if not value.isascii():
                encoded(name, value)
        elif isinstance(value, Mapping):
            check_texts(**{name: [*value.keys(), *value.values()]})
        elif value is not None:
            for one in value:
                check_texts(**{name: one})


def check_agent(agent_id: str) -> None:
    """Refuse an agent's name that is no text, or is reserved for Emberbox itself; raises ValidationFailed."""
    check_texts(agent_id=agent_id)
    if agent_id.startswith(RESERVED):
        raise ValidationFailed(
            f"agent_id {agent_id!r:.80}: names that begin with {RESERVED!r} are reserved.",
            remediation="Use another name.",
        )
