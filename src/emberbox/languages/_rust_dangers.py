"""Dangerous patterns in Rust code: what calls are given as literals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from emberbox.languages import _dangers
from emberbox.languages._shell import shell_rules
from emberbox.languages._tree import Source
from emberbox.languages.spec import Hit

if TYPE_CHECKING:
    from tree_sitter import Node

DANGERS = tuple(_dangers.danger("rust", topic) for topic in ("wipe", "crypto-miner", "credentials"))

_REMOVES_ALL = frozenset({"remove_dir_all"})
_SHELL_FLAGS = frozenset({"-c", "-lc", "-ec", "/C"})


def dangers(source: Source, node: Node, path_of: Callable[[Node], tuple[str, ...]]) -> Iterator[Hit]:
    """The patterns of one call. `path_of` gives the full path that a called name means."""
    function, arguments = node.child_by_field_name("function"), node.child_by_field_name("arguments")
    if node.type != "call_expression" or function is None or arguments is None:
        return
    texts = [(child, text) for child in arguments.named_children for text in _literals(source, child)]
    path = path_of(function)
    if path and path[-1] in _REMOVES_ALL and any(_dangers.is_everything(text) for _, text in texts):
        yield _hit("wipe", node)
    shell = _before(source, function) in _SHELL_FLAGS or any(text in _SHELL_FLAGS for _, text in texts)
    for child, text in texts:
        if _dangers.is_credential(text) or _dangers.is_credential(f"~/{text}"):
            yield _hit("credentials", child)
        elif _dangers.is_miner(text):
            yield _hit("crypto-miner", child)
        elif shell:
            for rule in shell_rules(text):
                yield Hit(rule, child.start_byte, child.end_byte, "in the argument of a shell")


def _literals(source: Source, node: Node) -> Iterator[str]:
    """The text literals of an argument: `"x"`, `&"x"`, `["-c", "x"]`, `"x".to_string()`."""
    if node.type in {"reference_expression", "array_expression"}:
        for child in node.named_children:
            yield from _literals(source, child)
    elif node.type in {"string_literal", "raw_string_literal"}:
        yield from (source.text(child) for child in node.named_children if child.type == "string_content")


def _before(source: Source, function: Node) -> str | None:
    """The literal of the call before in a chain: `.arg("-c")` before `.arg("…")`."""
    owner = function.child_by_field_name("value") if function.type == "field_expression" else None
    arguments = owner.child_by_field_name("arguments") if owner is not None else None
    if arguments is None or not arguments.named_children:
        return None
    return next(_literals(source, arguments.named_children[-1]), None)


def _hit(topic: str, node: Node) -> Hit:
    return Hit(f"rust.{topic}", node.start_byte, node.end_byte)
