"""Rust: which `use` declarations of std a program forgot, and how they are added.

Only what stands in the crate's own namespace is looked at: an inline `mod` is a namespace of its own, and what is
declared in front of the crate's items does not reach into it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from emberbox.languages import LANGUAGES

if TYPE_CHECKING:
    from tree_sitter import Node

    from emberbox.languages._tree import Source

_SPEC = LANGUAGES["rust"]


class _Use(NamedTuple):
    """`X::member`, `X<…>`, `dyn X` or `impl X for`, `receiver.method(…)` of a trait X, and X alone as a type."""

    how: Literal["path", "generic", "dyn", "method", "type"]
    member: str = ""


_Uses = Collection[_Use]


def _any(uses: _Uses) -> bool:
    return bool(uses)


def _path(uses: _Uses) -> bool:
    """A module: it is nothing else than the beginning of paths."""
    return {use.how for use in uses} == {"path"}


def _members(pattern: str, *hows: str) -> Callable[[_Uses], bool]:
    """That members of it are such ones, and that all other uses are these."""

    def judge(uses: _Uses) -> bool:
        return bool(uses) and all(
            re.fullmatch(pattern, use.member) is not None if use.how == "path" else use.how in hows for use in uses
        )

    return judge


def _method(uses: _Uses) -> bool:
    """A trait of which methods are called. Its bare name alone may be that of another trait."""
    return any(use.how == "method" for use in uses)


_TABLE: dict[str, tuple[str, Callable[[_Uses], bool]]] = {
    name: (f"{module}::{name}", judge)
    for module, judge, names in (
        ("std::borrow", _any, "Cow"),
        ("std::cell", _any, "RefCell"),
        ("std::cell", _members("new|from|default", "generic"), "Cell"),
        ("std::cmp", _members("Less|Equal|Greater", "type"), "Ordering"),
        ("std::collections", _any, "HashMap HashSet BTreeMap BTreeSet VecDeque BinaryHeap"),
        ("std::error", _members("(?!)", "dyn"), "Error"),
        ("std::io", _any, "BufReader BufWriter"),
        ("std::io", _method, "Read Write BufRead"),
        ("std::marker", _any, "PhantomData"),
        ("std::path", _any, "Path PathBuf"),
        ("std::rc", _any, "Rc"),
        ("std::str", _any, "FromStr"),
        ("std::sync", _any, "Arc Mutex RwLock"),
        ("std::sync", _path, "mpsc"),
        ("std::time", _any, "Duration Instant SystemTime"),
        ("std", _path, "cmp collections env fmt fs io iter mem process thread"),
    )
    for name in names.split()
}
NAMES = frozenset(_TABLE)
"""Every name that something may be added for."""

_METHODS = {
    "lines": "BufRead",
    "read_line": "BufRead",
    "read_to_end": "Read",
    "read_to_string": "Read",
    "read_exact": "Read",
    "flush": "Write",
    "write_all": "Write",
}
# `stdin().read_line(…)` and `"…".lines()` need no trait; these do.
_BUFFERED = re.compile(r".*\bstdin(?:\(\s*\))?\s*\.\s*lock\(\s*\)|(?:(?:std::)?io::)?BufReader::\w+\(.*\)", re.DOTALL)
_RECEIVER = 300
"""Bytes of an expression that is still looked at as text."""

_SCOPES = frozenset({"source_file", "block", "declaration_list"})
_DECLARED_ONCE = frozenset({"struct", "enum", "union", "trait", "type", "mod", "fn"})
_ITEMS = frozenset(
    {"struct_item", "enum_item", "union_item", "trait_item", "type_item", "associated_type", "mod_item", "const_item"}
    | {"static_item"}
)
_SIZES = ("8", "16", "32", "64", "128", "size")
_PRIMITIVES = frozenset({"bool", "char", "f32", "f64", *(f"{sign}{size}" for sign in "iu" for size in _SIZES)})
_SCOPED = frozenset({"scoped_identifier", "scoped_type_identifier"})
_FUNCTIONS = frozenset({"function_item", "function_signature_item"})


# --- what is missing --------------------------------------------------------------------------------------------------


def find(code: str) -> dict[str, str]:
    """The declarations that are missing, each with the name that it is for, in the order of their first use."""
    words = set(re.findall(r"\w+", code))
    if words.isdisjoint(NAMES | _METHODS.keys() | {"from_str"}):
        return {}
    source = _SPEC.source(code)
    if source.root.has_error:
        return {}
    program = _Program(source)
    if program.opaque:
        return {}
    uses = program.undeclared_uses()
    if any(word.startswith(("Atomic", "atomic")) for word in words):
        uses.pop("Ordering", None)  # there are two of them
    return {f"use {_TABLE[name][0]}": name for name, places in uses.items() if _TABLE[name][1](places)}


class _Program:
    """The names of a program.

    Args:
        source: the code.

    Attributes:
        opaque: whether a wildcard brings in names that cannot be known.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._declared: defaultdict[int, set[str]] = defaultdict(set)
        self._values: dict[str, Node] = {}
        self._functions: set[str] = set()
        self.opaque = False
        stack = [(source.root, source.root)]
        while stack:
            node, scope = stack.pop()
            self._collect(node, scope)
            if node.type in _SCOPES:
                scope = node
            if not _is_module(node):
                stack.extend((child, scope) for child in node.named_children)

    def _collect(self, node: Node, scope: Node) -> None:
        names = self._declared[scope.id]
        if node.type == "use_declaration":
            for path, name in self._imported(node.child_by_field_name("argument")):
                self._import(path, name, names)
        elif node.type == "extern_crate_declaration":
            names.add(self._field(node, "alias") or self._field(node, "name"))
        elif node.type in _ITEMS:
            names.add(self._field(node, "name"))
        elif node.type in _FUNCTIONS:
            self._functions.add(self._field(node, "name"))
        elif node.type == "let_declaration":
            value = node.child_by_field_name("value")
            if value is not None:
                self._values[self._field(node, "pattern").removeprefix("mut ").strip()] = value
        elif node.type == "token_tree":
            self._declared[self._source.root.id].update(self._declared_in(node))
        parameters = node.child_by_field_name("type_parameters")
        for child in [] if parameters is None else parameters.named_children:
            self._declared[node.id].add(self._field(child, "name"))

    def _field(self, node: Node, name: str) -> str:
        child = node.child_by_field_name(name)
        return "" if child is None else self._source.text(child)

    # --- declarations -----------------------------------------------------------------------------------------------

    def _imported(self, argument: Node | None) -> Iterator[tuple[str, str]]:
        """(path, name in this program) of everything that a `use` brings in; `*` is the name of a wildcard."""
        stack = [] if argument is None else [(argument, "")]
        while stack:
            node, prefix = stack.pop()
            path = prefix + "".join(self._field(node, "path").split())
            if node.type == "scoped_use_list":
                stack.extend((child, f"{path}::" if path else prefix) for child in _present(node, "list"))
            elif node.type == "use_list":
                stack.extend((child, prefix) for child in node.named_children)
            elif node.type == "use_as_clause":
                yield path, self._field(node, "alias")
            elif node.type == "use_wildcard":
                yield prefix + "".join(self._source.text(node).removesuffix("*").split()).removesuffix("::"), "*"
            elif node.type == "self":
                yield prefix.removesuffix("::"), prefix.removesuffix("::").rpartition("::")[2]
            else:
                path = prefix + "".join(self._source.text(node).split())
                yield path, path.rpartition("::")[2]

    def _import(self, path: str, name: str, names: set[str]) -> None:
        path = path.removeprefix("::")
        if name != "*":
            names.add(name)
            if path in {"std::io::Read", "std::io::Write", "std::io::BufRead"}:
                names.add(path.rpartition("::")[2])  # `as _` and other names: its methods are there
        elif path == "std::io::prelude":
            names.update({"Read", "Write", "BufRead"})
        elif path == "std" or path.startswith("std::"):
            names.update(known for known, (full, _) in _TABLE.items() if full == f"{path}::{known}")
        else:
            self.opaque = True

    def _declared_in(self, tree: Node) -> Iterator[str]:
        """What a macro may declare: all that a `use` in it names, and what follows `struct` and its like."""
        before, using = "", False
        for token in tree.children:
            using = using or token.type == "use"
            if token.type == "identifier" and (using or before in _DECLARED_ONCE):
                yield self._source.text(token)
            before = token.type

    # --- uses -------------------------------------------------------------------------------------------------------

    def undeclared_uses(self) -> dict[str, list[_Use]]:
        """The uses of each name of the table where nothing declares it."""
        uses: defaultdict[str, list[_Use]] = defaultdict(list)
        root = self._source.root
        stack = [(root, root, frozenset[str]())]
        while stack:
            node, parent, known = stack.pop()
            known |= NAMES & self._declared.get(node.id, set())
            for name, use in self._uses_at(node, parent):
                if name in NAMES and name not in known:
                    uses[name].append(use)
            if not _is_module(node) and node.type not in {"use_declaration", "macro_definition"}:
                stack.extend((child, node, known) for child in reversed(node.named_children))
        return dict(uses)

    def _uses_at(self, node: Node, parent: Node) -> Iterator[tuple[str, _Use]]:
        if node.type in _SCOPED:
            path, member = node.child_by_field_name("path"), self._field(node, "name")
            name = "" if path is None or path.type in _SCOPED else self._source.text(path)
            yield name, _Use("path", member)
            if member == "from_str" and name in _PRIMITIVES:
                yield "FromStr", _Use("method", member)
        elif node.type == "type_identifier":
            how = _how(node, parent)
            if how is not None:
                yield self._source.text(node), _Use(how)
        elif node.type == "token_tree":
            yield from self._paths_of_tokens(node)
        elif node.type == "call_expression":
            yield from self._method(node)

    def _paths_of_tokens(self, tree: Node) -> Iterator[tuple[str, _Use]]:
        """`X::member` in the arguments of a macro, which are tokens and no tree."""
        tokens = tree.children
        for index in range(len(tokens) - 2):
            joined = index > 0 and tokens[index - 1].type in {"::", "."}
            if tokens[index].type == "identifier" and tokens[index + 1].type == "::" and not joined:
                yield self._source.text(tokens[index]), _Use("path", self._source.text(tokens[index + 2]))

    def _method(self, call: Node) -> Iterator[tuple[str, _Use]]:
        function = call.child_by_field_name("function")
        receiver = None if function is None else function.child_by_field_name("value")
        if function is None or receiver is None or function.type != "field_expression":
            return
        method = self._field(function, "field")
        trait = _METHODS.get(method)
        if trait is None or method in self._functions:
            return
        if trait != "BufRead" or self._is_buffered(receiver):
            yield trait, _Use("method", method)

    def _is_buffered(self, receiver: Node) -> bool:
        if receiver.type == "identifier":
            receiver = self._values.get(self._source.text(receiver), receiver)
        if receiver.end_byte - receiver.start_byte > _RECEIVER:
            return False
        return _BUFFERED.fullmatch(self._source.text(receiver)) is not None


