"""Python as notebooks have it: what is no Python in a cell is hidden from the parsers, and its commands are Bash."""

from __future__ import annotations

import re
from collections.abc import Iterator

from emberbox.guest.kernels.magic_lines import CODE_CELLS, CODE_LINES, OPTION, SHELL_CELLS, CellMagic, cell_magic, find
from emberbox.languages._tree import Source, walk
from emberbox.languages.spec import Embedded
from emberbox.models import Language

_SIGNS = re.compile(r"[!%?\ufeff]|^[ \t]*pip3?[ \t]", re.MULTILINE)
"""Without any of these, there is nothing to hide."""
_CALLS = re.compile(r"(?:get_ipython\(\)|__magic__)\.(?:system|getoutput|run_line_magic|run_cell_magic|magic)")
_PYTHONS = frozenset({"python", "python3"})
_SCRIPTS: dict[str, Language] = {"bash": "bash", "sh": "bash", "node": "javascript"}
_MARK = "\ufeff"
_NO_INDENT = "\f\f\f"
"""As many bytes as a byte order mark has, which Python does not count as an indent."""


def python_of(code: str) -> str:
    """The code with everything that is no Python as blanks: every byte of what remains stays where it was."""
    if _SIGNS.search(code) is None or _is_python(code):
        return code
    if code.startswith(_MARK):
        return _NO_INDENT + python_of(code[1:])
    whole = cell_magic(code)
    if whole is not None:
        keep = whole.name in CODE_CELLS or whole.name in _PYTHONS
        return _head(code[: whole.start], whole) + (python_of(whole.body) if keep else _blank(whole.body))
    lines = code.split("\n")
    for magic in find(code):
        first, text = lines[magic.first], magic.indent + magic.target
        rest = first[len(text) :]
        if magic.name in CODE_LINES:
            options = OPTION.match(magic.text)
            statement = magic.text[options.end() if options else 0 :].split("\n")[0]
            lines[magic.first] = text + _blank_statement(rest[: len(rest) - len(statement)]) + statement
        else:
            lines[magic.first] = text + _blank_statement(rest)
        for number in range(magic.first + 1, magic.last + 1):
            lines[number] = _blank(lines[number])
    return "\n".join(lines)


def _is_python(code: str) -> bool:
    try:
        compile(code, "<code>", "exec", flags=0x2400, dont_inherit=True)  # a tree, and `await` at the top level
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def _head(text: str, magic: CellMagic) -> str:
    if magic.name != "timeit":
        return _blank(text)
    options = OPTION.match(magic.line + " ")
    setup = magic.line[min(options.end(), len(magic.line)) if options else 0 :]
    place = text.rfind(setup) if setup else len(text)
    return _blank_statement(text[:place]) + text[place:]


def _blank(text: str) -> str:
    return "".join(char if char == "\n" else " " * len(Source.encode(char)) for char in text)


def _blank_statement(text: str) -> str:
    """A statement without effect, as long as the text, before which an indent may stand and behind which code may."""
    blank = _blank(text)
    return "0" + (";" + blank[2:] if len(blank) > 1 else "") if blank else ""


def commands_in(source: Source) -> Iterator[Embedded]:
    """Commands of `!`, `%%bash` and the like, and of calls that do the same."""
    code = source.code
    if _SIGNS.search(code) is not None and python_of(code) != code:
        yield from _of_magics(code)
    if "get_ipython" in code or "__magic__" in code:
        yield from _of_calls(source)


def _of_magics(code: str) -> Iterator[Embedded]:
    skipped = 1 if code.startswith(_MARK) else 0
    text = code[skipped:]
    whole = cell_magic(text)
    begin = len(Source.encode(code[: skipped + (whole.start if whole else 0)]))
    if whole is not None:
        words = whole.line.split()
        name = words[0].rpartition("/")[2] if whole.name == "script" and words else whole.name
        language = "bash" if name in SHELL_CELLS else _SCRIPTS.get(name)
        if language is not None:
            yield Embedded(language, whole.body, begin, begin + len(Source.encode(whole.body)))
        if whole.name not in CODE_CELLS:
            return
        text = whole.body
    ends = [0]
    for line in text.split("\n"):
        ends.append(ends[-1] + len(Source.encode(line)) + 1)
    for magic in find(text):
        if magic.command is not None:
            start = begin + ends[magic.first] + len(Source.encode(magic.indent))
            yield Embedded("bash", magic.command, start, begin + ends[magic.last + 1] - 1)


def _of_calls(source: Source) -> Iterator[Embedded]:
    for node in walk(source.root):
        function = node.child_by_field_name("function") if node.type == "call" else None
        arguments = node.child_by_field_name("arguments") if function is not None else None
        if function is None or arguments is None or _CALLS.fullmatch(source.text(function)) is None:
            continue
        texts = [
            "".join(source.text(part) for part in child.named_children if part.type == "string_content")
            for child in arguments.named_children
            if child.type == "string"
        ]
        for text in dict.fromkeys([*texts, " ".join(texts)]):
            yield Embedded("bash", text.lstrip("%"), node.start_byte, node.end_byte)
