"""A text as a CommonMark parser reads it (markdown-it-py, block rules only), with the slips of models mended.

Texts that would take the parser long (hundreds of thousands of lines, tens of thousands of list items or quote marks)
go to `scan`, a plain scan for fences that needs one look at each line.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from emberbox._extraction.blocks import Lines, RawBlock, assemble, fenced, scan
from emberbox._extraction.repairs import repair

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

MAX_MARKERS = 15_000  # list, quote, fence and indent markers of a text that markdown-it may still parse
MAX_LINES = 200_000  # of a text that markdown-it may still parse; it takes two microseconds for each
_NESTING = 40
_REPARSED, _TIMES_REPARSED = 300_000, 20  # characters, and times, that a text may be parsed again after repairs
_MARKER = re.compile(r"^[ \t>]*(?:>|[-+*][ \t]|\d{1,9}[.)][ \t]|```|~~~| {4})", re.MULTILINE)


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("zero", {"maxNesting": _NESTING})
    parser.enable(["fence", "code", "blockquote", "list", "hr", "heading"])
    parser.core.ruler.disable(["inline"])
    return parser


def find_blocks(lines: Lines) -> list[RawBlock]:
    """All fenced and indented blocks, in the order of the text.

    Slips that models make are repaired where the lines around prove them (`repairs`); the rest of the text is then
    parsed again, as often as the budget for that lasts.
    """
    if len(lines) > MAX_LINES or sum(1 for _ in _MARKER.finditer(lines.text)) > MAX_MARKERS:
        return scan(lines)
    blocks: list[RawBlock] = []
    base, budget = 0, max(len(lines.text), min(_REPARSED, _TIMES_REPARSED * len(lines.text)))
    while base < len(lines):
        rest = lines.text[lines.starts[base] :]
        next_base = len(lines)
        for token in _parser().parse(rest):
            if token.type not in {"fence", "code_block"} or token.map is None:
                continue
            raw = _raw(lines, token, base)
            floor = lines.number(blocks[-1].end) + 1 if blocks else 0
            fixed = repair(lines, raw, floor) if budget > 0 and raw.kind == "fence" else None
            if fixed is not None:
                block, next_base = fixed
                blocks.append(block)
                break
            blocks.append(raw)
        base = next_base
        budget -= len(rest)
    return blocks


def _raw(lines: Lines, token: Token, base: int) -> RawBlock:
    first, beyond = (base + offset for offset in token.map or (0, 0))
    stripped = token.content.split("\n")
    if stripped and not stripped[-1]:
        stripped.pop()
    if token.type == "code_block":
        return assemble(lines, "indented", first, stripped, "")
    begin = lines.starts[first] + max(lines.line(first).find(token.markup), 0)
    count = min(len(stripped), beyond - first - 1)
    closed = beyond - first - 1 > count
    return fenced(lines, (begin, first, stripped[:count], closed), token.info.strip())
