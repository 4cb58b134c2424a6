"""Imports that the host added to a cell that forgot them. They must not move the lines that its author knows."""

from __future__ import annotations

import ast
from bisect import bisect_left

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

MARKER = "  # added by emberbox"
"""How each added line ends; whoever adds them is hooks/_imports_python.py."""


class Added:
    """A cell in which lines of the form `import x  # added by emberbox` may stand.

    Whatever they are, the cell does what it says: the marker only decides which line numbers errors have, and that an
    import gives way to a variable that is there.

    Attributes:
        rest: the text without these lines.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._numbers: List[int] = []
        kept: List[str] = []
        for number, line in enumerate(lines, 1):
            if line.endswith(MARKER) and line.startswith(("import ", "from ")):
                self._numbers.append(number)
            else:
                kept.append(line)
        self.rest = "\n".join(kept)

    def parse(self, name: str, flags: int, namespace: Dict[str, Any]) -> ast.Module:
        """The tree of the whole cell, with its places as in `rest`, and without imports whose names exist already."""
        tree: ast.Module = compile(self._source, name, "exec", flags, dont_inherit=True)
        tree.body = [kept for statement in tree.body for kept in self._settled(statement, namespace)]
        for node in ast.walk(tree):
            place: Any = node
            if hasattr(place, "lineno"):
                place.lineno -= bisect_left(self._numbers, place.lineno)
                place.end_lineno -= bisect_left(self._numbers, place.end_lineno)
        return tree

    def _settled(self, statement: ast.stmt, namespace: Dict[str, Any]) -> List[ast.stmt]:
        if not isinstance(statement, (ast.Import, ast.ImportFrom)) or statement.lineno not in self._numbers:
            return [statement]
        names = [alias.asname or alias.name.partition(".")[0] for alias in statement.names]
        if any(name in namespace for name in names):
            return []
        # A module that this machine does not have is missed where it is used, as if nobody had added anything.
        handler = ast.ExceptHandler(type=ast.Name("ImportError", ast.Load()), name=None, body=[ast.Pass()])
        attempt = ast.Try(body=[statement], handlers=[handler], orelse=[], finalbody=[])
        return [ast.fix_missing_locations(ast.copy_location(attempt, statement))]
