"""Raw blocks, with offsets into the text as it was given.

A parser rewrites line ends and NUL characters; so the code of a block is taken from the original lines.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

MAX_BLOCKS = 20_000  # that are given of one text; what comes behind is no answer that anybody wrote
_LINE_END = re.compile(r"\r\n?|\n")
_FENCE = re.compile("```|~~~")
_OPENING = re.compile(
    r"^((?:[ \t]*(?:>|[-+*](?=[ \t])|\d{1,9}[.)](?=[ \t])))*[ \t]*)(`{3,}(?=[^`\n]*$)|~{3,})", re.MULTILINE
)


@dataclass(slots=True)
class RawBlock:
    """A piece of code as it stands in the text, not yet judged.

    Attributes:
        kind: fence, indented, inline, tag or tool-call.
        start, end: the slice of the text, with the fences.
        code: what stood between the fences, less the block's own indent.
        code_start, code_end: the slice that is exactly the code, if there is one.
        info: what follows the opening fence; the language of a tag or a tool call.
        line: line (from 1) on which it starts.
        closed: whether a closing fence or tag was found; true for other kinds.
        tool: name of the tool that a tool call calls.
        cut: its end stands within a text of the program, so that it is cut short.
        quoted: a tool call that stands in a fence, as something to be looked at.
    """

    kind: str
    start: int
    end: int
    code: str
    code_start: int | None
    code_end: int | None
    info: str
    line: int
    closed: bool = True
    tool: str = ""
    quoted: bool = False
    cut: bool = False


class Lines:
    """The lines of a text as markdown-it counts them, with their offsets in the original."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.starts = [0]
        self.ends: list[int] = []
        for match in _LINE_END.finditer(text):
            self.ends.append(match.start())
            self.starts.append(match.end())
        self.ends.append(len(text))

    def __len__(self) -> int:
        return len(self.starts)

    def line(self, index: int) -> str:
        """A line without its line end."""
        return self.text[self.starts[index] : self.ends[index]]

    def after(self, index: int) -> int:
        """Offset behind the line end."""
        return self.starts[index + 1] if index + 1 < len(self.starts) else len(self.text)

    def number(self, offset: int) -> int:
        """The index of the line that an offset lies on."""
        return bisect_right(self.starts, offset) - 1


def fenced(lines: Lines, place: tuple[int, int, list[str], bool], info: str) -> RawBlock:
    """A fenced block from: offset of the fence, its line, the stripped lines within, whether it was closed."""
    begin, opening, stripped, closed = place
    block = assemble(lines, "fence", opening + 1, stripped, info)
    block.start, block.line, block.closed = begin, opening + 1, closed
    last = opening + len(stripped) + (1 if closed else 0)
    block.end = lines.starts[last] + len(lines.line(last).rstrip()) if closed else lines.ends[last]
    if not stripped:
        block.code_start = block.code_end = lines.after(opening)
    return block


def assemble(lines: Lines, kind: str, first: int, stripped: list[str], info: str) -> RawBlock:
    """A block from its lines as the parser stripped them; each is looked up at the end of its original line."""
    begin = end = lines.starts[first] if first < len(lines) else len(lines.text)
    last = first + len(stripped) - 1
    if stripped:
        end = lines.after(last)
    code = lines.text[begin:end]
    contiguous = code == "\n".join(stripped) + ("\n" if code.endswith("\n") else "")
    if not contiguous:
        begin, code, contiguous = _pieced(lines, first, stripped)
    return RawBlock(
        kind=kind,
        start=begin,
        end=lines.ends[last] if stripped else end,
        code=code,
        code_start=begin if contiguous else None,
        code_end=end if contiguous else None,
        info=info,
        line=first + 1,
    )


def _pieced(lines: Lines, first: int, stripped: list[str]) -> tuple[int, str, bool]:
    """Offset of the code, the code, and whether it is one slice of the text."""
    parts: list[str] = []
    contiguous = True
    begin = lines.starts[first]
    for index, content in enumerate(stripped, first):
        original = lines.line(index)
        cut = len(original) - len(content)
        if cut < 0 or original[cut:].replace("\0", "\ufffd") != content:
            parts.append(content)  # a tab that was partly indent became spaces
            contiguous = False
        else:
            parts.append(original[cut:])
        if index == first:
            begin += max(cut, 0)
        elif cut:
            contiguous = False
        parts.append(lines.text[lines.ends[index] : lines.after(index)])
    return begin, "".join(parts), contiguous


def scan(lines: Lines) -> list[RawBlock]:
    """Fences alone, found line by line. List and quote markers before a fence are taken off without being checked."""
    blocks: list[RawBlock] = []
    opening = _opening(lines.text, 0)
    while opening is not None and len(blocks) < MAX_BLOCKS:
        first = lines.number(opening.start())
        prefix, fence = opening[1], opening[2]
        content, index, closed = _scan_body(lines, first + 1, fence, prefix)
        info = lines.line(first)[len(prefix) + len(fence) :].strip()
        blocks.append(fenced(lines, (opening.start(2), first, content, closed), info))
        opening = _opening(lines.text, lines.starts[index]) if index < len(lines) else None
    return blocks


def _opening(text: str, start: int) -> re.Match[str] | None:
    """The next line that opens a fence. Only lines that have one in them are looked at closely: to try each line of a
    long text takes seconds in one go, in which no other thread runs."""
    while (mark := _FENCE.search(text, start)) is not None:
        line = max(start, text.rfind("\n", 0, mark.start()) + 1)
        if (found := _OPENING.match(text, line)) is not None:
            return found
        start = text.find("\n", mark.end())
        if start < 0:
            return None
    return None


def _scan_body(lines: Lines, index: int, fence: str, prefix: str) -> tuple[list[str], int, bool]:
    """The stripped lines up to the closing fence, the index of the line behind it, and whether there was one."""
    quotes = prefix.count(">")
    width = len(prefix)
    content: list[str] = []
    while index < len(lines):
        line = lines.line(index)
        cut = 0
        limit = min(width, len(line))
        while cut < limit and line[cut] in " \t>":
            cut += 1
        if quotes and ">" not in line[:cut]:
            return content, index, False  # the quote ended, and the fence with it
        rest = line[cut:].strip()
        if len(rest) >= len(fence) and not rest.strip(fence[0]):
            return content, index + 1, True
        content.append(line[cut:])
        index += 1
    if content and not content[-1]:
        content.pop()  # what follows the last line end is not a line
        return content, index - 1, False
    return content, index, False
