"""The text of a cell as a syntax tree: Python, and what notebooks take for it."""

from __future__ import annotations

import ast

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable


def compiled(source: str, name: str, flags: int, translate: Callable[[str], str | None]) -> ast.Module:
    """The tree of a cell. What is no Python is tried again with its magics as calls (`translate`), and without an
    indent that all lines share. Raises SyntaxError, of the text as it was where possible."""
    try:
        return _parse(source, name, flags)
    except SyntaxError as problem:
        translated = translate(source)
        text = source if translated is None else translated
        for attempt in (_parse, _parse_indented):
            if attempt is _parse and translated is None:
                continue
            try:
                return attempt(text, name, flags)
            except SyntaxError as other:
                if translated is not None and attempt is _parse and not isinstance(other, IndentationError):
                    raise other from None
        raise problem from None


def _parse(source: str, name: str, flags: int) -> ast.Module:
    tree: ast.Module = compile(source, name, "exec", flags, dont_inherit=True)
    return tree


def _parse_indented(source: str, name: str, flags: int) -> ast.Module:
    # As the body of a statement, which leaves columns and the text of strings as they are.
    if not source.lstrip("\r\n")[:1].isspace():
        raise IndentationError
    tree = _parse("if 1:\n" + source, name, flags)
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.If) or tree.body[0].orelse:
        raise IndentationError
    tree.body = tree.body[0].body
    ast.increment_lineno(tree, -1)
    return tree


def silenced(source: str, last: ast.Expr) -> bool:
    """Whether a semicolon follows the last expression. Only brackets, comments and space can stand there else."""
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")[(last.end_lineno or 1) - 1 :]
    if lines:
        lines[0] = lines[0].encode()[last.end_col_offset or 0 :].decode("utf-8", "replace")
    return any(";" in line.split("#", 1)[0] for line in lines)