def _is_module(node: Node) -> bool:
    return node.type == "mod_item" and node.child_by_field_name("body") is not None


def _present(node: Node, field: str) -> list[Node]:
    child = node.child_by_field_name(field)
    return [] if child is None else [child]


def _how(node: Node, parent: Node) -> Literal["generic", "dyn", "type"] | None:
    """How a type's name is used; None where it is declared there, or is a later part of a path."""
    if parent.type != "struct_expression" and parent.child_by_field_name("name") == node:
        return None
    if parent.child_by_field_name("trait") == node:
        return "dyn"
    return "generic" if parent.type in {"generic_type", "generic_type_with_turbofish"} else "type"


# --- adding it --------------------------------------------------------------------------------------------------------


def add(code: str, statements: Collection[str]) -> str:
    """The code with these declarations in front of its first item, on the same line."""
    source = _SPEC.source(code)
    place = next((node.start_byte for node in source.root.named_children if not _stays_in_front(source, node)), 0)
    characters = len(source.bytes[:place].decode("utf-8", "replace"))
    return code[:characters] + "".join(f"{statement}; " for statement in statements) + code[characters:]


def _stays_in_front(source: Source, node: Node) -> bool:
    """Whether it belongs to the crate as a whole, or to nothing; an item's own documentation stays with the item."""
    if node.type in {"line_comment", "block_comment"}:
        return node.child_by_field_name("outer") is None
    return node.type in {"shebang", "inner_attribute_item"} or source.text(node) == ";"
