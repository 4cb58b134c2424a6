"""Text that can be sent and stored. A Python string may hold halves of surrogate pairs, of which no encoding of Unicode
knows; they are refused where they enter, by name, and not found deep inside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from emberbox.errors import ValidationFailed

_LONGEST_VARIABLE = 128 * 1024 - 2
"""Bytes of `NAME=value`, less the sign and the NUL at its end: MAX_ARG_STRLEN of Linux (execve(2))."""
_BYTES = re.compile("[\udc80-\udcff]")
"""What Python makes of bytes of a name that are not UTF-8 (PEP 383)."""


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


def check_path(path: str) -> str:
    """A path inside a sandbox, as it was given. Bytes that are not UTF-8 are in it as `os.fsdecode` has them.

    Raises:
        ValidationFailed: no file can have it: empty, with NUL, longer than PATH_MAX (4096) or no text.
    """
    if not isinstance(path, str) or not path or "\0" in path or len(path) > 4096:
        raise ValidationFailed(
            f"{path!r:.80} is no path.", remediation="Give a non-empty string without NUL, at most 4096 characters."
        )
    if not path.isascii():
        encoded("path", _BYTES.sub("", path))
    return path


def printable(path: str) -> str:
    """A name that is not UTF-8 (any bytes but / and NUL are a name) with escapes for what is not: for people and
    records. It is no name any more."""
    if path.isascii():
        return path
    try:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # other halves of surrogate pairs, which no name has
        return path.encode("utf-8", "backslashreplace").decode()


def check_environment(envs: Mapping[str, str] | None) -> None:
    """Refuse what cannot be an environment of a process, before a machine is asked: it would find out late.

    Raises:
        ValidationFailed: a name is empty or has `=` or NUL, a value has NUL, or both are longer than Linux takes; the
            message names the variable.
    """
    check_texts(envs=envs)
    for name, value in (envs or {}).items():
        if not name or "=" in name or "\0" in name:
            wrong = "a name is not empty, and has neither `=` nor NUL"
        elif "\0" in value:
            wrong = "a value has no NUL"
        elif len(name.encode()) + len(value.encode()) > _LONGEST_VARIABLE:
            wrong = f"name and value have at most {_LONGEST_VARIABLE:,} bytes"
        else:
            continue
        raise ValidationFailed(
            f"envs: {name!r:.80} cannot be an environment variable: {wrong}.",
            remediation="Correct it; put long values into a file with `files.write`.",
            details={"field": "envs", "name": name[:1000]},
        )


def check_agent(agent_id: str) -> None:
    """Refuse an agent's name that is no text, or is reserved for Emberbox itself; raises ValidationFailed."""
    from emberbox.models.base import RESERVED  # a client of a server checks texts, and is light

    check_texts(agent_id=agent_id)
    if agent_id.startswith(RESERVED):
        raise ValidationFailed(
            f"agent_id {agent_id!r:.80}: names that begin with {RESERVED!r} are reserved.",
            remediation="Use another name.",
        )
