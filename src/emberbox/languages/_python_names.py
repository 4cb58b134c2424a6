"""What names in Python code mean: imports, aliases, `getattr`, `__builtins__[...]`, constant strings.

The analysis follows names through the whole text, without scopes or flow: good enough to see through aliases, cheap
enough to run on every block. What it cannot decide has no meaning (None).
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from emberbox.languages._tree import Source, walk

if TYPE_CHECKING:
    from tree_sitter import Node

_BUILTINS = frozenset(name for name in dir(builtins) if name not in {"True", "False", "None", "Ellipsis"}) | {
    "__builtins__"
}
_DEPTH = 64  # nesting of one expression that is still looked through
_ROUNDS = 4  # how many aliases of aliases are followed
_LONGEST_NAME = 500  # characters of a dotted name that may mean something
_CLIMB = 32  # how far up a parameter of the same name is looked for
_FUNCTIONS = frozenset({"function_definition", "lambda"})
_REFERRING = frozenset({"identifier", "attribute", "call", "subscript", "parenthesized_expression"})


def _owners(node: Node) -> list[Node]:
    """The parts of a reference that have no meaning of their own once the whole has one."""
    if node.type == "parenthesized_expression":
        return list(node.named_children)
    found = (node.child_by_field_name(name) for name in ("object", "value", "function"))
    return [child for child in found if child is not None]


class Scope:
    """The names of one source text.

    Args:
        source: the code.
        restricted: whether a dotted name matters; decides what a wildcard import brings in.

    Attributes:
        imports: (node, dotted name) of everything that an import statement names.
        nodes: all nodes, in the order of the text.
        assignments: (name, value) of every assignment to a plain name.
    """

    def __init__(self, source: Source, restricted: Callable[[str], object]) -> None:
        self._source = source
        self._restricted = restricted
        self.imports: list[tuple[Node, str]] = []
        self._aliases: dict[str, str] = {}
        self._constants: dict[str, str | None] = {}
        self._wildcards: list[str] = []
        self._shadowed: set[str] = set()
        self._not_loaded: set[int] = set()
        self._parameter_names: set[str] = set()
        self._known: dict[int, str | None] = {}
        self.nodes = list(walk(source.root))
        self.assignments: list[tuple[Node, Node]] = []
        for node in self.nodes:
            self._collect(node, self.assignments)
        self._follow(self.assignments)

    # --- collection -------------------------------------------------------------------------------------------------

    def _collect(self, node: Node, assignments: list[tuple[Node, Node]]) -> None:
        match node.type:
            case "import_statement" | "import_from_statement":
                self._import(node)
            case "assignment" | "named_expression":
                left = node.child_by_field_name("left") or node.child_by_field_name("name")
                right = node.child_by_field_name("right") or node.child_by_field_name("value")
                if left is not None and left.type == "identifier":
                    self._not_loaded.add(left.id)
                    if right is not None:
                        assignments.append((left, right))
            case "attribute":
                self._mark(node.child_by_field_name("attribute"))
            case "keyword_argument" | "class_definition":
                self._mark(node.child_by_field_name("name"))
            case "function_definition":
                name = node.child_by_field_name("name")
                self._mark(name)
                if name is not None and node.parent is not None and node.parent.type == "module":
                    self._shadowed.add(self._source.text(name))
            case "parameters" | "lambda_parameters":
                self._parameters(node)
            case _:
                pass

    def _mark(self, node: Node | None) -> None:
        if node is not None:
            self._not_loaded.add(node.id)

    def _parameters(self, node: Node) -> None:
        for child in node.named_children:
            target: Node | None = child
            if child.type in {"default_parameter", "typed_default_parameter"}:
                target = child.child_by_field_name("name")
            elif child.type in {"typed_parameter", "list_splat_pattern", "dictionary_splat_pattern"}:
                target = child.named_children[0] if child.named_children else None
            self._mark(target)
            if target is not None:
                self._parameter_names.add(self._source.text(target))

    def _import(self, node: Node) -> None:
        for inner in walk(node):
            self._not_loaded.add(inner.id)
        module = node.child_by_field_name("module_name")
        prefix = "" if module is None else self._source.text(module)
        for child in node.named_children:
            if child.type == "wildcard_import":
                self._wildcards.append(prefix)
                self.imports.append((node, prefix))
            elif (module is None or child.id != module.id) and child.type in {"dotted_name", "aliased_import"}:
                self._imported(node, child, prefix)

    def _imported(self, statement: Node, child: Node, prefix: str) -> None:
        name, alias = child, None
        if child.type == "aliased_import":
            named = child.child_by_field_name("name")
            alias = child.child_by_field_name("alias")
            if named is None:
                return
            name = named
        target = self._source.text(name)
        path = f"{prefix}.{target}" if prefix else target
        self.imports.append((statement, path))
        if alias is not None:
            self._aliases[self._source.text(alias)] = path
        elif prefix:
            self._aliases[target] = path
        else:
            head = target.partition(".")[0]
            self._aliases[head] = head

    def _follow(self, assignments: list[tuple[Node, Node]]) -> None:
        for left, right in assignments:
            name = self._source.text(left)
            value = self.constant(right)
            if name in self._constants and self._constants[name] != value:
                value = None  # assigned more than once: unknown
            self._constants[name] = value
        for _ in range(_ROUNDS):
            before = len(self._aliases)
            for left, right in assignments:
                name = self._source.text(left)
                path = self.path(right)
                if path is not None and name not in self._aliases and path != f"builtins.{name}":
                    self._aliases[name] = path
            if len(self._aliases) == before:
                break
        for left, right in assignments:
            name = self._source.text(left)
            if name in _BUILTINS and self.path(right) is None:
                self._shadowed.add(name)

    # --- meaning ----------------------------------------------------------------------------------------------------

    def references(self) -> Iterator[tuple[Node, str]]:
        """(node, dotted name) of the outermost expressions whose meaning is known, in the order of the text."""
        inside: set[int] = set()
        for node in reversed(self.nodes):  # inner ones first: each is looked at once, however long the chain
            if node.type in _REFERRING:
                self._known[node.id] = self.path(node)
        for node in self.nodes:
            if node.type not in _REFERRING or node.id in self._not_loaded:
                continue
            path = self.path(node)
            if node.id in inside or path is not None:
                inside.update(child.id for child in _owners(node))
            if node.id in inside or path is None or (node.type == "identifier" and self._is_parameter(node)):
                continue
            yield node, path

    def _is_parameter(self, node: Node) -> bool:
        name = self._source.text(node)
        if name not in _BUILTINS or name not in self._parameter_names:
            return False
        outer = node.parent
        for _ in range(_CLIMB):
            if outer is None:
                break
            if outer.type in _FUNCTIONS:
                parameters = outer.child_by_field_name("parameters")
                if parameters is not None and any(
                    inner.id in self._not_loaded and self._source.text(inner) == name for inner in walk(parameters)
                ):
                    return True
            outer = outer.parent
        return False

    def path(self, node: Node | None, depth: int = 0) -> str | None:  # noqa: PLR0911 - one per kind of node
        """The dotted name that an expression means, such as `os.system`."""
        if node is None or depth > _DEPTH:
            return None
        if node.id in self._known:
            return self._known[node.id]
        match node.type:
            case "identifier":
                return self._name(self._source.text(node))
            case "attribute":
                owner = self.path(node.child_by_field_name("object"), depth + 1)
                attribute = node.child_by_field_name("attribute")
                return self._member(owner, None if attribute is None else self._source.text(attribute))
            case "call":
                return self._call(node, depth + 1)
            case "subscript":
                owner = self.path(node.child_by_field_name("value"), depth + 1)
                return self._member(owner, self.constant(node.child_by_field_name("subscript"), depth + 1))
            case "parenthesized_expression":
                return self.path(node.named_children[0], depth + 1) if node.named_child_count == 1 else None
            case "named_expression":
                return self.path(node.child_by_field_name("value"), depth + 1)
            case _:
                return None

    def _name(self, name: str) -> str | None:
        if name in self._aliases:
            return self._aliases[name]
        if name in self._shadowed:
            return None
        if name == "__builtins__":
            return "builtins"
        if name in _BUILTINS:
            return f"builtins.{name}"
        candidates = (f"{module}.{name}" for module in self._wildcards)
        return next((path for path in candidates if self._restricted(path)), None)

    def _member(self, owner: str | None, name: str | None) -> str | None:
        if owner is None or name is None:
            return None
        if owner == "sys.modules":
            return name
        if owner in {"builtins.globals()", "builtins.locals()", "builtins.vars()"}:
            return self._name(name)
        if name == "__dict__":
            return owner
        return f"{owner}.{name}" if len(owner) + len(name) <= _LONGEST_NAME else None

    def _call(self, node: Node, depth: int) -> str | None:  # noqa: PLR0911 - one per kind of call
        function = self.path(node.child_by_field_name("function"), depth)
        arguments = node.child_by_field_name("arguments")
        if function is None or arguments is None:
            return None
        given = [child for child in arguments.named_children if child.type != "comment"]
        if function in {"builtins.__import__", "importlib.import_module", "importlib.__import__"} and given:
            module = self.constant(given[0], depth)
            return module if module is None or "import_module" in function else module.partition(".")[0]
        if function == "builtins.getattr" and len(given) >= 2:
            return self._member(self.path(given[0], depth), self.constant(given[1], depth))
        if function == "builtins.vars" and given:
            return self.path(given[0], depth)
        if function in {"builtins.globals", "builtins.locals", "builtins.vars"}:
            return f"{function}()"
        owner, _, method = function.rpartition(".")
        if method in {"__getattribute__", "__getitem__", "get"} and given:
            return self._member(owner, self.constant(given[-1 if method == "__getattribute__" else 0], depth))
        return None

    def constant(self, node: Node | None, depth: int = 0) -> str | None:  # noqa: PLR0911 - one per kind of node
        """The text that an expression always has, if that can be read off."""
        if node is None or depth > _DEPTH:
            return None
        match node.type:
            case "string":
                return self._string(node, depth + 1)
            case "concatenated_string":
                return self._join([self.constant(child, depth + 1) for child in node.named_children])
            case "parenthesized_expression" if node.named_child_count == 1:
                return self.constant(node.named_children[0], depth + 1)
            case "binary_operator":
                left = self.constant(node.child_by_field_name("left"), depth + 1)
                right = self.constant(node.child_by_field_name("right"), depth + 1)
                operator = node.child_by_field_name("operator")
                return self._join([left, right]) if operator is not None and operator.type == "+" else None
            case "identifier":
                return self._constants.get(self._source.text(node))
            case "subscript":
                value = self.constant(node.child_by_field_name("value"), depth + 1)
                index = node.child_by_field_name("subscript")
                backwards = index is not None and self._source.text(index).replace(" ", "") == "::-1"
                return value[::-1] if value is not None and backwards else None
            case "call":
                return self._joined_call(node, depth + 1)
            case _:
                return None

    def _string(self, node: Node, depth: int) -> str | None:
        parts: list[str | None] = []
        for child in node.named_children:
            if child.type == "string_content":
                parts.append(self._source.text(child))
            elif child.type == "interpolation":
                parts.append(self.constant(child.child_by_field_name("expression"), depth))
        return self._join(parts)

    def _joined_call(self, node: Node, depth: int) -> str | None:
        """`"".join(["a", "b"])`."""
        function = node.child_by_field_name("function")
        arguments = node.child_by_field_name("arguments")
        if function is None or arguments is None or function.type != "attribute" or arguments.named_child_count != 1:
            return None
        attribute = function.child_by_field_name("attribute")
        separator = self.constant(function.child_by_field_name("object"), depth)
        items = arguments.named_children[0]
        if attribute is None or self._source.text(attribute) != "join" or separator is None:
            return None
        if items.type not in {"list", "tuple"}:
            return None
        parts = [self.constant(child, depth) for child in items.named_children]
        known = [part for part in parts if part is not None]
        return separator.join(known) if len(known) == len(parts) else None

    @staticmethod
    def _join(parts: list[str | None]) -> str | None:
        known = [part for part in parts if part is not None]
        return "".join(known) if len(known) == len(parts) else None
