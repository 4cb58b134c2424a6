"""JavaScript: which of node's own modules a text uses without loading them, and how they are added.

What is added must neither move a line nor hide a variable of an earlier execution. A declaration would hide it: the
kernel binds what a cell declares before the cell runs, so that not even `globalThis.path` reaches the earlier value.
Hence an assignment, and only where there is no such name yet.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple

from emberbox.languages import LANGUAGES

if TYPE_CHECKING:
    from tree_sitter import Node

    from emberbox.languages._tree import Source

_SPEC = LANGUAGES["javascript"]


class _Known(NamedTuple):
    """A name, what it is loaded from, and how it is used where it can be nothing else.

    `members` matches what may follow the dot; None: it is not used with one. `called`: also `name(…)` and `new name`.
    """

    module: str
    members: str | None = None
    called: bool = False
    part: str = ""

    @property
    def load(self) -> str:
        return f'require("{self.module}"){"." if self.part else ""}{self.part}'


_CRYPTO = (
    r"create(?:Hash|Hmac|Cipheriv|Decipheriv|Sign|Verify|DiffieHellman|ECDH|\w+Key)|random(?:Bytes|Int|Fill|FillSync)"
    r"|pbkdf2(?:Sync)?|scrypt(?:Sync)?|hkdf(?:Sync)?|timingSafeEqual|get(?:Hashes|Ciphers|Curves)|webcrypto|constants"
    r"|generateKeyPair(?:Sync)?|(?:public|private)(?:En|De)crypt|sign|verify"
)
# The global object of the same name has these as well: alone they say nothing, beside the others they do no harm.
_WEB_CRYPTO = r"subtle|getRandomValues|randomUUID"
_TABLE = {
    "assert": _Known(
        "assert",
        r"(?:not)?(?:deep)?(?:strict)?equal|(?:not)?deep(?:Strict)?Equal|not(?:Strict|Deep|DeepStrict)Equal|strictEqual|ok"
        r"|strict|throws|rejects|doesNot\w+|fail|ifError|match|AssertionError",
        called=True,
    ),
    "child_process": _Known("child_process", r"(?:exec|execFile|spawn)(?:Sync)?|fork|ChildProcess"),
    "crypto": _Known("crypto", f"{_CRYPTO}|{_WEB_CRYPTO}"),
    "EventEmitter": _Known("events", r"\w+", called=True, part="EventEmitter"),
    "fileURLToPath": _Known("url", called=True, part="fileURLToPath"),
    "fs": _Known(
        "fs",
        r"\w+Sync|promises|constants|(?:read|write|append|copy)File|create\w+Stream|[fl]?stat|access|exists|mkd\w+|rm|rmdir"
        r"|readdir|unlink|(?:un)?watch(?:File)?|open|close|read|write|rename|realpath|link|symlink|chmod|chown|utimes|cp"
        r"|truncate|[A-Z]\w*",
    ),
    "http": _Known("http", r"createServer|get|request|Server|Agent|STATUS_CODES|METHODS|globalAgent|IncomingMessage"),
    "https": _Known("https", r"createServer|get|request|Server|Agent|globalAgent"),
    "os": _Known(
        "os",
        r"arch|availableParallelism|cpus|endianness|freemem|totalmem|homedir|hostname|loadavg|networkInterfaces|platform"
        r"|release|tmpdir|type|userInfo|uptime|version|machine|constants|EOL|devNull|[gs]etPriority",
    ),
    "path": _Known(
        "path",
        r"join|resolve|normalize|isAbsolute|relative|dirname|basename|extname|format|parse|sep|delimiter|posix|win32",
    ),
    "pathToFileURL": _Known("url", called=True, part="pathToFileURL"),
    "promisify": _Known("util", called=True, part="promisify"),
    "querystring": _Known("querystring", r"stringify|parse|escape|unescape|encode|decode"),
    "readline": _Known("readline", r"createInterface|clearLine|clearScreenDown|cursorTo|moveCursor|promises|\w+Events"),
    "url": _Known("url", r"parse|format|resolve|fileURLToPath|pathToFileURL|domainTo\w+|urlToHttpOptions"),
    "util": _Known(
        "util",
        r"inspect|format|formatWithOptions|promisify|callbackify|inherits|deprecate|isDeepStrictEqual|debuglog|types"
        r"|parseArgs|styleText|stripVTControlCharacters|isArray|TextEncoder|TextDecoder",
    ),
    "zlib": _Known("zlib", r"(?:in|de)flate\w*|g(?:un)?zip\w*|unzip\w*|brotli\w+|create\w+|constants|crc32"),
}  # fmt: skip
NAMES = frozenset(_TABLE)
"""Every name that something may be added for."""

_GLOBAL_OBJECTS = frozenset({"globalThis", "global"})
_FUNCTIONS = frozenset(
    {"function_declaration", "generator_function_declaration", "function_expression", "generator_function"}
    | {"arrow_function", "method_definition", "class_static_block"}
)
_BLOCKS = frozenset({"statement_block", "for_statement", "for_in_statement", "switch_body", "catch_clause"})
_NAMES_OF_PATTERNS = frozenset({"identifier", "shorthand_property_identifier_pattern"})
_NAMED = frozenset({"function_declaration", "generator_function_declaration", "class_declaration"})
_NAMED_WITHIN = frozenset({"function_expression", "generator_function", "class"})


# --- what is missing --------------------------------------------------------------------------------------------------


def find(code: str) -> dict[str, str]:
    """The declarations that are missing, each with the name that it is for, in the order of their first use."""
    if NAMES.isdisjoint(re.findall(r"\w+", code)):
        return {}
    source = _SPEC.source(code)
    if source.root.has_error:
        return {}
    found: dict[str, str] = {}
    for name, uses in _undeclared_uses(source).items():
        if _is_module(name, uses):
            found[_declaration(name)] = name
    return found


def _declaration(name: str) -> str:
    return f"const {name} = {_TABLE[name].load}"


class _Scopes:
    """Which names are declared or assigned where: for each node that is a scope, the names of the tables.

    Args:
        source: the code.

    Attributes:
        declared: names by the id of the node within which they are known.
        binding: ids of the nodes that declare or assign a name and do not use it.
        opaque: whether anything may be defined, as things are done to the global object itself.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.declared: defaultdict[int, set[str]] = defaultdict(set)
        self.binding: set[int] = set()
        self.opaque = False
        stack = [(source.root, source.root, source.root, source.root)]
        while stack:
            node, parent, function, block = stack.pop()
            self._collect(node, function, block)
            if node.type == "identifier" and source.text(node) in _GLOBAL_OBJECTS:
                self.opaque = self.opaque or not _only_asks(node, parent)
            if node.type in _FUNCTIONS:
                function = block = node
            elif node.type in _BLOCKS:
                block = node
            stack.extend((child, node, function, block) for child in node.named_children)

    def _collect(self, node: Node, function: Node, block: Node) -> None:
        match node.type:
            case "variable_declaration" | "lexical_declaration":
                scope = function if node.type == "variable_declaration" else block
                for child in node.named_children:
                    self._bind(child.child_by_field_name("name"), scope)
            case "assignment_expression" | "augmented_assignment_expression":
                self._assign(node.child_by_field_name("left"))
            case "for_in_statement":
                kind = node.child_by_field_name("kind")
                left = node.child_by_field_name("left")
                self._bind(left, self._source.root if kind is None else function if kind.type == "var" else node)
            case "update_expression":
                self._bind(node.child_by_field_name("argument"), self._source.root)
            case "catch_clause":
                self._bind(node.child_by_field_name("parameter"), node)
            case "import_clause" | "namespace_import":
                for child in node.named_children:
                    self._bind(child if child.type == "identifier" else None, self._source.root)
            case "import_specifier":
                name = node.child_by_field_name("name")
                self.binding.add(-1 if name is None else name.id)
                self._bind(node.child_by_field_name("alias") or name, self._source.root)
            case _ if node.type in _FUNCTIONS or node.type in _NAMED_WITHIN or node.type in _NAMED:
                self._function(node, function)
            case _:
                pass

    def _function(self, node: Node, outer: Node) -> None:
        """What a function or a class declares: its name, its parameters."""
        self._bind(node.child_by_field_name("parameter"), node)
        parameters = node.child_by_field_name("parameters")
        for child in [] if parameters is None else parameters.named_children:
            self._bind(child, node)
        if node.type in _NAMED or node.type in _NAMED_WITHIN:
            self._bind(node.child_by_field_name("name"), outer if node.type in _NAMED else node)

    def _bind(self, pattern: Node | None, scope: Node) -> None:
        """Every name of a pattern; what is in it but default values and computed keys."""
        stack = [] if pattern is None else [pattern]
        while stack:
            node = stack.pop()
            if node.type in _NAMES_OF_PATTERNS:
                self.declared[scope.id].add(self._source.text(node))
                self.binding.add(node.id)
            elif node.type in {"assignment_pattern", "object_assignment_pattern"}:
                stack.extend(_present(node.child_by_field_name("left")))
            elif node.type == "pair_pattern":
                stack.extend(_present(node.child_by_field_name("value")))
            elif node.type in {"object_pattern", "array_pattern", "rest_pattern", "parenthesized_expression"}:
                stack.extend(node.named_children)

    def _assign(self, left: Node | None) -> None:
        """`x = …` makes a global variable where none is declared, `globalThis.x = …` always does."""
        if left is not None and left.type == "member_expression":
            owner, member = left.child_by_field_name("object"), left.child_by_field_name("property")
            if owner is not None and member is not None and self._source.text(owner) in _GLOBAL_OBJECTS:
                self.declared[self._source.root.id].add(self._source.text(member))
        else:
            self._bind(left, self._source.root)


