"""Rust: restrictions are resolved through `use` declarations, also inside macro calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from emberbox.languages._rust_dangers import DANGERS, dangers
from emberbox.languages._tree import Source, walk
from emberbox.languages.spec import Hit, LanguageSpec, Restriction
from emberbox.models import LanguageConfig

if TYPE_CHECKING:
    from tree_sitter import Node

RESTRICTIONS = (
    Restriction("rust.unsafe", "has `unsafe` code", "the compiler's guarantees end there"),
    Restriction("rust.process", "starts other programs with `std::process`", "code should not leave its language"),
    Restriction("rust.fs-remove", "deletes files with `std::fs`", "deleted files are gone for the steps that follow"),
)

CONFIG = LanguageConfig(
    name="rust",
    aliases=("rs",),
    file_extension=".rs",
    run_command=("rustc",),  # compiles; the guest then runs the program
    timeout_multiplier=3.0,
    restrictions=tuple(rule.id for rule in RESTRICTIONS),
)

_REMOVERS = frozenset({"remove_file", "remove_dir", "remove_dir_all"})
_LIBRARIES = frozenset({"std", "tokio", "async_std", "smol", "fs_err", "async_process"})
# These end or describe the program itself and start nothing.
_HARMLESS = frozenset({"exit", "abort", "id", "ExitCode", "Termination", "ExitStatus", "Output", "Stdio"})
_PATHS = frozenset({"scoped_identifier", "scoped_type_identifier"})
_NAMES = frozenset({"identifier", "type_identifier", "self", "super", "crate"})
_DEPTH = 64


def _rule(path: tuple[str, ...]) -> str | None:
    if len(path) < 3 or path[0] not in _LIBRARIES:
        return None
    if path[1] == "process" and path[2] not in _HARMLESS:
        return "rust.process"
    if path[1] == "fs" and path[2] in _REMOVERS:
        return "rust.fs-remove"
    return None


class _Names:
    """What the names in a source text mean, by its `use` declarations (all scopes taken together).

    Args:
        source: the code.
        matters: whether a path is of interest; decides what a wildcard import brings in.
    """

    def __init__(self, source: Source, matters: Callable[[tuple[str, ...]], object]) -> None:
        self._source = source
        self._matters = matters
        self.aliases: dict[str, tuple[str, ...]] = {}
        self.wildcards: list[tuple[str, ...]] = []
        self.imported: list[tuple[Node, tuple[str, ...]]] = []

    def use(self, node: Node | None, prefix: tuple[str, ...] = (), depth: int = 0) -> None:
        """Takes in the tree of one `use` declaration."""
        if node is None or depth > _DEPTH:
            return
        match node.type:
            case "scoped_use_list":
                inner = prefix + self.written(node.child_by_field_name("path"))
                self.use(node.child_by_field_name("list"), inner, depth + 1)
            case "use_list":
                for child in node.named_children:
                    self.use(child, prefix, depth + 1)
            case "use_as_clause":
                alias = node.child_by_field_name("alias")
                path = prefix + self.written(node.child_by_field_name("path"))
                self._add(node, path, None if alias is None else self._source.text(alias))
            case "use_wildcard":
                path = prefix + (self.written(node.named_children[0]) if node.named_children else ())
                self.wildcards.append(self.resolve(path))
                self.imported.append((node, (*self.resolve(path), "*")))
            case "line_comment" | "block_comment":
                pass
            case _:
                self._add(node, prefix + self.written(node), None)

    def _add(self, node: Node, path: tuple[str, ...], alias: str | None) -> None:
        if path and path[-1] == "self":
            path = path[:-1]
        if not path:
            return
        meaning = self.resolve(path)
        name = alias or path[-1]
        if (name,) != meaning:
            self.aliases[name] = meaning
        self.imported.append((node, meaning))

    def written(self, node: Node | None) -> tuple[str, ...]:
        """The segments of a path as they stand in the text."""
        parts: list[str] = []
        while node is not None and node.type in _PATHS:
            name = node.child_by_field_name("name")
            if name is not None:
                parts.append(_plain(self._source.text(name)))
            node = node.child_by_field_name("path")
        if node is not None and node.type in _NAMES:
            parts.append(_plain(self._source.text(node)))
        return tuple(reversed(parts))

    def resolve(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """The full path that a written one means."""
        for _ in range(4):
            if not path or path[0] not in self.aliases:
                break
            path = (*self.aliases[path[0]], *path[1:])
        if path and path[0] not in _LIBRARIES:
            candidates = ((*module, *path) for module in self.wildcards)
            return next((full for full in candidates if self._matters(full)), path)
        return path


def _plain(segment: str) -> str:
    return segment.removeprefix("r#")


def _read(source: Source, names: _Names, nodes: list[Node]) -> set[int]:
    """Takes in all declarations; the ids of their nodes, which are no uses."""
    declared: set[int] = set()
    for node in nodes:
        if node.type == "use_declaration":
            names.use(node.child_by_field_name("argument"))
            declared.update(inner.id for inner in walk(node))
        elif node.type == "extern_crate_declaration":
            name, alias = node.child_by_field_name("name"), node.child_by_field_name("alias")
            if name is not None and alias is not None:
                names.aliases[source.text(alias)] = (source.text(name),)
            declared.update(inner.id for inner in walk(node))
    return declared


def used_paths(source: Source, matters: Callable[[tuple[str, ...]], object]) -> Iterator[tuple[Node, str]]:
    """(node, full path) of everything that the code imports or names by a path."""
    names = _Names(source, matters)
    nodes = list(walk(source.root))
    inside = _read(source, names, nodes)
    for node, path in names.imported:
        yield node, "::".join(path)
    for node in nodes:
        for place, written in _written_paths(names, node, inside):
            yield place, "::".join(names.resolve(written))


def _check(source: Source) -> Iterator[Hit]:
    names = _Names(source, _rule)
    nodes = list(walk(source.root))
    inside = _read(source, names, nodes)
    imported: set[tuple[str, ...]] = set()
    for node, path in names.imported:
        rule = "rust.process" if path[1:] == ("process", "*") else _rule(path)
        if rule is not None:
            imported.add(path)
            yield Hit(rule, node.start_byte, node.end_byte, f"`{'::'.join(path)}`")
    for node in nodes:
        yield from _unsafe(node)
        yield from dangers(source, node, lambda function: names.resolve(names.written(function)))
        for place, written in _written_paths(names, node, inside):
            path = names.resolve(written)
            rule = _rule(path)
            # Where the import of the very thing is a finding, its uses would only repeat it.
            if rule is not None and path[:3] not in imported:
                yield Hit(rule, place.start_byte, place.end_byte, f"`{'::'.join(path)}`")


def _unsafe(node: Node) -> Iterator[Hit]:
    if node.type == "token_tree":
        for word in node.children:
            if word.type == "unsafe":
                yield Hit("rust.unsafe", word.start_byte, word.end_byte)
    elif node.type not in {"function_type", "function_modifiers"}:  # `type F = unsafe fn()` only names a type
        for child in node.children:
            for token in child.children if child.type == "function_modifiers" else [child]:
                if token.type == "unsafe":
                    yield Hit("rust.unsafe", token.start_byte, token.end_byte)


def _written_paths(names: _Names, node: Node, inside: set[int]) -> Iterator[tuple[Node, tuple[str, ...]]]:
    """The outermost paths at a node; in a macro's token tree they are runs of `a :: b :: c`."""
    if node.id in inside:
        if node.type in _PATHS:
            _enter(node, inside)
        return
    if node.type in _PATHS:
        _enter(node, inside)
        yield node, names.written(node)
    elif node.type in {"identifier", "type_identifier"}:
        if node.text is not None and (names.wildcards or node.text.decode("utf-8", "replace") in names.aliases):
            yield node, names.written(node)
    elif node.type == "token_tree":
        yield from _token_paths(node)


def _enter(node: Node, inside: set[int]) -> None:
    for field in ("path", "name"):
        child = node.child_by_field_name(field)
        if child is not None:
            inside.add(child.id)


def _token_paths(tree: Node) -> Iterator[tuple[Node, tuple[str, ...]]]:
    run: list[Node] = []
    joined = False
    for child in tree.children:
        if child.type == "::":
            joined = bool(run)
            continue
        if child.type in _NAMES and (joined or not run):
            run.append(child)
        else:
            if len(run) > 1:
                yield run[0], tuple((part.text or b"").decode("utf-8", "replace") for part in run)
            run = [child] if child.type in _NAMES else []
        joined = False
    if len(run) > 1:
        yield run[0], tuple((part.text or b"").decode("utf-8", "replace") for part in run)


SPEC = LanguageSpec(CONFIG, RESTRICTIONS, DANGERS, "tree_sitter_rust", _check)
