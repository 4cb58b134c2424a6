"""Text from outside, fit for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Text from a sandbox, without what could control the terminal: of the C0 and C1 codes only tab and line end."""
    if text.isprintable():
        return text
    return "".join(
        c if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160) else "\N{REPLACEMENT CHARACTER}" for c in text
    )
