"""Text from outside, fit for a terminal."""

from __future__ import annotations

from typing import TextIO


def printable(text: str) -> str:
    """Text from a sandbox, without what could control the terminal (of the C0 and C1 codes only tab and line end) or
    cannot be encoded."""
    if text.isprintable():
        return text
    return "".join(
        c
        if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000)
        else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def write_output(text: str, stream: TextIO) -> None:
    """Write what a program in a sandbox wrote: as it is to a file or a pipe, `printable` to a terminal."""
    stream.write(printable(text) if stream.isatty() else text)
    stream.flush()
