"""Commands and words of Bash code, as the shell would see them after quoting and simple expansion."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from emberbox.languages._tree import Source, walk

if TYPE_CHECKING:
    from tree_sitter import Node

Word = tuple["Node", str | None]

_DEPTH = 32
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{1,4}|0?[0-7]{1,3}|.)", re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh"})

# Programs that run the command in their arguments, with those of their options that take a value.
_WRAPPERS: dict[str, frozenset[str]] = {
    "sudo": frozenset({"-u", "-g", "-h", "-p", "-C", "-T", "-r", "-t", "-D", "-R", "-U", "--user", "--group"}),
    "doas": frozenset({"-u", "-C"}),
    "command": frozenset(),
    "builtin": frozenset(),
    "exec": frozenset({"-a"}),
    "env": frozenset({"-u", "--unset", "-C", "--chdir"}),
    "nohup": frozenset(),
    "setsid": frozenset(),
    "time": frozenset({"-f", "-o"}),
    "nice": frozenset({"-n"}),
    "ionice": frozenset({"-c", "-n", "-p"}),
    "timeout": frozenset({"-s", "-k", "--signal", "--kill-after"}),
    "stdbuf": frozenset({"-i", "-o", "-e"}),
    "xargs": frozenset({"-I", "-n", "-P", "-L", "-s", "-d", "-a", "-E"}),
    "parallel": frozenset({"-j", "--jobs"}),
    "busybox": frozenset(),
    "chroot": frozenset(),
    "unshare": frozenset(),
}
_LEADING_OPERANDS = {"timeout": 1, "chroot": 1}
_COMPOSED = frozenset({"string", "translated_string", "concatenation", "command_name", "command_substitution"})
_LONGEST = 10_000
"""Characters that a command substitution may give, to be known."""


@dataclass
class Command:
    """One simple command.

    Attributes:
        node: where it stands.
        name: the program, without its directory and without wrappers such as sudo.
        arguments: (node, text) of each argument; text is None where only running the code would tell.
        inputs: (node, text) of here-documents and pipes that feed it.
    """

    node: Node
    name: str
    arguments: list[Word]
    inputs: list[tuple[Node, str]] = field(default_factory=list)

    def known(self) -> list[str]:
        """The arguments whose text is known."""
        return [text for _, text in self.arguments if text is not None]


class Words:
    """What words mean, where it can be told without running anything."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._variables: dict[str, str | None] = {"HOME": "~"}
        self._known: dict[int, str | None] = {}
        nodes = list(walk(source.root))
        for node in nodes:
            if node.type == "variable_assignment":
                name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
                if name is not None:
                    key, text = source.text(name), self.constant(value)
                    again = key in self._variables and key != "HOME"
                    self._variables[key] = None if again else text
        for node in reversed(nodes):  # inner ones first: each is looked at once, however deep they stand in each other
            if node.type in _COMPOSED:
                self._known[node.id] = self.constant(node)

    def constant(self, node: Node | None, depth: int = 0) -> str | None:  # noqa: PLR0911 - one per kind of node
        """The text of a word after quoting and expansion."""
        if node is None or depth > _DEPTH:
            return None
        if node.id in self._known:
            return self._known[node.id]
        match node.type:
            case "word" | "number" | "regex":
                return self._source.text(node).replace("\\\n", "").replace("\\", "")
            case "raw_string":
                return self._source.text(node)[1:-1]
            case "ansi_c_string":
                return _ESCAPE.sub(_unescape, self._source.text(node)[2:-1])
            case "string" | "translated_string":
                return self._string(node, depth + 1)
            case "concatenation" | "command_name":
                return self._join(node.children, depth + 1)
            case "simple_expansion" | "expansion":
                names = [child for child in node.named_children if child.type == "variable_name"]
                plain = node.named_child_count == 1 and len(names) == 1
                return self._variables.get(self._source.text(names[0])) if plain else None
            case "command_substitution":
                return self._printed(node, depth + 1)
            case _:
                return None

    def _join(self, nodes: list[Node], depth: int) -> str | None:
        parts = [self.constant(child, depth) for child in nodes]
        known = [part for part in parts if part is not None]
        return "".join(known) if len(known) == len(parts) else None

    def _string(self, node: Node, depth: int) -> str | None:
        parts: list[str] = []
        position = node.start_byte + 1
        for child in node.named_children:
            gap = self._source.bytes[position : child.start_byte].decode("utf-8", "replace")
            if child.type == "string_content":
                part: str | None = re.sub(r'\\([$`"\\\n])', r"\1", self._source.text(child))
            else:
                part = self.constant(child, depth)
            if part is None:
                return None
            parts += [gap, part]
            position = child.end_byte
        parts.append(self._source.bytes[position : node.end_byte - 1].decode("utf-8", "replace"))
        return "".join(parts)

    def _printed(self, node: Node, depth: int) -> str | None:
        """What `$(printf rm)` or `$(echo rm)` gives."""
        inner = [child for child in node.named_children if child.type != "comment"]
        if len(inner) != 1 or inner[0].type != "command":
            return None
        name = self.constant(inner[0].child_by_field_name("name"), depth)
        words = [self.constant(child, depth) for child in inner[0].children_by_field_name("argument")]
        known = [word for word in words if word is not None]
        if len(known) != len(words) or sum(map(len, known)) > _LONGEST:
            return None
        if name == "echo":
            return " ".join(word for word in known if word not in {"-n", "-e"})
        if name == "printf" and known:
            if "%" not in known[0]:
                return _ESCAPE.sub(_unescape, known[0])
            if re.fullmatch(r"(?:%s)+(?:\\n)?", known[0]):
                return "".join(known[1:])
        return None

    def split(self, node: Node) -> list[Word]:
        """The words that a word becomes: an unquoted expansion may be several."""
        text = self.constant(node)
        unquoted = node.type in {"simple_expansion", "expansion", "command_substitution"}
        if node.type == "command_name" and node.named_child_count == 1:
            return self.split(node.named_children[0])
        if text is not None and unquoted:
            return [(node, part) for part in text.split()] or [(node, "")]
        return [(node, text)]


