"""Whether Bash code is unbalanced: quotes, brackets and compound commands that do not end, or end what never began.

Used instead of the grammar's error nodes: the grammar has errors where Bash has none (in about one of 25 of a
distribution's own scripts) and none where a stray `fi` stands. This knows quoting, comments, here-documents and
reserved words, and nothing else of Bash; what it lets through, Bash itself will report.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_WORD = re.compile(r"[^\s;&|()<>\"'`$\\#{}]+|[{}#]")
_HEREDOC = re.compile(r"<<(-?)[ \t]*(?:'([^'\n]+)'|\"([^\"\n]+)\"|\\?([\w.!@%+-]+))")
_OPENERS = {"if": "fi", "for": "done", "while": "done", "until": "done", "select": "done", "case": "esac", "{": "}"}
_CLOSERS = frozenset(_OPENERS.values())
_NEED = {"then": "fi", "elif": "fi", "else": "fi", "do": "done"}
_STARTS_COMMAND = frozenset({"then", "do", "else", "elif", "if", "while", "until", "{", "!", "time", "in"})


@dataclass
class Problem:
    """What is wrong, and the character offset of where."""

    offset: int
    message: str


@dataclass
class _Open:
    closer: str
    what: str
    offset: int
    ready: bool = True  # `then`, `do` or `in` was seen; always true where there is none
    pattern: bool = False  # within `case`: at a pattern, up to its parenthesis


class _Scanner:
    def __init__(self, code: str) -> None:
        self.code = code
        self.at = 0
        self.stack: list[_Open] = []
        self.heredocs: list[tuple[str, bool]] = []
        self.backticks = 0  # open ones; they do not nest
        self.fresh = True  # at the place of a command's name

    def scan(self) -> Problem | None:
        while self.at < len(self.code):
            problem = self._step()
            if problem is not None:
                return problem
        if not self.stack:
            return None
        left = self.stack[-1]
        if left.closer in "'\"`":
            return Problem(left.offset, "unterminated string")
        return Problem(left.offset, f"'{left.what}' was never closed (expected '{left.closer}')")

    def _step(self) -> Problem | None:
        char = self.code[self.at]
        top = self.stack[-1] if self.stack else None
        if char == "\\":
            self.fresh = self.fresh and self.code.startswith("\\\n", self.at)  # a continued line goes on as it was
            self.at += 2
            return None
        if top is not None and top.closer == '"':
            return self._in_double_quotes(char)
        if char == "'" or self.code.startswith("$'", self.at):
            return self._single_quotes(char)
        if char in '"`':
            self._quote(char, top)
        elif char == "$":
            self._dollar()
        elif char == "\n":
            self._line_end()
        elif char == "<" and self.code.startswith("<<", self.at):
            self._heredoc()
        elif char in "()":
            return self._parenthesis(char, top)
        elif char in ";&|":
            self._separator(top)
        elif char.isspace() or char in "<>":
            self.at += 1
        else:
            return self._word(top)
        return None

    # --- quotes and expansions --------------------------------------------------------------------------------------

    def _in_double_quotes(self, char: str) -> Problem | None:
        if char == '"':
            self.stack.pop()
            self.at += 1
        elif char == "$" and self.code[self.at + 1 : self.at + 2] in {"(", "{"}:
            self._dollar()
        elif char == "`":
            self._quote("`", self.stack[-1])
        else:
            self.at += 1
        return None

    def _single_quotes(self, char: str) -> Problem | None:
        begin = self.at
        position = begin + (2 if char == "$" else 1)
        while position < len(self.code) and self.code[position] != "'":
            position += 2 if char == "$" and self.code[position] == "\\" else 1
        self.at, self.fresh = position + 1, False
        return Problem(begin, "unterminated string") if position >= len(self.code) else None

    def _quote(self, char: str, top: _Open | None) -> None:
        inside = char == "`" and self.backticks > 0
        if top is not None and (top.closer == char or inside):
            while self.stack and self.stack[-1].closer != char:
                self.stack.pop()
            self.stack.pop()
            self.backticks -= char == "`"
            self.at += 1
        else:
            self.backticks += char == "`"
            self._push(char, char, 1)
        self.fresh = char == "`" and not inside

    def _dollar(self) -> None:
        follows = self.code[self.at + 1 : self.at + 2]
        if follows == "(":
            self._push(")", "$(", 2)
        elif follows == "{":
            self._push("}", "${", 2)
            self.fresh = False
        else:
            self.at += 2 if follows and (follows in "#?!$*@-" or follows.isalnum()) else 1
            self.fresh = False

    def _push(self, closer: str, what: str, width: int, *, ready: bool = True) -> None:
        self.stack.append(_Open(closer, what, self.at, ready))
        self.at += width
        self.fresh = True

    # --- commands ---------------------------------------------------------------------------------------------------

    def _line_end(self) -> None:
        self.at += 1
        self.fresh = True
        for word, stripped in self.heredocs:
            while self.at < len(self.code):
                end = self.code.find("\n", self.at)
                end = len(self.code) if end < 0 else end
                line = self.code[self.at : end].rstrip("\r")
                self.at = end + 1
                if (line.lstrip("\t") if stripped else line) == word:
                    break
        self.heredocs.clear()

    def _heredoc(self) -> None:
        if self.code.startswith("<<<", self.at):
            self.at += 3
            return
        match = _HEREDOC.match(self.code, self.at)
        if match is None or self._in_arithmetic():
            self.at += 2
            return
        self.heredocs.append((match[2] or match[3] or match[4], bool(match[1])))
        self.at = match.end()

    def _in_arithmetic(self) -> bool:
        """Within `((…))`, where `<<` shifts."""
        for entry in reversed(self.stack[-8:]):
            if entry.what != "(":
                return False
            if self.code[entry.offset - 1 : entry.offset] == "(":
                return True
        return False

    def _parenthesis(self, char: str, top: _Open | None) -> Problem | None:
        if char == "(":
            if top is None or not top.pattern:
                self._push(")", "(", 1)
            else:
                self.at += 1  # `(pattern)`
            return None
        offset, self.at = self.at, self.at + 1
        if top is not None and top.closer == ")":
            self.stack.pop()
            self.fresh = self.code[top.offset] == "("  # `f() if …`, `(a) then`
            return None
        if top is not None and top.closer == "esac":
            top.pattern, self.fresh = False, True
            return None
        return Problem(offset, "unexpected ')'")

    def _separator(self, top: _Open | None) -> None:
        if top is not None and top.what == "case" and self.code[self.at : self.at + 2] in {";;", ";&"}:
            top.pattern = True
        self.at += 1
        self.fresh = True

    def _word(self, top: _Open | None) -> Problem | None:
        match = _WORD.match(self.code, self.at)
        if match is None:
            self.at += 1
            return None
        word, offset = match[0], self.at
        if word == "#" and (offset == 0 or self.code[offset - 1] in " \t\n;&|("):
            end = self.code.find("\n", offset)
            self.at = len(self.code) if end < 0 else end
            return None
        self.at = match.end()
        if word == "}" and top is not None and top.what == "${":
            self.stack.pop()
            self.fresh = False
            return None
        whole = self._is_whole(offset)
        fresh, self.fresh = self.fresh and whole, self.fresh and whole and word in _STARTS_COMMAND
        if top is not None and top.what == "${":
            return None
        if word == "in" and top is not None and not top.ready and top.what == "case":
            top.ready = top.pattern = self.fresh = True
            return None
        if word == "do" and top is not None and top.what in {"for", "select"} and not top.ready:
            fresh = self.fresh = True  # `for name do`
        return self._reserved(word, offset, top) if fresh else None

    def _is_whole(self, offset: int) -> bool:
        before = self.code[offset - 1] if offset else "\n"
        after = self.code[self.at] if self.at < len(self.code) else "\n"
        return before in " \t\n\r;&|()`{" and after in " \t\n\r;&|()`<>"

    def _reserved(self, word: str, offset: int, top: _Open | None) -> Problem | None:
        if top is not None and top.pattern and word != "esac":
            return None
        if word in _OPENERS:
            ready = word == "{"
            self.stack.append(_Open(_OPENERS[word], word, offset, ready))
        elif word in _NEED:
            if top is None or top.closer != _NEED[word]:
                return Problem(offset, f"unexpected '{word}'")
            top.ready = True
        elif word in _CLOSERS:
            if top is None or top.closer != word or not top.ready:
                return Problem(offset, f"unexpected '{word}'")
            self.stack.pop()
            self.fresh = True  # another closer may follow: `done }`
        return None


def find_problem(code: str) -> Problem | None:
    """The first place where the code is unbalanced, or None."""
    return _Scanner(code.replace("\\\r\n", "\\\n")).scan()
