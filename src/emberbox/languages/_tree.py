"""Positions and walks over tree-sitter trees, and a syntax check from their error nodes.

Everything here is iterative: a tree is as deep as its author likes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from emberbox.models import Finding

if TYPE_CHECKING:
    from tree_sitter import Node, Tree

MAX_FINDINGS = 20
_SNIPPET = 200
_CLOSERS = {"(": ")", "[": "]", "{": "}", "${": "}", "$(": ")", "((": "))", "[[": "]]"}


class Source:
    """Code with its tree. Offsets of the tree count bytes of UTF-8; people get lines and columns of characters."""

    def __init__(self, code: str, tree: Tree) -> None:
        self.code = code
        self.tree = tree
        self.bytes = self.encode(code)
        self._lines = self.bytes.split(b"\n")
        self._begins = [0, *accumulate(len(line) + 1 for line in self._lines)]

    @staticmethod
    def encode(code: str) -> bytes:
        """UTF-8; a lone surrogate becomes one `?`, so that columns stay right."""
        return code.encode("utf-8", "replace")

    @property
    def root(self) -> Node:
        return self.tree.root_node

    def text(self, node: Node) -> str:
        """The source text of a node."""
        return self.bytes[node.start_byte : node.end_byte].decode("utf-8", "replace")

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column (from 1, in characters) of a byte offset."""
        line = bisect_right(self._begins, offset, hi=len(self._lines))
        return line, len(self.bytes[self._begins[line - 1] : offset].decode("utf-8", "replace")) + 1

    def line_text(self, line: int) -> str:
        """A line of the source, shortened for display."""
        if not 1 <= line <= len(self._lines):
            return ""
        return self._lines[line - 1].decode("utf-8", "replace").rstrip("\r")[:_SNIPPET]

    def finding(self, offset: int, message: str) -> Finding:
        """A syntax finding at a byte offset."""
        line, column = self.position(offset)
        return Finding(rule="syntax", message=message, line=line, column=column, snippet=self.line_text(line))


def walk(root: Node) -> Iterator[Node]:
    """All nodes below and including `root`, in the order of the text."""
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(node.children))


def fields(node: Node, name: str) -> list[Node]:
    """The children of `node` in the field `name`."""
    return list(node.children_by_field_name(name))


def error_nodes(root: Node) -> Iterator[Node]:
    """The outermost ERROR nodes and the MISSING nodes, in the order of the text."""
    stack = [root]
    while stack:
        node = stack.pop()
        if node.is_error or node.is_missing:
            yield node
        elif node.has_error:
            stack.extend(reversed(node.children))


def generic_syntax_findings(source: Source) -> list[Finding]:
    """One finding per place where the grammar did not fit."""
    findings: list[Finding] = []
    for node in error_nodes(source.root):
        offset, message = _explain(source, node)
        findings.append(source.finding(offset, message))
        if len(findings) == MAX_FINDINGS:
            break
    return findings


def _explain(source: Source, node: Node) -> tuple[int, str]:
    if node.is_missing:
        return _end_of_previous(source, node.start_byte), f"expected {_token_name(node.type)}"
    opener = _unclosed(node)
    if opener is not None:
        if opener.type in {'"', "'", "`", '$"', "$'"}:
            return opener.start_byte, "unterminated string"
        return opener.start_byte, f"'{opener.type}' was never closed"
    word = source.text(node).strip().split("\n", 1)[0].strip()
    token = word.split(None, 1)[0][:30] if word else ""
    return node.start_byte, f"unexpected '{token}'" if token else "unexpected end of the code"


def _unclosed(error: Node) -> Node | None:
    """The innermost bracket or quote among the direct children of an ERROR node that nothing closes."""
    stack: list[Node] = []
    for child in error.children:
        if child.is_named:
            continue
        if child.type in {'"', "'", "`"}:
            if stack and stack[-1].type == child.type:
                stack.pop()
            else:
                stack.append(child)
        elif child.type in _CLOSERS:
            stack.append(child)
        elif stack and child.type == _CLOSERS.get(stack[-1].type):
            stack.pop()
    return stack[-1] if stack else None


def _token_name(kind: str) -> str:
    if kind and not kind[0].isalpha() and kind != "_":
        return f"'{kind}'" if kind.strip() else "a line end"
    return kind.replace("_", " ").strip() or "something"


def _end_of_previous(source: Source, offset: int) -> int:
    """A MISSING token stands where the next token begins; people look for it after the one before."""
    return len(source.bytes[:offset].rstrip())
