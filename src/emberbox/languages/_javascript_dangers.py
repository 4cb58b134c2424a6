"""Dangerous patterns in JavaScript code, found on what its names mean."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from emberbox.languages import _dangers
from emberbox.languages._javascript_names import Scope
from emberbox.languages._shell import argument_rules, shell_rules
from emberbox.languages._tree import Source, walk
from emberbox.languages.spec import Hit

if TYPE_CHECKING:
    from tree_sitter import Node

DANGERS = tuple(
    _dangers.danger("javascript", topic)
    for topic in ("wipe", "fork-bomb", "network-exec", "crypto-miner", "credentials")
)

_DEPTH = 12
_DELETES = re.compile(
    r"module:fs(?:-extra|/promises|\.promises)?\.(?:rm|rmdir|rmSync|rmdirSync|remove|removeSync|emptyDir)"
)
_FILES = re.compile(r"module:fs(?:/promises|\.promises)?\.(\w+)")
_DELETING = frozenset({"rm", "rmSync", "rmdir", "rmdirSync", "unlink", "unlinkSync"})
_TWO_PATHS = re.compile(r"(?:copyFile|rename|link|symlink|cp)(?:Sync)?")
_STARTS = re.compile(r"module:(?:child_process\.(?:\w+)|cluster\.fork)")
_SHELL_TEXT = re.compile(r"module:child_process\.(?:exec|execSync)")
_LISTS = re.compile(r"module:child_process\.(?:spawn|spawnSync|execFile|execFileSync)")
_HOMES = frozenset({"module:os.homedir", "process.env.HOME"})
_JOINING = frozenset({"module:path.join", "module:path.resolve", "module:path.posix.join"})
_FETCHERS = re.compile(
    r"(?:await\s+)?(?:globalThis\.|window\.)?fetch|axios(?:\.\w+)?|got(?:\.\w+)?|https?\.(?:get|request)"
)
_EVALUATES = re.compile(r"eval|Function|module:vm\.run\w+|module:vm\.Script|module:vm\.compileFunction")
_QUIET = frozenset({"includes", "startsWith", "endsWith", "replace", "split", "test", "match", "indexOf", "push"})
_LOOK = 150  # nodes of an expression that are looked at for where its value comes from
_SHORT = 200  # bytes of the longest name of a function


class Dangers:
    """The dangerous patterns of one source text."""

    def __init__(self, source: Source, scope: Scope) -> None:
        self._source = source
        self._scope = scope
        self._assigned: dict[str, Node] = {}
        self._fetched: set[str] = set()
        fetches = _FETCHERS.search(source.code) is not None
        for left, right in scope.assignments:
            if left.type == "identifier":
                self._assigned[source.text(left)] = right
                if fetches and self._comes_from_network(right):
                    self._fetched.add(source.text(left))

    def find(self) -> Iterator[Hit]:
        """All of them, in no order."""
        for node in self._scope.nodes:
            if node.type in {"call_expression", "new_expression"}:
                yield from self._call(node)
            elif node.type in {"while_statement", "for_statement", "do_statement"} and self._forks_forever(node):
                yield _hit("fork-bomb", node)
            elif node.type in {"variable_declarator", "pair", "array"}:
                for child in node.named_children:
                    text = self._scope.constant(child) if child.type in {"string", "template_string"} else None
                    if text and "stratum" in text and _dangers.is_miner(text):
                        yield _hit("crypto-miner", child)

    def _call(self, node: Node) -> Iterator[Hit]:
        function = node.child_by_field_name("function") or node.child_by_field_name("constructor")
        arguments = node.child_by_field_name("arguments")
        if function is None or arguments is None:
            return
        given = [child for child in arguments.named_children if child.type != "comment"]
        path = self._scope.path(function) or ""
        if (_EVALUATES.fullmatch(path) and any(map(self._comes_from_network, given))) or self._then_evaluates(
            function, given
        ):
            yield _hit("network-exec", node)
        if _DELETES.fullmatch(path) and given and _dangers.is_everything(self.text(given[0]) or ""):
            yield _hit("wipe", node)
        yield from self._files(node, path, given)
        owner, method = self._named(function)
        if owner == "console" or method in _QUIET:
            return
        yield from self._shell(node, path, given)
        for argument in given:
            for part in argument.named_children if argument.type == "array" else [argument]:
                text = self.text(part)
                if text and _dangers.is_credential(text):
                    yield _hit("credentials", part)
                elif text and _dangers.is_miner(text):
                    yield _hit("crypto-miner", part)

    def _files(self, node: Node, path: str, given: list[Node]) -> Iterator[Hit]:
        """Calls of `fs` that delete, or whose path is known and outside of the folders to work in."""
        called = _FILES.fullmatch(path)
        if called is None:
            return
        if called[1] in _DELETING:
            yield Hit("javascript.fs", node.start_byte, node.end_byte, f"`{called[1]}` deletes")
        named = given[: 2 if _TWO_PATHS.fullmatch(called[1]) else 1]
        paths = [text for text in map(self.text, named) if text is not None and "/" in text]
        outside = [text for text in paths if not _dangers.is_in_work_folders(text)]
        if outside:
            where = f"`{outside[0]:.80}` is outside of the folders to work in"
            yield Hit("javascript.fs", node.start_byte, node.end_byte, where)

    def _named(self, function: Node) -> tuple[str, str]:
        """The plain object and the property that a call names; empty for what is none."""
        if function.type != "member_expression":
            return "", ""
        owner, name = function.child_by_field_name("object"), function.child_by_field_name("property")
        plain = owner is not None and owner.type == "identifier"
        return (
            self._source.text(owner) if owner is not None and plain else "",
            "" if name is None else self._source.text(name),
        )

    def _shell(self, node: Node, path: str, given: list[Node]) -> Iterator[Hit]:
        """Texts and argument lists that a shell, or the system, gets."""
        rules: Iterator[str] = iter(())
        if _SHELL_TEXT.fullmatch(path) and given:
            rules = shell_rules(self.text(given[0]) or "")
        elif _LISTS.fullmatch(path) and given:
            words = [self.text(given[0])]
            if len(given) > 1 and given[1].type == "array":
                words += [self.text(child) for child in given[1].named_children]
            rules = argument_rules(words)
        for rule in rules:
            yield Hit(rule, node.start_byte, node.end_byte, "in the argument of `child_process`")

    def _then_evaluates(self, function: Node, given: list[Node]) -> bool:
        """`fetch(…).then(eval)`, `fetch(…).then(code => eval(code))`"""
        if self._named(function)[1] != "then" or not self._comes_from_network(function):
            return False
        called = [
            inner.child_by_field_name("function") or inner.child_by_field_name("constructor")
            for argument in given
            for inner in islice(walk(argument), _LOOK)
            if inner.type in {"call_expression", "new_expression"}
        ]
        return any(_EVALUATES.fullmatch(self._scope.path(one) or "") for one in [*given, *called])

    def _forks_forever(self, loop: Node) -> bool:
        condition, body = loop.child_by_field_name("condition"), loop.child_by_field_name("body")
        words = "" if condition is None else self._source.text(condition).strip("(); ")
        if body is None or words not in {"", "true", "1"} or (loop.type != "for_statement" and not words):
            return False
        return any(
            inner.type == "call_expression"
            and _STARTS.fullmatch(self._scope.path(inner.child_by_field_name("function")) or "")
            for inner in walk(body)
        )

    def _comes_from_network(self, node: Node) -> bool:
        for inner in islice(walk(node), _LOOK):
            if inner.type == "call_expression":
                function = inner.child_by_field_name("function")
                path = self._scope.path(function) or ""
                short = function is not None and function.end_byte - function.start_byte <= _SHORT
                name = path.removeprefix("module:") or (self._source.text(function) if function and short else "")
                if _FETCHERS.fullmatch(name):
                    return True
            if inner.type == "identifier" and self._source.text(inner) in self._fetched:
                return True
        return False

    # --- texts ------------------------------------------------------------------------------------------------------

    def text(self, node: Node | None, depth: int = 0) -> str | None:  # noqa: PLR0911 - one per kind of node
        """The text that an expression has, home directories as `~`, joined paths joined."""
        if node is None or depth > _DEPTH:
            return None
        known = self._scope.constant(node)
        if known is not None:
            return known
        path = self._scope.path(node)
        if path in _HOMES:
            return "~"
        match node.type:
            case "identifier":
                return self.text(self._assigned.get(self._source.text(node)), depth + 1)
            case "call_expression":
                called = self._scope.path(node.child_by_field_name("function"))
                arguments = node.child_by_field_name("arguments")
                if called in _HOMES:
                    return "~"
                if called in _JOINING and arguments is not None:
                    return self._joined(arguments.named_children, depth + 1)
                return None
            case "binary_expression":
                left = self.text(node.child_by_field_name("left"), depth + 1)
                right = self.text(node.child_by_field_name("right"), depth + 1)
                return None if left is None or right is None else left + right
            case "template_string":
                return self._interpolated(node, depth + 1)
            case "parenthesized_expression" if node.named_child_count == 1:
                return self.text(node.named_children[0], depth + 1)
            case _:
                return None

    def _joined(self, nodes: list[Node], depth: int) -> str | None:
        whole = ""
        for node in nodes:
            part = self.text(node, depth)
            if part is None:
                return None
            whole = f"{whole.rstrip('/')}/{part.lstrip('/')}" if whole else part
        return whole or None

    def _interpolated(self, node: Node, depth: int) -> str | None:
        parts: list[str] = []
        for child in node.named_children:
            if child.type == "string_fragment":
                parts.append(self._source.text(child))
            elif child.type == "template_substitution" and child.named_children:
                part = self.text(child.named_children[0], depth)
                if part is None:
                    return None
                parts.append(part)
        return "".join(parts)


def _hit(topic: str, node: Node) -> Hit:
    return Hit(f"javascript.{topic}", node.start_byte, node.end_byte)
