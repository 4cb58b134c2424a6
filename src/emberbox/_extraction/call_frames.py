"""Tool calls between the special tokens of a model's template: harmony, DeepSeek, Mistral.

Such tokens stand in no prose, so the calls are found before the Markdown around them is read: DeepSeek's hold a fence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_HARMONY = re.compile(
    r"\bto=(?:functions\.)?(?P<name>[\w.-]{1,60})[^<\n]{0,40}(?:<\|(?:channel|constrain)\|>[^<\n]{0,40}){0,3}<\|message\|>"
)
_HARMONY_ENDS = re.compile(r"<\|(?:call|end|return|start)\|>")
_HARMONY_START = re.compile(r"(?:<\|start\|>assistant[^<\n]{0,40})?(?:<\|channel\|>[^<\n]{0,40})?$")
_DEEPSEEK = re.compile(
    r"<[|\uff5c]tool[\u2581_]call[\u2581_]begin[|\uff5c]>(?:[ \t]*function[ \t]*<[|\uff5c]tool[\u2581_]sep[|\uff5c]>)?"
    r"[ \t]*(?P<name>[\w.-]{1,60})[ \t]*(?:<[|\uff5c]tool[\u2581_]sep[|\uff5c]>)?[ \t]*\r?\n?"
)
_DEEPSEEK_ENDS = re.compile(r"<[|\uff5c](?:tool[\u2581_]calls?[\u2581_]end|end[\u2581_]of[\u2581_]sentence)[|\uff5c]>")
_MISTRAL = re.compile(
    r"\[TOOL_CALLS\][ \t]*(?P<name>[A-Za-z_][\w.-]{0,60})[ \t]*(?:\[CALL_ID\][\w-]{0,60})?(?:\[ARGS\])?[ \t]*(?=\{)"
)
_MISTRAL_ENDS = re.compile(r"\[TOOL_CALLS\]|</s>|\[/TOOL_CALLS\]")
_JSON_FENCE = re.compile(r"\s*```(?:json)?[ \t]*\r?\n(.*?)\r?\n[ \t]*```\s*", re.DOTALL)
_MAX_FRAMES = 1_000


class Frame(NamedTuple):
    """A call between tokens: its slice of the text, the name of the tool, what it is given, whether in a fence."""

    start: int
    end: int
    name: str
    payload: str
    fenced: bool


def find_frames(text: str) -> Iterator[Frame]:
    """The calls of a text, in its order for each template."""
    if "<|message|>" in text:
        yield from _framed(text, _HARMONY, _HARMONY_ENDS)
    if "begin|>" in text or "begin\uff5c>" in text:
        yield from _framed(text, _DEEPSEEK, _DEEPSEEK_ENDS)
    if "[TOOL_CALLS]" in text:
        yield from _framed(text, _MISTRAL, _MISTRAL_ENDS)


def _framed(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> Iterator[Frame]:
    position = 0
    for _ in range(_MAX_FRAMES):
        match = opening.search(text, position)
        if match is None:
            return
        over = closing.search(text, match.end())
        stop = over.start() if over is not None else len(text)
        lead = _HARMONY_START.search(text, max(0, match.start() - 120), match.start()) if opening is _HARMONY else None
        start = lead.start() if lead is not None else match.start()
        payload = text[match.end() : stop]
        fence = _JSON_FENCE.fullmatch(payload)
        given = (fence[1] if fence else payload).strip()
        yield Frame(start, match.end() + len(payload.rstrip()), match["name"], given, fence is not None)
        position = max(stop, match.end())