def _unescape(match: re.Match[str]) -> str:
    what = match[1]
    simple = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "e": "\x1b"}
    try:
        if what[0] in "xu" and len(what) > 1:
            return chr(int(what[1:], 16))
        if what[0] in "01234567":
            return chr(int(what, 8))
    except (ValueError, OverflowError):
        return match[0]
    return simple.get(what, what)


def commands(source: Source, words: Words) -> Iterator[Command]:
    """All simple commands, with wrappers such as `sudo` and `find -exec` taken off."""
    feeds = _feeds(source, words)
    for node in walk(source.root):
        if node.type != "command":
            continue
        name = node.child_by_field_name("name")
        if name is None:
            continue
        line: list[Word] = words.split(name)
        for argument in node.children_by_field_name("argument"):
            line += words.split(argument)
        own = [(child, text) for child, text in feeds.get(node.id, [])]
        for child in node.named_children:
            if child.type == "herestring_redirect" and child.named_children:
                text = words.constant(child.named_children[0])
                if text is not None:
                    own.append((child, text))
        for part in _unwrapped(line):
            if part and part[0][1]:
                yield Command(node, part[0][1].rpartition("/")[2], part[1:], own)


def command_of(node: Node, words: Words) -> Command | None:
    """The innermost command that a node runs, behind wrappers such as `sudo`; None for what is no simple command."""
    if node.type == "redirected_statement":
        body = node.child_by_field_name("body")
        return None if body is None else command_of(body, words)
    name = node.child_by_field_name("name") if node.type == "command" else None
    if name is None:
        return None
    line = words.split(name)
    for argument in node.children_by_field_name("argument"):
        line += words.split(argument)
    last: list[Word] | None = None
    for part in _unwrapped(line):
        if part and part[0][1]:
            last = part
    return None if last is None else Command(node, (last[0][1] or "").rpartition("/")[2], last[1:])


def _unwrapped(line: list[Word]) -> Iterator[list[Word]]:
    """The command line itself and the command lines that it runs."""
    for _ in range(_DEPTH):
        if not line or line[0][1] is None:
            return
        yield line
        name = line[0][1].rpartition("/")[2]
        if name == "find":
            yield from _executed_by_find(line)
            return
        if name not in _WRAPPERS:
            return
        line = _inner(name, line[1:])


def _inner(name: str, words: list[Word]) -> list[Word]:
    valued, operands = _WRAPPERS[name], _LEADING_OPERANDS.get(name, 0)
    index = 0
    while index < len(words):
        text = words[index][1]
        if text is None:
            index += 1
        elif text == "--":
            return words[index + 1 :]
        elif text in valued:
            index += 2
        elif text.startswith("-") or (name in {"env", "sudo", "doas"} and _ASSIGNMENT.fullmatch(text)):
            index += 1
        elif operands:
            operands -= 1
            index += 1
        else:
            break
    return words[index:]


def _executed_by_find(line: list[Word]) -> Iterator[list[Word]]:
    starts = [i for i, (_, text) in enumerate(line) if text in {"-exec", "-execdir", "-ok", "-okdir"}]
    for start in starts:
        rest = line[start + 1 :]
        end = next((i for i, (_, text) in enumerate(rest) if text in {";", "+"}), len(rest))
        yield from _unwrapped(rest[:end])


def _feeds(source: Source, words: Words) -> dict[int, list[tuple[Node, str]]]:
    """Texts that reach a command's standard input: here-documents, and `echo … |` before it."""
    feeds: dict[int, list[tuple[Node, str]]] = {}
    for node in walk(source.root):
        if node.type == "redirected_statement":
            body = node.child_by_field_name("body")
            for redirect in node.named_children:
                if body is None or redirect.type != "heredoc_redirect":
                    continue
                for inner in redirect.named_children:
                    if inner.type == "heredoc_body":
                        feeds.setdefault(body.id, []).append((inner, source.text(inner)))
        elif node.type == "pipeline":
            parts = [child for child in node.named_children if child.type == "command"]
            for left, right in pairwise(parts):
                name = words.constant(left.child_by_field_name("name"))
                if name in {"echo", "printf"}:
                    texts = [words.constant(child) for child in left.children_by_field_name("argument")]
                    known = " ".join(text for text in texts if text is not None)
                    feeds.setdefault(right.id, []).append((left, known))
    return feeds