def _only_asks(node: Node, parent: Node) -> bool:
    """Whether the global object is used for one name: `globalThis.x`, `"x" in globalThis`; `typeof global`."""
    if parent.type == "binary_expression":
        return parent.child_by_field_name("right") == node
    return parent.type in {"member_expression", "unary_expression"}


def _present(node: Node | None) -> list[Node]:
    return [] if node is None else [node]


def _undeclared_uses(source: Source) -> dict[str, list[tuple[str, str]]]:
    """The uses of each name of the table where nothing declares it: how, and what follows the dot."""
    scopes = _Scopes(source)
    uses: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    asked: set[str] = set()
    if scopes.opaque:
        return {}
    stack = [(source.root, source.root, frozenset[str]())]
    while stack:
        node, parent, known = stack.pop()
        known |= NAMES & scopes.declared.get(node.id, set())
        if node.type == "with_statement":
            known = NAMES  # whatever the object has
        if node.type in {"identifier", "shorthand_property_identifier"} and node.id not in scopes.binding:
            name = source.text(node)
            how, member = _use(source, node, parent)
            if how == "typeof":
                asked.add(name)
            elif name in NAMES and name not in known:
                uses[name].append((how, member))
        stack.extend((child, node, known) for child in reversed(node.named_children))
    return {name: places for name, places in uses.items() if name not in asked}


