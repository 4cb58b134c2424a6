"""Commands in the running text: a line that is `python3 -c "…"`, `node app.js`, `bash -c '…'` and nothing else."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from emberbox._extraction.blocks import Lines, RawBlock

_MAX_LINE = 4_000
_MAX_FOUND = 200
_CANDIDATE = re.compile(r"\b(?:python3?|node(?:js)?|bash|sh)[ \t]+[-\w./~]")
_LEAD = re.compile(r"[ \t]*(?:>[ \t]?|[-*+][ \t]+|\d{1,3}[.)][ \t]+){0,4}")
_PROMPT = re.compile(r"[$%][ \t]+")
_FLAGGED = re.compile(
    r"(?:python3?[ \t]+-[cm]|node(?:js)?[ \t]+(?:-e|-p|-pe|--eval|--print)|(?:ba)?sh[ \t]+-[a-z]*c)[ \t]+\S", re.ASCII
)
_FILE = re.compile(
    r"(?:python3?|node(?:js)?|bash|sh)[ \t]+(?:-[\w-]+[ \t]+)*[\w./~-]+\.(?:py|js|mjs|cjs|sh)(?:[ \t]+[^ \t]+)*[ \t]*$",
    re.ASCII,
)
_PROSE = re.compile(
    r"[.:!?]$|[ \t](?:is|are|was|will|the|to|and|a|in|for|with|runs?|from|which|that)(?:[ \t]|$)", re.IGNORECASE
)
_ANY = re.compile(r"(?:python3?|node(?:js)?|bash|sh)[ \t]+\S", re.ASCII)


def find_inline(lines: Lines, taken: Sequence[RawBlock]) -> Iterator[RawBlock]:
    """Commands on lines that belong to no block of `taken` (in the order of the text)."""
    begins = [block.start for block in taken]
    count, last = 0, -1
    for match in _CANDIDATE.finditer(lines.text):
        index = lines.number(match.start())
        if index == last:
            continue
        last = index
        before = bisect_right(begins, match.start()) - 1
        if before >= 0 and match.start() < taken[before].end:
            continue
        block = _command(lines, index)
        if block is not None:
            yield block
            count += 1
            if count == _MAX_FOUND:
                return


def _command(lines: Lines, index: int) -> RawBlock | None:
    begin, end = lines.starts[index], lines.ends[index]
    if end - begin > _MAX_LINE:
        return None
    line = lines.text[begin:end]
    lead = _LEAD.match(line)
    start, stop = lead.end() if lead else 0, len(line.rstrip())
    outer = (start, stop)
    quoted = stop - start > 2 and line[start] == "`" == line[stop - 1] and "`" not in line[start + 1 : stop - 1]
    if quoted:
        start, stop = start + 1, stop - 1
    prompt = _PROMPT.match(line, start, stop)
    if prompt:
        start = prompt.end()
    code = line[start:stop]
    marked = quoted or prompt is not None
    if not (_FLAGGED.match(code) or (_ANY if marked else _FILE).match(code)):
        return None
    if not marked and not _FLAGGED.match(code) and _PROSE.search(code):
        return None
    return RawBlock(
        kind="inline",
        start=begin + outer[0],
        end=begin + outer[1],
        code=code,
        code_start=begin + start,
        code_end=begin + stop,
        info="",
        line=index + 1,
    )
