"""What only the whole answer tells of a block: that it is one of several of the same make, that nothing comes of it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from emberbox._extraction.needs import Needs
from emberbox._extraction.scoring import Score

_SAME = 3  # blocks of one make that are a template
_LINES = 3  # that a block has at least, so that its make tells anything
_ELSEWHERE = frozenset({"browser", "interactive", "files", "machine", "test-suite", "project"})
"""Rules by which a block runs, if not here, then where the reader has what it needs."""
_LITERAL = (
    r"\"\"\".*?(?:\"\"\"|\Z)|'''.*?(?:'''|\Z)|\"(?:\\.|[^\"\\\n])*\"?|'(?:\\.|[^'\\\n])*'?|`(?:\\.|[^`\\])*`?"
    r"|(?<![\w.])\d[\w.]*"
)
"""What is never closed ends with its line or the block, so that the time is linear."""
_HASH = re.compile(rf"(?P<literal>{_LITERAL})|(?<!\S)#[^\n]*", re.DOTALL)
_SLASHES = re.compile(rf"(?P<literal>{_LITERAL})|//[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_MODULE_FILE = re.compile(r"(?<![\w-])([A-Za-z_]\w*)(?:\.py\b|/(?=[\w.]))")
_INSTALLED = re.compile(r"\b(?:pip3?|uv(?: pip)?|poetry|conda|mamba) (?:install|add)\b([^\n`]{1,300})")
_WORD = re.compile(r"[A-Za-z_][\w-]*")


def make_of(language: str, code: str) -> str:
    """A block without its comments, with a mark for each literal."""
    expression = _HASH if language in {"python", "bash"} else _SLASHES
    plain = expression.sub(lambda match: "0" if match["literal"] else "", code)
    lines = [" ".join(line.split()) for line in plain.splitlines()]
    return "\n".join(line for line in lines if line)


def find_templates(blocks: Sequence[tuple[str, str]]) -> set[int]:
    """Blocks of which there are three or more that differ in comments and literals only: one is shown for each case,
    and none of them is the program.

    Args:
        blocks: language and code of each; what has no language counts for nothing.
    """
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for index, (language, code) in enumerate(blocks):
        make = make_of(language, code) if language else ""
        if make.count("\n") + 1 >= _LINES:
            groups[language, make].append(index)
    return {
        index
        for group in groups.values()
        if len(group) >= _SAME and len({blocks[index][1] for index in group}) > 1
        for index in group
    }


def own_modules(text: str) -> frozenset[str]:
    """Modules that the text itself brings: its files, and what it says to install."""
    files = {match[1] for match in _MODULE_FILE.finditer(text)}
    for match in _INSTALLED.finditer(text):
        files |= {word.replace("-", "_").lower() for word in _WORD.findall(match[1])}
    return frozenset(files)


@dataclass
class Judged:
    """One block with what the last look at the answer needs to know of it.

    Attributes:
        language: of the block; "" if it has none that can be run.
        needs: what it defines and needs.
        score: of the block; takes the rule.
        quiet: it may be held back because nothing of it can be seen.
    """

    language: str
    needs: Needs
    score: Score
    quiet: bool = False

    @property
    def _context(self) -> str:
        return "javascript" if self.language == "typescript" else self.language

    def defines(self) -> set[tuple[str, str]]:
        return {(self._context, name) for name in self.needs.defines | self.needs.functions}

    def uses(self) -> set[tuple[str, str]]:
        return {(self._context, name) for name in self.needs.uses}


def hold_silent_back(blocks: Sequence[Judged], threshold: float) -> None:
    """Applies the rule about blocks of which nothing can be seen, the last block first: one that a block below takes a
    name from, if that runs here or in the reader's own place, is part of what it does; and so on upwards."""
    used: set[tuple[str, str]] = set()
    for block in reversed(blocks):
        if block.score.value < threshold:
            held = {entry["rule"] for entry in block.score.why if "cap" in entry}
            used |= block.uses() if held and held <= _ELSEWHERE else set()
        elif block.quiet and not block.defines() & used:
            block.score.drop("acts")
            block.score.add("silent")
        else:
            used |= block.uses()
