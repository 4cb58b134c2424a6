"""Slips that models make with fences, mended where the lines around prove them.

- Dedented: a fence inside a list whose code begins further left ends there for CommonMark, and its closing fence opens
  another one.
- Nested: a Markdown file within a fence that is no longer than the fences of the file.
- Not quite closed: ```` ```<end_code> ````, ```` ```And then … ````, or a fence behind the last line of the code.
- Texts: a fence within a here-document or a triple-quoted string does not end the program around it.
- Opened late: ```` Here it is: ```python ```` on a line of prose.
"""

from __future__ import annotations

import re

from emberbox._extraction.blocks import Lines, RawBlock, fenced
from emberbox._extraction.open_text import OpenText
from emberbox.errors import ValidationFailed
from emberbox.languages import LANGUAGES, resolve

_LOOKAHEAD = 2_000  # lines within which a repaired block must end
_CANDIDATES = 5  # lines with a fence in them that are looked at
_FENCE_RUN = re.compile(r"`{3,}|~{3,}")
_LATE = re.compile(r"[^`~]*[^`~\s][^`~]*?(`{3,}|~{3,})[ \t]*([\w+#.-]{1,20})[ \t]*")
_PROSE = re.compile(r"[A-Z]?[\w'\u2019,]+(?: [\w'\u2019,.:]+){2,}.*")
_TEXT_MARKS = ("<<", '"""', "'''")
_MAX_TEXTS = 200_000  # characters of a program that is parsed to see where it ends
MARKDOWN = frozenset({"markdown", "md", "mdx"})


def repair(lines: Lines, raw: RawBlock, floor: int) -> tuple[RawBlock, int] | None:
    """The block as its author meant it, and the line behind it; None if it stands as the parser has it.

    Args:
        lines: the text.
        raw: a fenced block.
        floor: the line behind the block before it.
    """
    opening = raw.line - 1
    prefix = lines.text[lines.starts[opening] : raw.start]
    run = _FENCE_RUN.match(lines.line(opening), len(prefix))
    if ">" in prefix or run is None:
        return None
    if is_markdown(raw.info):
        return _to_end(lines, raw, prefix, _meant_end(lines, opening + 1, run[0], nested=True))
    return (
        _around_texts(lines, raw, prefix, run[0])
        or _opened_late(lines, raw, floor)
        or _not_quite_closed(lines, raw, prefix, run[0])
        or (
            _to_end(lines, raw, prefix, _meant_end(lines, opening + 1, run[0], nested=False))
            if prefix and not raw.closed
            else None
        )
    )


def _around_texts(lines: Lines, raw: RawBlock, prefix: str, run: str) -> tuple[RawBlock, int] | None:
    """The program with the fences in its texts, if it parses so; else it is marked as cut short."""
    state = OpenText(raw.info)
    if not state.follows or not any(mark in raw.code for mark in _TEXT_MARKS):
        return None
    opening = raw.line - 1
    last = lines.number(max(raw.end - 1, 0)) if raw.closed else len(lines)
    for index in range(opening + 1, min(len(lines), opening + _LOOKAHEAD)):
        line = _unindented(lines.line(index), prefix)
        if not state.inside and is_closing(line, run):
            if index <= last:
                return None
            block = _block(lines, raw, prefix, index)
            if len(block.code) > _MAX_TEXTS or not _parses(raw.info, block.code):
                break
            return block, index + 1
        if index == last and state.inside:
            raw.cut = True  # until something proves where it ends
        state.take(line)
    return None


def is_closing(line: str, run: str) -> bool:
    """Whether a line is a closing fence and nothing else."""
    text = line.strip()
    return text.startswith(run) and not text.strip(run[0])


def _unindented(line: str, prefix: str) -> str:
    """A line less the indent of its fence, so that the end of a here-document is seen."""
    width = len(prefix)
    return line[width:] if not line[:width].strip() else line.lstrip(" ")


def _parses(info: str, code: str) -> bool:
    language = "bash" if "bash" in info.lower() else resolve(info.split(None, 1)[0].partition(":")[0])
    try:
        return language is not None and not LANGUAGES[language].syntax_findings(code)
    except ValidationFailed:
        return False


def is_markdown(info: str) -> bool:
    """Whether a fence holds a Markdown file, which may hold fences."""
    return bool(info) and info.split(None, 1)[0].lower() in MARKDOWN


