"""JSON of clients, the one place where it is read: bodies of requests and messages of WebSockets. What JSON or Python
allow and nothing behind can store, send or count is refused here."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any

from emberbox._text import check_texts
from emberbox.errors import ValidationFailed

_MAX_DEPTH = 100
_MAX_VALUES = 25_000
"""In one document. What checks a request says something about each value that is wrong: 900,000 took seconds, during
which nobody else was served."""
_MAX_DIGITS = 1000
"""Of an integer: the time to read one grows with their square."""
_LONG = 256 << 10
"""Characters: some 5 ms of reading."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""Text that was UTF-8 has halves of surrogate pairs only where they are written as escapes."""


def parse(raw: bytes | str) -> Any:
    """A JSON document.

    Raises:
        ValidationFailed: it is none, or not UTF-8, or nested too deep, or has halves of surrogate pairs, a number
            without an end, the same key twice in one object, or more than 25,000 values.
    """
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8-sig")
        _count(text)
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number, parse_int=_integer
        )
    except UnicodeDecodeError as exc:
        raise _refused(f"byte {exc.start} is not UTF-8", "Send JSON in UTF-8.") from exc
    except RecursionError as exc:
        raise _too_deep() from exc
    except ValueError as exc:
        raise _refused(str(exc), "Send one JSON document in UTF-8.") from exc
    _check(value, with_texts=_SURROGATE.search(text) is not None)
    return value


async def parse_beside(raw: bytes | str) -> Any:
    """The same; a long document is read in a thread, so that others are served meanwhile."""
    return parse(raw) if len(raw) < _LONG else await asyncio.to_thread(parse, raw)


def _count(text: str) -> None:
    """Raises where it has too many values, before any is made: five million empty lists are 16 MB of text, but 400 MB
    of memory, and nobody is served for seconds while they are made."""
    if len(text) < _MAX_VALUES:
        return
    bare = text.replace("\\\\", "").replace('\\"', "")
    if bare.count('"') > 4 * _MAX_VALUES:  # keys and values, with a quote on each side
        raise _too_many()
    outside = "".join(bare.split('"')[::2])
    if outside.count(",") > _MAX_VALUES or outside.count("[") + outside.count("{") > _MAX_VALUES + 1:
        raise _too_many()


def _check(value: Any, *, with_texts: bool) -> None:
    """Level by level, so that nothing is too deep for it."""
    level = [("the request", value)]
    depth = values = 0
    while level:
        below: list[tuple[str, Any]] = []
        for name, one in level:
            values += len(one) if isinstance(one, dict | list) else 0
            if values > _MAX_VALUES:
                raise _too_many()
            if isinstance(one, dict):
                below += one.items()
                if with_texts:
                    check_texts(**{f"a key of {name}": one.keys()})
            elif isinstance(one, list):
                below += [(name, item) for item in one if with_texts or isinstance(item, dict | list)]
            elif with_texts and isinstance(one, str):
                check_texts(**{name: one})
        level = below
        depth += 1
        if depth > _MAX_DEPTH + 1:
            raise _too_deep()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _refused(f"the key {twice!a:.80} stands twice in one object", "Name it once.")
    return found


def _constant(name: str) -> None:
    raise _refused(f"{name} is no number of JSON", "Leave it out, or send a number.")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _refused(f"the number {text:.40} is too large", "Send a smaller one.")
    return value


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise _refused(f"the number {text:.40}… has more than {_MAX_DIGITS} digits", "Send a smaller one.")
    return int(text)


def _too_many() -> ValidationFailed:
    return _refused(f"it has more than {_MAX_VALUES:,} values", "Send less in one request.")


def _too_deep() -> ValidationFailed:
    return _refused(f"it is nested deeper than {_MAX_DEPTH} levels", "Send less nested data.")


def _refused(why: str, remediation: str) -> ValidationFailed:
    return ValidationFailed(f"The JSON cannot be taken: {why}.", remediation=remediation)
