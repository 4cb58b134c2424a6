"""Dangerous patterns in Python code, found on what its names mean."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from emberbox.languages import _dangers
from emberbox.languages._python_names import Scope
from emberbox.languages._shell import argument_rules, shell_rules
from emberbox.languages._tree import Source, walk
from emberbox.languages.spec import Hit

if TYPE_CHECKING:
    from tree_sitter import Node

DANGERS = tuple(
    _dangers.danger("python", topic)
    for topic in ("wipe", "fork-bomb", "network-exec", "crypto-miner", "credentials", "reverse-shell")
)

_DEPTH = 12
_LOOK = 150  # nodes of an expression that are looked at for where its value comes from
_JOINING = frozenset(
    {"pathlib.Path", "pathlib.PurePath", "pathlib.PosixPath", "os.path.join", "os.path.expanduser", "os.path.abspath"}
    | {"os.path.expandvars", "os.path.realpath", "os.path.normpath", "os.fspath", "builtins.str", "posixpath.join"}
)
_HOMES = frozenset({"pathlib.Path.home", "os.environ.HOME", "os.getenv.HOME"})
_STILL = frozenset({"expanduser", "resolve", "absolute", "as_posix"})
_QUIET = ("builtins.print", "logging.", "re.", "builtins.len", "builtins.repr", "builtins.ValueError", "warnings.")
_QUIET_METHODS = frozenset(
    {"startswith", "endswith", "replace", "split", "format", "info", "debug", "warning", "error", "critical", "log"}
    | {"add_argument", "count", "find", "index", "assertEqual", "assertIn", "assertNotIn", "lower", "upper"}
)
_READERS = frozenset(
    {"open", "Path", "read", "read_text", "read_bytes", "copy", "copyfile", "copy2", "move", "run", "system", "popen"}
    | {"check_output", "call", "Popen", "get", "post", "urlopen", "fdopen", "read_csv", "load", "exec", "eval"}
)
"""What a function calls that may read what it is given."""
_FETCHERS = (
    "requests.", "httpx.", "aiohttp.", "urllib.request.urlopen", "urllib.request.urlretrieve", "urllib2.urlopen",
    "urllib3.", "http.client.",
)  # fmt: skip
_SHELL_TEXT = frozenset(
    {"os.system", "os.popen", "posix.system", "subprocess.getoutput", "subprocess.getstatusoutput"}
    | {"asyncio.create_subprocess_shell", "pty.spawn", "commands.getoutput"}
)
_STARTERS = frozenset(f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen"))
_SHELLS = ("pty.spawn", "subprocess.", "os.system", "os.exec", "os.popen", "os.spawn")


class Dangers:
    """The dangerous patterns of one source text."""

    def __init__(self, source: Source, scope: Scope) -> None:
        self._source = source
        self._scope = scope
        self._assigned: dict[str, Node] = {}
        self._fetched: set[str] = set()
        named = ((node, node.child_by_field_name("name")) for node in scope.nodes if node.type == "function_definition")
        self._functions = {source.text(name): node for node, name in named if name is not None}
        fetches = any(word in source.code for word in ("requests", "httpx", "aiohttp", "urllib", "http.client"))
        for left, right in scope.assignments:
            name = source.text(left)
            self._assigned[name] = right
            if fetches and self._comes_from_network(right):
                self._fetched.add(name)

    def find(self) -> Iterator[Hit]:
        """All of them, in no order."""
        connects = dup = shell = None
        for node in self._scope.nodes:
            if node.type == "call":
                path = self._scope.path(node.child_by_field_name("function")) or ""
                yield from self._call(node, path)
                connects = connects or (node if path in {"socket.socket", "socket.create_connection"} else None)
                dup = dup or (node if path in {"os.dup2", "posix.dup2"} else None)
                shell = shell or (node if path.startswith(_SHELLS) else None)
            elif node.type == "binary_operator" and _is_division(node) and not _is_division(node.parent):
                if _dangers.is_credential(self.text(node) or ""):
                    yield _hit("credentials", node)
            elif node.type == "while_statement" and self._forks_forever(node):
                yield _hit("fork-bomb", node)
            elif node.type in {"assignment", "list", "tuple", "keyword_argument"}:
                yield from self._named_miners(node)
        if connects is not None and dup is not None and shell is not None:
            yield _hit("reverse-shell", dup, "a socket becomes the standard streams of a program")

    def _call(self, node: Node, path: str) -> Iterator[Hit]:
        arguments = node.child_by_field_name("arguments")
        given = [] if arguments is None else [child for child in arguments.named_children if child.type != "comment"]
        if path in {"builtins.exec", "builtins.eval"} and given and self._comes_from_network(given[0]):
            yield _hit("network-exec", node)
        if path in {"shutil.rmtree", "os.removedirs"} and given and _dangers.is_everything(self.text(given[0]) or ""):
            yield _hit("wipe", node)
        function = node.child_by_field_name("function")
        method = function.child_by_field_name("attribute") if function is not None else None
        if path.startswith(_QUIET) or (method is not None and self._source.text(method) in _QUIET_METHODS):
            return
        yield from self._shell(node, path, given)
        if function is not None and not self._may_read(function):
            return
        for argument in given:
            for part in _flat(argument):
                text = self.text(part)
                if text and _dangers.is_credential(text):
                    yield _hit("credentials", part)
                elif text and _dangers.is_miner(text):
                    yield _hit("crypto-miner", part)

    def _may_read(self, function: Node) -> bool:
        """False for a function of this very code that opens nothing: it is given a path to think about."""
        own = self._functions.get(self._source.text(function)) if function.type == "identifier" else None
        if own is None:
            return True
        called = (inner.child_by_field_name("function") for inner in walk(own) if inner.type == "call")
        names = {self._source.text(one).rpartition(".")[2] for one in called if one is not None}
        return bool(names & _READERS) or any(name in self._functions for name in names)

    def _shell(self, node: Node, path: str, given: list[Node]) -> Iterator[Hit]:
        """Texts and argument lists that a shell, or the system, gets."""
        if not given or (path not in _SHELL_TEXT and path not in _STARTERS):
            return
        first = self._resolved(given[0])
        if first.type in {"list", "tuple"}:
            words = [self.text(child) for child in first.named_children if child.type != "comment"]
            rules = argument_rules(words) if words else iter(())
        else:
            rules = shell_rules(self.text(first) or "")
        for rule in rules:
            yield Hit(rule, node.start_byte, node.end_byte, f"in the argument of `{path}`")

    def _named_miners(self, node: Node) -> Iterator[Hit]:
        """Pools and miners that a variable or a list names."""
        right = node.child_by_field_name("right") or node.child_by_field_name("value")
        for child in [right] if right is not None else node.named_children:
            text = self._scope.constant(child)
            if text and "stratum" in text and _dangers.is_miner(text):
                yield _hit("crypto-miner", child)

    def _forks_forever(self, loop: Node) -> bool:
        condition, body = loop.child_by_field_name("condition"), loop.child_by_field_name("body")
        if condition is None or body is None or self._source.text(condition).strip("() ") not in {"True", "1"}:
            return False
        # A server forks as well, but it looks at what fork returned.
        return any(
            child.type == "expression_statement"
            and any(inner.type == "call" and self._forks(inner) for inner in child.named_children)
            for child in walk(body)
        )

    def _forks(self, call: Node) -> bool:
        return self._scope.path(call.child_by_field_name("function")) in {"os.fork", "posix.fork", "os.forkpty"}

    def _comes_from_network(self, node: Node) -> bool:
        for inner in islice(walk(node), _LOOK):
            if inner.type == "call" and (self._scope.path(inner.child_by_field_name("function")) or "").startswith(
                _FETCHERS
            ):
                return True
            if inner.type == "identifier" and self._source.text(inner) in self._fetched:
                return True
        return False

    # --- texts ------------------------------------------------------------------------------------------------------

    def _resolved(self, node: Node) -> Node:
        return self._assigned.get(self._source.text(node), node) if node.type == "identifier" else node

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
            case "call":
                return self._called(node, depth + 1)
            case "binary_operator" if _is_division(node):
                return self._joined([node.child_by_field_name("left"), node.child_by_field_name("right")], depth + 1)
            case "binary_operator":
                left = self.text(node.child_by_field_name("left"), depth + 1)
                right = self.text(node.child_by_field_name("right"), depth + 1)
                return None if left is None or right is None else left + right
            case "string":
                return self._interpolated(node, depth + 1)
            case "keyword_argument":
                return self.text(node.child_by_field_name("value"), depth + 1)
            case "parenthesized_expression" if node.named_child_count == 1:
                return self.text(node.named_children[0], depth + 1)
            case _:
                return None

    def _called(self, node: Node, depth: int) -> str | None:
        function, arguments = node.child_by_field_name("function"), node.child_by_field_name("arguments")
        path = self._scope.path(function)
        given = [] if arguments is None else [child for child in arguments.named_children if child.type != "comment"]
        if path in _HOMES:
            return "~"
        if path == "os.getenv" and given and self._scope.constant(given[0]) == "HOME":
            return "~"
        if path in _JOINING:
            return self._joined(list(given), depth)
        if function is not None and function.type == "attribute":
            method = function.child_by_field_name("attribute")
            name = "" if method is None else self._source.text(method)
            owner = function.child_by_field_name("object")
            if name in _STILL:
                return self.text(owner, depth)
            if name == "joinpath":
                return self._joined([owner, *given], depth)
        return None

    def _joined(self, nodes: list[Node | None], depth: int) -> str | None:
        whole = ""
        for node in nodes:
            part = self.text(node, depth)
            if part is None:
                return None
            whole = part if part.startswith("/") or not whole else f"{whole.rstrip('/')}/{part}"
        return whole or None

    def _interpolated(self, node: Node, depth: int) -> str | None:
        parts: list[str] = []
        for child in node.named_children:
            if child.type == "interpolation":
                part = self.text(child.child_by_field_name("expression"), depth)
                if part is None:
                    return None
                parts.append(part)
            elif child.type == "string_content":
                parts.append(self._source.text(child))
        return "".join(parts)


def _is_division(node: Node | None) -> bool:
    if node is None or node.type != "binary_operator":
        return False
    operator = node.child_by_field_name("operator")
    return operator is not None and operator.type == "/"


def _flat(argument: Node) -> list[Node]:
    """The argument, or what a list of them holds."""
    if argument.type in {"list", "tuple", "set"}:
        return list(argument.named_children)
    return [argument]


def _hit(topic: str, node: Node, what: str = "") -> Hit:
    return Hit(f"python.{topic}", node.start_byte, node.end_byte, what)
