"""What names in JavaScript code mean: globals, aliases, modules, constant strings.

Like its Python twin it follows names through the whole text without scopes or flow. A meaning is the path from a
global name (`eval`, `process.mainModule.require`), or from a module by its name (`module:fs.rmSync`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from emberbox.languages._tree import Source, walk

if TYPE_CHECKING:
    from tree_sitter import Node

_DEPTH = 64
_SHORT = 200  # bytes of the longest name of a function
_ROUNDS = 4
_GLOBAL_OBJECTS = frozenset({"globalThis", "window", "global", "self", "top", "frames"})
_ROOTS = frozenset({"eval", "Function", "require", "module", "process", "setTimeout", "setInterval", "setImmediate"})
_TIMERS = frozenset({"setTimeout", "setInterval", "setImmediate"})
_LOADERS = ("require", "getBuiltinModule", "createRequire()")
_DECLARING = frozenset({"function_declaration", "class_declaration", "generator_function_declaration"})
_STRINGS = frozenset({"string", "template_string"})


class Scope:
    """The names of one source text.

    Args:
        source: the code.
        roots: global names that matter, beside those that always do.

    Attributes:
        modules: (node, module name) of every load of a module whose name can be read off.
        constructions: nodes that call or construct `Function`.
        timers_with_text: `setTimeout("code")` and its like.
        nodes: all nodes, in the order of the text.
        assignments: (target, value) of every declaration and assignment.
    """

    def __init__(self, source: Source, roots: Collection[str] = ()) -> None:
        self._source = source
        self._roots = _ROOTS.union(roots)
        self._aliases: dict[str, str] = {}
        self._constants: dict[str, str | None] = {}
        self._shadowed: set[str] = set()
        self.modules: list[tuple[Node, str]] = []
        self.constructions: list[Node] = []
        self.timers_with_text: list[Node] = []
        self.nodes = list(walk(source.root))
        self.assignments: list[tuple[Node, Node]] = []
        for node in self.nodes:
            self._collect(node, self.assignments)
        self._paths: dict[int, str | None] = {}
        """What is known, once no more aliases are found."""
        self._settled = False
        self._follow(self.assignments)
        self._settled = True
        for node in self.nodes:
            self._judge(node)

    # --- collection -------------------------------------------------------------------------------------------------

    def _collect(self, node: Node, assignments: list[tuple[Node, Node]]) -> None:
        if node.type in {"variable_declarator", "assignment_expression"}:
            left = node.child_by_field_name("name") or node.child_by_field_name("left")
            right = node.child_by_field_name("value") or node.child_by_field_name("right")
            if left is not None and right is not None:
                assignments.append((left, right))
        elif node.type in _DECLARING:
            name = node.child_by_field_name("name")
            if name is not None and node.parent is not None and node.parent.type == "program":
                self._shadowed.add(self._source.text(name))
        elif node.type in {"import_statement", "export_statement"}:
            origin = node.child_by_field_name("source")
            module = self.constant(origin)
            if module is not None:
                self.modules.append((node, module))
                self._imports(node, module)

    def _imports(self, statement: Node, module: str) -> None:
        name = module.removeprefix("node:")
        # What these two export are the globals of the same names.
        prefix = "" if name in {"module", "process"} else f"module:{name}."
        for node in walk(statement):
            if node.type == "import_specifier":
                named = node.child_by_field_name("name")
                alias = node.child_by_field_name("alias") or named
                if named is not None and alias is not None:
                    self._aliases[self._source.text(alias)] = prefix + self._source.text(named)
            elif node.type in {"import_clause", "namespace_import"}:
                for child in node.named_children:
                    if child.type == "identifier" and prefix:
                        self._aliases[self._source.text(child)] = f"module:{name}"

    def _follow(self, assignments: list[tuple[Node, Node]]) -> None:
        for left, right in assignments:
            if left.type == "identifier":
                name = self._source.text(left)
                value = self.constant(right)
                if name in self._constants and self._constants[name] != value:
                    value = None
                self._constants[name] = value
        for _ in range(_ROUNDS):
            before = len(self._aliases)
            for left, right in assignments:
                self._alias(left, self.path(right))
            if len(self._aliases) == before:
                break
        for left, right in assignments:
            if left.type == "identifier" and self.path(right) is None:
                self._shadowed.add(self._source.text(left))

    def _alias(self, left: Node, path: str | None) -> None:
        if path is None:
            return
        if left.type == "identifier":
            name = self._source.text(left)
            if name != path:
                self._aliases.setdefault(name, path)
        elif left.type == "member_expression":
            member = self._property(left)
            owner = self.path(left.child_by_field_name("object"))
            if owner in _GLOBAL_OBJECTS and member is not None and member != path:
                self._aliases.setdefault(member, path)
        elif left.type == "object_pattern":
            for child in left.named_children:
                key = child.child_by_field_name("key")
                value = child.child_by_field_name("value")
                if child.type == "shorthand_property_identifier_pattern":
                    key = value = child
                if key is None or value is None or value.type not in {"identifier", child.type}:
                    continue
                member = self._member(path, self._key(key))
                name = self._source.text(value)
                if member is not None and name != member:
                    self._aliases.setdefault(name, member)

    def _key(self, node: Node) -> str | None:
        if node.type == "computed_property_name":
            return self.constant(node.named_children[0]) if node.named_children else None
        return self.constant(node) if node.type in _STRINGS else self._source.text(node)

    # --- judgement --------------------------------------------------------------------------------------------------

    def _judge(self, node: Node) -> None:
        if node.type not in {"call_expression", "new_expression"}:
            return
        function = node.child_by_field_name("function") or node.child_by_field_name("constructor")
        arguments = node.child_by_field_name("arguments")
        if function is None:
            return
        given = [] if arguments is None else [child for child in arguments.named_children if child.type != "comment"]
        if function.type == "import":
            self._load(node, given)
            return
        path = self.path(function)
        if path is None:
            if self._is_constructor_trick(function, given):
                self.constructions.append(node)
            return
        if path == "Function" or path.startswith("Function.prototype.constructor"):
            self.constructions.append(node)
        elif path in _TIMERS and given and (given[0].type in _STRINGS or self.constant(given[0]) is not None):
            self.timers_with_text.append(node)
        elif path.endswith(_LOADERS):
            self._load(node, given)
        elif path in {"Function.call", "Function.apply", "Function.bind"}:
            self.constructions.append(node)

    def _load(self, node: Node, given: list[Node]) -> None:
        module = self.constant(given[0]) if given else None
        if module is not None:
            self.modules.append((node, module))

    def _is_constructor_trick(self, function: Node, given: list[Node]) -> bool:
        """`(() => {}).constructor("code")` and `[].map.constructor("code")`: `Function` by another way."""
        if function.type not in {"member_expression", "subscript_expression"} or not given:
            return False
        if self._property(function) != "constructor":
            return False
        owner = function.child_by_field_name("object")
        while owner is not None and owner.type == "parenthesized_expression" and owner.named_children:
            owner = owner.named_children[0]
        if owner is None:
            return False
        if owner.type in {"arrow_function", "function_expression"}:
            return True
        return owner.type in {"member_expression", "subscript_expression"} and self._property(owner) == "constructor"

    def uses(self) -> Iterator[tuple[Node, str]]:
        """(node, path) of references to `eval`: calls, and handing it on; not `typeof eval`, not its assignment."""
        for node in self.nodes:
            for value in self._values(node):
                if self.path(value) == "eval":
                    yield value, "eval"

    def _values(self, node: Node) -> list[Node]:
        if node.type == "call_expression":
            function = node.child_by_field_name("function")
            inner = function
            borrowed = function is not None and function.type == "member_expression"
            if function is not None and borrowed and self._property(function) in {"call", "apply", "bind"}:
                inner = function.child_by_field_name("object")  # eval.call(null, …)
            return [] if inner is None else [inner]
        if node.type in {"arguments", "array", "return_statement"}:
            return [child for child in node.named_children if child.type in {"identifier", "member_expression"}]
        return []

    def references(self) -> Iterator[tuple[Node, str]]:
        """(node, path) of the outermost expressions whose meaning is known, in the order of the text."""
        inside: set[int] = set()
        for node in self.nodes:
            if node.type not in {"identifier", "member_expression", "subscript_expression"} or node.id in inside:
                continue
            path = self.path(node)
            if path is not None:
                inside.update(inner.id for inner in walk(node))
                yield node, path

    # --- meaning ----------------------------------------------------------------------------------------------------

    def path(self, node: Node | None, depth: int = 0) -> str | None:
        """The path from a global name that an expression means."""
        if node is None or depth > _DEPTH:
            return None
        if node.id in self._paths:
            return self._paths[node.id]
        path = self._path(node, depth)
        if depth == 0 and self._settled:
            self._paths[node.id] = path
        return path

    def _path(self, node: Node, depth: int) -> str | None:  # noqa: PLR0911 - one per kind of node
        match node.type:
            case "identifier":
                name = self._source.text(node)
                if name in self._aliases:
                    return self._aliases[name]
                return name if name in self._roots | _GLOBAL_OBJECTS and name not in self._shadowed else None
            case "member_expression" | "subscript_expression":
                owner = self.path(node.child_by_field_name("object"), depth + 1)
                return self._member(owner, self._property(node))
            case "parenthesized_expression" if node.named_child_count == 1:
                return self.path(node.named_children[0], depth + 1)
            case "sequence_expression":
                return self.path(node.named_children[-1], depth + 1)
            case "assignment_expression":
                return self.path(node.child_by_field_name("right"), depth + 1)
            case "call_expression":
                return self._call(node, depth + 1)
            case "await_expression":
                return self.path(node.named_children[0], depth + 1) if node.named_children else None
            case _:
                return None

    def _property(self, node: Node) -> str | None:
        if node.type == "member_expression":
            name = node.child_by_field_name("property")
            return None if name is None else self._source.text(name)
        return self.constant(node.child_by_field_name("index"))

    def _member(self, owner: str | None, name: str | None) -> str | None:
        if owner is None or name is None:
            return None
        if owner in _GLOBAL_OBJECTS:
            return name if name in self._roots | _GLOBAL_OBJECTS else None
        return f"{owner}.{name}"

    def _call(self, node: Node, depth: int) -> str | None:
        function = node.child_by_field_name("function")
        arguments = node.child_by_field_name("arguments")
        path = self.path(function, depth)
        short = function is not None and function.end_byte - function.start_byte <= _SHORT
        if function is not None and short and self._source.text(function) == "Reflect.get" and arguments is not None:
            given = arguments.named_children
            if len(given) >= 2:
                return self._member(self.path(given[0], depth), self.constant(given[1], depth))
        if function is not None and (path or (self._source.text(function) if short else "")).endswith("createRequire"):
            return "createRequire()"
        loads = (path is not None and path.endswith(_LOADERS)) or (function is not None and function.type == "import")
        if loads and arguments is not None and arguments.named_children:
            module = self.constant(arguments.named_children[0], depth)
            return None if module is None else f"module:{module.removeprefix('node:')}"
        return None

    def constant(self, node: Node | None, depth: int = 0) -> str | None:  # noqa: PLR0911 - one per kind of node
        """The text that an expression always has, if that can be read off."""
        if node is None or depth > _DEPTH:
            return None
        match node.type:
            case "string" | "template_string":
                return self._string(node, depth + 1)
            case "parenthesized_expression" if node.named_child_count == 1:
                return self.constant(node.named_children[0], depth + 1)
            case "binary_expression":
                operator = node.child_by_field_name("operator")
                left = self.constant(node.child_by_field_name("left"), depth + 1)
                right = self.constant(node.child_by_field_name("right"), depth + 1)
                if operator is None or operator.type != "+" or left is None or right is None:
                    return None
                return left + right
            case "identifier":
                return self._constants.get(self._source.text(node))
            case "call_expression":
                return self._joined_call(node, depth + 1)
            case _:
                return None

    def _string(self, node: Node, depth: int) -> str | None:
        parts: list[str] = []
        for child in node.named_children:
            if child.type == "string_fragment":
                parts.append(self._source.text(child))
            elif child.type == "escape_sequence":
                parts.append(_unescape(self._source.text(child)))
            elif child.type == "template_substitution":
                value = self.constant(child.named_children[0], depth) if child.named_children else None
                if value is None:
                    return None
                parts.append(value)
        return "".join(parts)

    def _joined_call(self, node: Node, depth: int) -> str | None:
        """`["a", "b"].join("")` and `"a".concat("b")`."""
        function = node.child_by_field_name("function")
        arguments = node.child_by_field_name("arguments")
        if function is None or arguments is None or function.type != "member_expression":
            return None
        owner = function.child_by_field_name("object")
        given = [self.constant(child, depth) for child in arguments.named_children]
        method = self._property(function)
        if owner is None or method not in {"join", "concat"}:
            return None
        first = [self.constant(child, depth) for child in owner.named_children] if owner.type == "array" else []
        if method == "concat":
            parts, separator = [self.constant(owner, depth), *given], ""
        else:
            parts, separator = first, (given[0] or "") if given else ","
        known = [part for part in parts if part is not None]
        return separator.join(known) if known and len(known) == len(parts) else None


def _unescape(sequence: str) -> str:
    """The character that `\\x65`, `\\u0065` or `\\u{65}` stands for; others stand for themselves."""
    digits = sequence[2:].strip("{}")
    if sequence[1:2] in {"x", "u"} and digits:
        try:
            return chr(int(digits, 16))
        except (ValueError, OverflowError):
            return sequence
    return sequence[1:]