def ends_with_a_slip(line: str, fence_run: str, *, closed: bool) -> bool:
    """Whether a line closes a fence, though something follows: a stop word of a template, or (where nothing else closes
    it) a sentence."""
    text = line.strip()
    if not text.startswith(fence_run):
        return False
    behind = text.lstrip(fence_run[0])
    return behind.startswith("<") or (not closed and _PROSE.fullmatch(behind) is not None)


def _to_end(lines: Lines, raw: RawBlock, prefix: str, end: int | None) -> tuple[RawBlock, int] | None:
    if end is None or lines.starts[end] < raw.end:
        return None
    return _block(lines, raw, prefix, end), end + 1


def _block(lines: Lines, raw: RawBlock, prefix: str, end: int, *, closed: bool = True) -> RawBlock:
    """The block whose code ends before line `end`, less the indent that all of its lines have. Where it is `closed`,
    its closing fence is on that line."""
    opening = raw.line - 1
    content = [lines.line(index) for index in range(opening + 1, end)]
    indents = [len(line) - len(line.lstrip(" \t")) for line in content if line.strip()]
    cut = min([len(prefix), *indents])
    stripped = [line[min(cut, len(line)) :] for line in content]
    return fenced(lines, (raw.start, opening, stripped, closed), raw.info)


def _meant_end(lines: Lines, first: int, run: str, *, nested: bool) -> int | None:
    """The line of the closing fence; fences within a Markdown file come in pairs, elsewhere there are none."""
    depth = 0
    for index in range(first, min(len(lines), first + _LOOKAHEAD)):
        line = lines.line(index).strip()
        if not line.startswith(run):
            continue
        if line.strip(run[0]):
            if not nested:
                return None
            depth += 1
        elif depth:
            depth -= 1
        else:
            return index
    return None


def _not_quite_closed(lines: Lines, raw: RawBlock, prefix: str, run: str) -> tuple[RawBlock, int] | None:
    first, last = raw.line, min(lines.number(max(raw.end - 1, 0)), raw.line + _LOOKAHEAD)
    inner = [index for index in range(first, last + 1) if lines.line(index).lstrip().startswith(run)]
    # A stop word ends it whatever comes later, so that a text that is still being written gives the same.
    stopped = next((index for index in inner if ends_with_a_slip(lines.line(index), run, closed=True)), None)
    closed = raw.closed or stopped is not None
    inner = [index for index in inner if stopped is None or index <= stopped]
    for index in range(first, last + 1):
        line = lines.line(index)
        if ends_with_a_slip(line, run, closed=closed):
            block = _block(lines, raw, prefix, index)
            block.end = lines.starts[index] + len(line) - len(line.lstrip()) + len(run)
            return block, index + 1
        text = line.strip()
        glued = text.endswith(run) and not text.startswith(run) and text.count(run[0]) == len(run)
        # A template string may end so as well; but then no other fence follows within the block.
        if glued and (not closed or any(other > index and _opens(lines.line(other), run) for other in inner)):
            return _unglued(lines, raw, prefix, index, run), index + 1
    return None


def _opens(line: str, run: str) -> bool:
    word = line.strip().lstrip(run[0]).split(None, 1)
    return bool(word) and resolve(word[0]) is not None


def _unglued(lines: Lines, raw: RawBlock, prefix: str, index: int, run: str) -> RawBlock:
    block = _block(lines, raw, prefix, index + 1, closed=False)
    cut = block.code.rfind(run)
    block.closed = True
    block.end = lines.starts[index] + len(lines.line(index).rstrip())
    block.code = block.code[:cut]
    if block.code_start is not None:
        block.code_end = block.code_start + cut
    return block


def _opened_late(lines: Lines, raw: RawBlock, floor: int) -> tuple[RawBlock, int] | None:
    """A fence without a language that really is the closing one of a fence behind a line of prose."""
    if raw.info:
        return None
    opening = raw.line - 1
    lowest, position = lines.starts[max(floor, opening - _LOOKAHEAD)], lines.starts[opening]
    run = lines.text[raw.start : raw.start + 3]
    for _ in range(_CANDIDATES):
        position = lines.text.rfind(run, lowest, position)
        if position < 0:
            return None
        index = lines.number(position)
        position = lines.starts[index]
        late = _LATE.fullmatch(lines.line(index)[:2_000])
        if late is not None and resolve(late[2]) is not None:
            stripped = [lines.line(inner) for inner in range(index + 1, opening)]
            start = lines.starts[index] + late.start(1)
            return fenced(lines, (start, index, stripped, True), late[2]), opening + 1
    return None
