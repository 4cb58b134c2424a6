"""A whole text: its blocks found, judged, and what it asks for."""

from __future__ import annotations

from emberbox._extraction.blocks import Lines, RawBlock
from emberbox._extraction.calls import find_calls, find_framed, quoted_call
from emberbox._extraction.inline import find_inline
from emberbox._extraction.intent import judge_intent
from emberbox._extraction.judge import Earlier, Judge
from emberbox._extraction.markdown import find_blocks
from emberbox._extraction.needs import Known
from emberbox.models import CodeBlock, ExecutionIntent

_ABOVE = 200
"""Characters above a block in which it is looked whether a call is made there."""


def read(text: str, threshold: float, *, continues: bool) -> tuple[list[CodeBlock], ExecutionIntent]:
    """The blocks, the surest first, and the intent; `CodeBlockExtractor.read` says more."""
    earlier = Earlier(known=Known(continues=True)) if continues else None
    blocks = judged(text, earlier, threshold)
    blocks.sort(key=lambda block: (-block.execution_confidence, block.start_pos))
    return blocks, judge_intent(text, blocks, threshold)


def judged(text: str, earlier: Earlier | None, threshold: float) -> list[CodeBlock]:
    """The blocks with their confidence, in the order of the text, after what was found `earlier` in it."""
    return Judge(text, _found(text), earlier, threshold).judge()


def _found(text: str) -> list[RawBlock]:
    lines = Lines(text)
    found = [
        quoted_call(block, text[max(0, block.start - _ABOVE) : block.start]) if block.kind == "fence" else block
        for block in find_blocks(lines)
    ]
    framed = find_framed(lines, [block for block in found if block.kind != "indented"])
    if framed:
        found = sorted([*(one for one in found if not _within(one, framed)), *framed], key=lambda block: block.start)
    calls = find_calls(lines, [block for block in found if block.kind != "indented"])
    blocks = sorted([*found, *calls], key=lambda block: block.start)
    if calls:
        blocks = [block for block in blocks if block.kind != "indented" or not _within(block, calls)]
    return sorted([*blocks, *find_inline(lines, blocks)], key=lambda block: block.start)


def _within(block: RawBlock, calls: list[RawBlock]) -> bool:
    return any(call.start <= block.start < call.end for call in calls)
