"""Blocks of a text that is still being written: each is given out as soon as its fence or tag closes.

A small machine follows the lines and knows when something closes; the block itself is then found and judged by the
same code as in a whole text, from a little before the block that came before it. So the work is linear in the text.
"""

from __future__ import annotations

import re
from dataclasses import replace

from emberbox._extraction.blocks import MAX_BLOCKS
from emberbox._extraction.judge import MAX_EXAMINED, Earlier
from emberbox._extraction.open_text import OpenText
from emberbox._extraction.reading import judged
from emberbox._extraction.repairs import ends_with_a_slip, is_closing, is_markdown
from emberbox.models import CodeBlock

_OPENING = re.compile(r"[ \t>]*(?:(?:[-+*]|\d{1,9}[.)])[ \t]+)*(`{3,}|~{3,})([^`\n]*)")
_CLOSING_TAG = re.compile(
    r"</(?:antml:)?(?:execute(?:_\w{1,20})?|code|tool_call|function(?:_calls?)?|invoke)>|<\|(?:call|eom_id|eot_id)\|>"
    r"|tool[\u2581_]call[\u2581_]end"
)
_CLOSING = frozenset({"fence", "tag", "tool-call"})
_CONTEXT_LINES = 50  # that are looked back through for where a list or quote begins
_TOP_LEVEL = re.compile(r"(?![ \t>]|[-+*][ \t]|\d{1,9}[.)][ \t])\S")


class BlockStream:
    """One text, piece by piece.

    Args:
        threshold: confidence from which a block runs.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._text = ""
        self._offset = 0
        """Of `_text` in the whole; what is before it is not needed any more."""
        self._lines = 0
        """Line ends before `_text`."""
        self._read = 0
        """How far the lines of `_text` have been followed."""
        self._given = 0
        """Blocks that begin before this offset of the whole have been given out."""
        self._last = (0, 0)
        """Where the block that was given out last stands in `_text`."""
        self._earlier = Earlier()
        self._fence: str | None = None
        self._markdown = False
        self._texts = OpenText("")
        self._indent = 0
        self._depth = 0

    def feed(self, chunk: str) -> list[CodeBlock]:
        """The next piece of the text; the blocks that closed with it, in the order of the text."""
        if self._earlier.blocks >= MAX_BLOCKS:  # whatever comes, no more are given
            return []
        self._text += chunk
        found: list[CodeBlock] = []
        closed = False
        # Line by line, however many came at once: what stands behind a block must not count for it here.
        while (end := self._text.find("\n", self._read)) >= 0:
            line = self._text[self._read : end]
            self._read = end + 1
            if self._follow(line):
                closed = self._earlier.blocks >= MAX_EXAMINED  # not judged any more, so they may come together
                found += [] if closed else self._closed_blocks()
        if closed and self._earlier.blocks < MAX_BLOCKS:
            found += self._closed_blocks()
        return found

    def finish(self) -> list[CodeBlock]:
        """The text has ended: the blocks that are left, those that were never closed included."""
        left = MAX_BLOCKS - self._earlier.blocks
        if left <= 0:
            return []
        return [self._placed(block) for block in judged(self._text, self._since_given(), self._threshold)[:left]]

    def _follow(self, line: str) -> bool:
        """Take one line; whether something closed."""
        if self._fence is None:
            opening = _OPENING.match(line)
            if opening is None:
                return _CLOSING_TAG.search(line) is not None
            self._fence, self._markdown, self._depth = opening[1], is_markdown(opening[2].strip()), 0
            self._texts, self._indent = OpenText(opening[2].strip()), opening.start(1)
            return False
        if self._in_a_text(line):
            return False
        text = line.strip(" \t\r>")
        if not text.startswith(self._fence) and not text.endswith(self._fence):
            return False
        bare = text.startswith(self._fence) and not text.strip(self._fence[0])
        if self._markdown and not bare:
            self._depth += 1
        elif self._markdown and self._depth:
            self._depth -= 1
        elif bare or ends_with_a_slip(text, self._fence, closed=True):
            self._fence = None
            return True
        return False

    def _in_a_text(self, line: str) -> bool:
        """Whether a line of a block stands within a here-document or a triple-quoted string."""
        line = line[self._indent :] if not line[: self._indent].strip() else line.lstrip(" ")
        inside = self._texts.inside
        if inside or not is_closing(line, self._fence or ""):
            self._texts.take(line)
        return inside

    def _since_given(self) -> Earlier:
        """What is known of the text so far; blocks that were given out are not judged again."""
        return replace(self._earlier, since=max(0, self._given - self._offset))

    def _closed_blocks(self) -> list[CodeBlock]:
        """What is certain by now: the blocks that are closed, and those that stand before one that is."""
        found = judged(self._text[: self._read], replace(self._since_given(), more=True), self._threshold)
        closed = [block.metadata["closed"] and block.metadata["kind"] in _CLOSING for block in found]
        certain = found[: len(found) - closed[::-1].index(True)] if True in closed else []
        certain = certain[: max(0, MAX_BLOCKS - self._earlier.blocks)]
        placed = [self._placed(block) for block in certain]
        known = self._earlier.known
        for block in placed:
            known.remember(block, self._threshold)
        self._earlier = replace(self._earlier, blocks=self._earlier.blocks + len(placed), known=known)
        if placed:
            reasons = frozenset(entry["rule"] for entry in placed[-1].metadata["why"])
            self._earlier = replace(self._earlier, reasons=reasons)
            self._given = placed[-1].end_pos
        if certain:
            self._forget(certain)
        return placed

    def _placed(self, block: CodeBlock) -> CodeBlock:
        """The block with its places in the whole text."""
        metadata = dict(block.metadata, line=block.metadata["line"] + self._lines)
        for key in ("code_start", "code_end"):
            if key in metadata:
                metadata[key] += self._offset
        places = {"start_pos": block.start_pos + self._offset, "end_pos": block.end_pos + self._offset}
        return block.model_copy(update={**places, "metadata": metadata})

    def _forget(self, given: list[CodeBlock]) -> None:
        """Drop what is before the list, quote or paragraph that holds the last block, but for what it said of all
        blocks. Nothing is cut within a block: its closing fence would open another one."""
        intro = given[0].start_pos
        spans = [self._last, *((block.start_pos, block.end_pos) for block in given)]
        keep = self._text.rfind("\n", 0, given[-1].start_pos) + 1
        for _ in range(_CONTEXT_LINES):
            if keep == 0 or _TOP_LEVEL.match(self._text, keep):
                break
            keep = self._text.rfind("\n", 0, keep - 1) + 1
            for start, end in reversed(spans):
                if start < keep < end:
                    keep = self._text.rfind("\n", 0, start) + 1
        self._last = spans[-1]
        if keep == 0:
            return
        self._earlier = self._earlier.after(self._text[:keep], self._text[:intro])
        self._lines += self._text.count("\n", 0, keep)
        self._text = self._text[keep:]
        self._offset += keep
        self._read -= keep
        self._last = (self._last[0] - keep, self._last[1] - keep)
