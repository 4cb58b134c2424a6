"""Whether a line of code stands within a text of the program: a here-document, or a triple-quoted string.

A fence in such a text belongs to the text. A model that writes a README with a script often fences both with three
back-ticks, and what CommonMark then takes for the end of the script is a line of the README.
"""

from __future__ import annotations

import re
from collections import deque

from emberbox.languages import resolve

_HEREDOC = re.compile(r"(?<!<)<<(-?)[ \t]*(?:'([^'\n]{1,60})'|\"([^\"\n]{1,60})\"|\\?([A-Za-z_][\w.-]{0,60}))")
_PYTHON = re.compile(r"#.*|(?P<triple>\"\"\"|''')|\"(?:\\.|[^\"\\])*(?:\"|$)|'(?:\\.|[^'\\])*(?:'|$)")
_MAX_LINE = 10_000


class OpenText:
    """Follows the lines of one block.

    Args:
        info: the info string of its fence.
    """

    def __init__(self, info: str) -> None:
        word = info.split(None, 1)[0].lower() if info else ""
        language = resolve(word.strip("{}.").partition(":")[0].partition(",")[0])
        self._shell = language == "bash" or "bash" in word
        self._python = language == "python" or "python" in word
        self._delimiters: deque[tuple[str, bool]] = deque()
        self._quote = ""

    @property
    def follows(self) -> bool:
        """Whether the language has such texts at all."""
        return self._shell or self._python

    @property
    def inside(self) -> bool:
        """Whether the next line stands within a text."""
        return bool(self._delimiters or self._quote)

    def take(self, line: str) -> None:
        """The next line, without its line end."""
        line = line[:_MAX_LINE]
        if self._shell:
            self._take_shell(line.rstrip("\r"))
        elif self._python:
            self._take_python(line)

    def _take_shell(self, line: str) -> None:
        if self._delimiters:
            word, tabs = self._delimiters[0]
            if (line.lstrip("\t") if tabs else line) == word:
                self._delimiters.popleft()
            return
        if line.lstrip().startswith("#"):
            return
        for match in _HEREDOC.finditer(line):
            if line.count("((", 0, match.start()) <= line.count("))", 0, match.start()):  # no shift: $((1<<x))
                self._delimiters.append((match[2] or match[3] or match[4], bool(match[1])))

    def _take_python(self, line: str) -> None:
        position = 0
        while position <= len(line):
            if self._quote:
                end = _unescaped(line, self._quote, position)
                if end < 0:
                    return
                position, self._quote = end + 3, ""
            match = _PYTHON.search(line, position)
            if match is None:
                return
            position = match.end()
            self._quote = match["triple"] or ""


def _unescaped(line: str, quote: str, start: int) -> int:
    end = line.find(quote, start)
    while end > 0 and (len(line[:end]) - len(line[:end].rstrip("\\"))) % 2:
        end = line.find(quote, end + 1)
    return end
