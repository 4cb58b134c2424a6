"""Finds what notebooks allow in Python cells and Python does not: `!command`, `%magic`, `%%magic`, `name?`.

Pure: the kernel turns these lines into calls (magics.py), the host looks at the shell commands in them as Bash.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, List

_TOKEN = re.compile(
    r"#.*|'''|\"\"\"|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|[()\[\]{}]|\\\Z",
)
_CLOSING = {"'''": re.compile(r"(?:\\.|[^\\])*?'''"), '"""': re.compile(r'(?:\\.|[^\\])*?"""')}
_SHELL = re.compile(r"(\s*)(?:([\w.\[\], \t'\"*]+=(?!=)\s*))?(!!?)\s*(\S.*)", re.DOTALL)
_MAGIC = re.compile(r"(\s*)(?:([\w.\[\], \t'\"*]+=(?!=)\s*))?%([A-Za-z_]\w*)[ \t]*(.*)", re.DOTALL)
_PIP = re.compile(r"(\s*)()(pip)3?\s+((?:install|uninstall|list|show|freeze)\b.*)", re.DOTALL)
_HELP = re.compile(r"(\s*)()(?:\?{1,2}\s*([A-Za-z_][\w.]*)|([A-Za-z_][\w.]*)\s*\?{1,2})\s*")
_CELL = re.compile(r"%%([A-Za-z_]\w*|!)[ \t]*([^\n]*)(?:\n|\Z)")

SHELL_CELLS = frozenset({"bash", "sh", "!", "sx", "system"})
SHELL_LINES = frozenset(
    {"sx", "system", "ls", "ll", "cat", "cp", "mv", "rm", "mkdir", "rmdir", "less", "more", "man", "sh", "bash"}
)
"""Magics whose text is for the shell; all but the first two and the last two are commands themselves."""
CODE_CELLS = frozenset({"time", "timeit", "capture", "prun"})
"""Magics of a cell that run the rest of it as Python."""
CODE_LINES = frozenset({"time", "timeit", "prun"})
OPTION = re.compile(r"(?:-[nrsp]?\s*\d+\s+|-[a-zA-Z]+\s+)*")
"""What `%timeit` and `%%timeit` may have before the code."""


class Magic:
    """A line, or several that a backslash joins, that is no Python.

    Attributes:
        first, last: numbers of the lines, from 0; `last` is that of the last one.
        indent: what stands before it.
        target: `name = `, if the result is assigned.
        name: of the magic; empty for `!command`.
        text: the command, or what stands behind the name.
    """

    __slots__ = ("first", "indent", "last", "name", "target", "text")

    def __init__(self, first: int, last: int, parts: tuple[str, str, str, str]) -> None:
        self.first = first
        self.last = last
        self.indent, self.target, self.name, self.text = parts

    @property
    def command(self) -> str | None:
        """The text that a shell gets, if any does."""
        if not self.name or self.name in ("sx", "system", "sh", "bash"):
            return self.text
        if self.name == "pip":
            return "pip " + self.text
        return f"{self.name} {self.text}" if self.name in SHELL_LINES else None


class CellMagic:
    """A cell that begins with `%%name`: what it is, and the rest of the cell."""

    __slots__ = ("body", "line", "name", "start")

    def __init__(self, name: str, line: str, source: str, start: int) -> None:
        self.name = name
        self.line = line
        self.start = start
        """Where the rest begins, in characters."""
        self.body = source[start:]


def cell_magic(source: str) -> CellMagic | None:
    """What the whole cell is, if it begins with `%%`."""
    blank = len(source) - len(source.lstrip())
    if not source.startswith("%%", blank):
        return None
    found = _CELL.match(source, blank)
    return None if found is None else CellMagic(found.group(1), found.group(2).strip(), source, found.end())


def find(source: str) -> List[Magic]:
    """The magics of a cell, in order. They begin a statement: what stands in a text or in brackets is none."""
    lines = source.split("\n")
    found: List[Magic] = []
    text, depth, joined, number = "", 0, False, 0
    while number < len(lines):
        line = lines[number]
        if not text and not depth and not joined:
            last = number
            while lines[last].endswith("\\") and last + 1 < len(lines):
                last += 1
            whole = "\n".join(lines[number : last + 1])
            parts = _parts(whole)
            if parts is not None:
                found.append(Magic(number, last, parts))
                number = last + 1
                continue
        text, depth, joined = _scan(line, text, depth)
        number += 1
    return found


def _parts(line: str) -> tuple[str, str, str, str] | None:
    stripped = line.lstrip()
    if not stripped or stripped[0] == "#":
        return None
    if "!" in line:
        match = _SHELL.fullmatch(line)
        if match is not None:
            name = "sx" if match.group(3) == "!!" else ""
            return match.group(1), match.group(2) or "", name, match.group(4)
    if "%" in line:
        match = _MAGIC.fullmatch(line)
        if match is not None:
            return match.group(1), match.group(2) or "", match.group(3), match.group(4)
    match = _PIP.fullmatch(line)
    if match is not None:
        return match.group(1), "", "pip", match.group(4)
    match = _HELP.fullmatch(line) if "?" in line else None
    if match is not None:
        return match.group(1), "", "pinfo", match.group(3) or match.group(4)
    return None


def _scan(line: str, text: str, depth: int) -> tuple[str, int, bool]:
    """Which text, how many brackets are open at the end of a line, and whether a backslash joins the next one to it."""
    place = 0
    if text:
        end = _CLOSING[text].match(line)
        if end is None:
            return text, depth, False
        place = end.end()
    while True:
        token = _TOKEN.search(line, place)
        if token is None:
            return "", depth, False
        place, what = token.end(), token.group()
        if what == "\\":
            return "", depth, True
        if what in _CLOSING:
            end = _CLOSING[what].match(line, place)
            if end is None:
                return what, depth, False
            place = end.end()
        elif what in "([{":
            depth += 1
        elif what in ")]}":
            depth = max(0, depth - 1)


def replace(source: str, magics: List[Magic], make: Callable[[Magic], str]) -> str:
    """The source with what `make` says in place of each magic, and every other line where it was."""
    lines = source.split("\n")
    for magic in magics:
        lines[magic.first] = make(magic)
        for number in range(magic.first + 1, magic.last + 1):
            lines[number] = ""
    return "\n".join(lines)