def _use(source: Source, node: Node, parent: Node) -> tuple[str, str]:
    if parent.type == "unary_expression":
        operator = parent.child_by_field_name("operator")
        return ("typeof" if operator is not None and operator.type == "typeof" else "other"), ""
    if parent.type == "member_expression" and parent.child_by_field_name("object") == node:
        return "member", "".join(source.text(one) for one in _present(parent.child_by_field_name("property")))
    if parent.type == "subscript_expression" and parent.child_by_field_name("object") == node:
        return "index", ""
    if parent.type == "call_expression" and parent.child_by_field_name("function") == node:
        return "call", ""
    if parent.type == "new_expression" and parent.child_by_field_name("constructor") == node:
        return "call", ""
    return ("call" if parent.type == "class_heritage" else "other"), ""


def _is_module(name: str, uses: Collection[tuple[str, str]]) -> bool:
    known = _TABLE[name]
    telling = [(how, member) for how, member in uses if how != "other"]
    fits = all(
        (how == "call" and known.called)
        or (how == "member" and known.members is not None and re.fullmatch(known.members, member) is not None)
        for how, member in telling
    )
    if name == "crypto" and all(re.fullmatch(_WEB_CRYPTO, member) for _, member in telling):
        return False
    return bool(telling) and fits


# --- adding it --------------------------------------------------------------------------------------------------------


def add(code: str, statements: Collection[str]) -> str:
    """The code with something in front of its first statement, on the same line, that loads these modules."""
    source = _SPEC.source(code)
    place, strict = _place(source)
    names = [statement.split(" ", 2)[1] for statement in statements]
    return _insert(code, source, place, "".join(_assignment(name, strict=strict) for name in names))


def plain(code: str, statements: Collection[str]) -> str:
    """The code with these declarations as a person would have written them, for checks that follow names."""
    source = _SPEC.source(code)
    return _insert(code, source, _place(source)[0], "".join(f"{statement}; " for statement in statements))


def _assignment(name: str, *, strict: bool) -> str:
    load = _TABLE[name].load
    if name == "crypto":  # newer versions of node have a global object of that name that cannot be assigned to
        condition = f'!("crypto" in globalThis) || crypto === {load}.webcrypto'
        value = f"{{ value: {load}, configurable: true, enumerable: true, writable: true }}"
        return f'if ({condition}) Object.defineProperty(globalThis, "crypto", {value}); '
    # The plain form is the one that checks of code can follow; strict code cannot make global variables with it.
    return f'if (!("{name}" in globalThis)) {"globalThis." if strict else ""}{name} = {load}; '


def _place(source: Source) -> tuple[int, bool]:
    """The byte where the first statement begins, and whether a directive before it makes the code strict."""
    strict = False
    for node in _statements(source.root):
        only = node.named_children[0] if node.type == "expression_statement" and node.named_children else None
        if only is None or only.type != "string":
            return node.start_byte, strict
        strict = strict or source.text(only)[1:-1] == "use strict"
    return len(source.bytes), strict


def _statements(root: Node) -> Iterator[Node]:
    return (node for node in root.named_children if node.type not in {"comment", "hash_bang_line"})


def _insert(code: str, source: Source, place: int, text: str) -> str:
    characters = len(source.bytes[:place].decode("utf-8", "replace"))
    return code[:characters] + text + code[characters:]
