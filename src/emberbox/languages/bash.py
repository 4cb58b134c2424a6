"""Bash: restrictions are decided on commands as the shell would run them, behind quoting, wrappers and nesting."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from emberbox.languages._bash_dangers import DANGERS, dangers, is_inner, tree_dangers
from emberbox.languages._bash_syntax import find_problem
from emberbox.languages._bash_words import SHELLS, Command, Words, commands
from emberbox.languages._dangers import names_a_folder
from emberbox.languages._tree import Source, walk
from emberbox.languages.spec import Embedded, Hit, LanguageSpec, Restriction
from emberbox.models import Finding, Language, LanguageConfig

if TYPE_CHECKING:
    from tree_sitter import Node

RESTRICTIONS = (
    Restriction("bash.rm-rf", "deletes recursively and without questions (`rm -rf`)", "a wrong path costs everything"),
    Restriction("bash.dd-device", "reads or writes a device", "this overwrites disks, not files"),
    Restriction("bash.mkfs", "makes a file system (`mkfs`)", "this erases what the device held"),
    Restriction("bash.fork-bomb", "starts itself again and again (a fork bomb)", "this takes every process there is"),
    Restriction("bash.chmod-777", "lets everybody write (`chmod 777`)", "narrower rights nearly always do"),
)

CONFIG = LanguageConfig(
    name="bash",
    aliases=("sh", "shell"),
    file_extension=".sh",
    run_command=("bash",),
    timeout_multiplier=1.0,
    restrictions=tuple(rule.id for rule in RESTRICTIONS),
)

_DEPTH = 4  # of `bash -c "bash -c '…'"`
_SAFE_DEVICES = re.compile(
    r"/dev/(?:null|zero|full|u?random|std(?:in|out|err)|tty|fd/.*|tcp/.*|udp/.*|shm/.*|pts/.*|ptmx|console)"
)
_DISK = re.compile(r"/dev/(?:[shv]d[a-z]|xvd|nvme|mmcblk|loop|dm-|md\d|mapper/|disk/|block/|r?disk\d|mem|kmem|port)")
_OPEN_MODE = re.compile(
    r"[0-7]?777|(?:[ugo]*a[ugoa]*|(?=[ugo]*u)(?=[ugo]*g)(?=[ugo]*o)[ugo]{3,}|)[+=](?=.*r)(?=.*w)[rwxXst]+"
)
_CODE_FLAG = re.compile(r"-[a-zA-Z]*c[a-zA-Z]*")


def _check(source: Source) -> Iterator[Hit]:
    yield from _check_code(source, 0)


def _check_code(source: Source, depth: int) -> Iterator[Hit]:
    words = Words(source)
    for command in commands(source, words):
        rule = _violated(command)
        if rule is not None:
            ordinary = rule == "bash.rm-rf" and _deletes_named_folders(command)
            yield Hit(rule, command.node.start_byte, command.node.end_byte, strict=ordinary)
        yield from dangers(command)
        if depth < _DEPTH:
            yield from _nested(command, depth)
    yield from tree_dangers(source, words)
    for node in walk(source.root):
        if node.type == "file_redirect" and _writes_device(node, words):
            yield Hit("bash.dd-device", node.start_byte, node.end_byte, "output goes to a disk")
        elif _is_bomb(source, node):
            yield Hit("bash.fork-bomb", node.start_byte, node.end_byte)


def _violated(command: Command) -> str | None:
    name = command.name
    if name == "rm" and _is_recursive_and_forced(command.known()):
        return "bash.rm-rf"
    if name == "dd" and any(_is_device(word) for word in command.known()):
        return "bash.dd-device"
    if name in {"mkfs", "mke2fs"} or name.startswith("mkfs."):
        return "bash.mkfs"
    if name == "chmod" and any(_OPEN_MODE.fullmatch(word) for word in command.known()):
        return "bash.chmod-777"
    return None


def _is_recursive_and_forced(arguments: list[str]) -> bool:
    recursive = forced = False
    for word in arguments:
        if word == "--":
            break
        if word.startswith("--"):
            # GNU accepts any unambiguous beginning of a long option.
            recursive |= len(word) > 3 and "--recursive".startswith(word)
            forced |= len(word) > 2 and "--force".startswith(word)
        elif word.startswith("-"):
            recursive |= "r" in word.lower()
            forced |= "f" in word
    return recursive and forced


def _deletes_named_folders(command: Command) -> bool:
    """Whether all that `rm` deletes is named and below a folder to work in: what builds and tests do."""
    targets = [text for _, text in command.arguments if text is None or not text.startswith("-")]
    return bool(targets) and all(text is not None and names_a_folder(text) for text in targets)


def _is_device(word: str) -> bool:
    key, _, value = word.partition("=")
    return key in {"if", "of"} and value.startswith("/dev/") and not _SAFE_DEVICES.fullmatch(value)


def _writes_device(node: Node, words: Words) -> bool:
    target = node.child_by_field_name("destination")
    text = words.constant(target)
    writing = any(child.type in {">", ">>", ">|", "&>", "&>>"} for child in node.children)
    return writing and text is not None and _DISK.match(text) is not None


def _is_bomb(source: Source, node: Node) -> bool:
    """A function, or a script, that starts itself twice over: through a pipe to itself, or in the background."""
    if node.type == "pipeline":
        return not is_inner(node) and _starts_itself(source, node)
    if node.type != "function_definition":
        return False
    name_node, body = node.child_by_field_name("name"), node.child_by_field_name("body")
    if name_node is None or body is None:
        return False
    name = source.text(name_node)
    inner = list(walk(body))
    for part in inner:
        if part.type in {"pipeline", "list"}:
            own = [child for child in walk(part) if child.type == "command_name" and source.text(child) == name]
            if len(own) > 1:
                return True
        following = part.next_sibling if part.type == "command" else None
        if following is not None and following.type == "&":
            called = part.child_by_field_name("name")
            if called is not None and source.text(called) == name:
                return True
    return False


def _starts_itself(source: Source, node: Node) -> bool:
    """`$0 | $0`."""
    names = [source.text(child).strip('"') for child in walk(node) if child.type == "command_name"]
    return sum(name in {"$0", "./$0", "${0}", "$BASH_SOURCE"} for name in names) > 1


def _nested(command: Command, depth: int) -> Iterator[Hit]:
    """Violations in code that a command is given as text; their place is that of the text."""
    for node, code in _code_of(command):
        inner = SPEC.source(code)
        for hit in _check_code(inner, depth + 1):
            where = f"in `{command.name}`'s argument"
            yield hit._replace(start=node.start_byte, end=node.end_byte, what=where)


def _code_of(command: Command) -> Iterator[tuple[Node, str]]:
    name, arguments = command.name, command.arguments
    if name in SHELLS or name in {"su", "runuser"}:
        for index, (_, text) in enumerate(arguments[:-1]):
            if text is not None and (_CODE_FLAG.fullmatch(text) or text == "--command"):
                node, code = arguments[index + 1]
                if code is not None:
                    yield node, code
                break
        yield from command.inputs
    elif name in {"eval", "ssh", "watch"}:
        words = arguments if name != "ssh" else arguments[1:]
        known = [text for _, text in words if text is not None]
        if known and words:
            yield words[0][0], " ".join(known)
    elif name == "trap" and arguments:
        node, code = arguments[0]
        if code is not None:
            yield node, code
    elif name == "alias":
        for node, text in arguments:
            if text is not None and "=" in text:
                yield node, text.partition("=")[2]


_INTERPRETERS: dict[str, tuple[Language, frozenset[str]]] = {
    **dict.fromkeys(("python", "python3", "python2"), ("python", frozenset({"-c"}))),
    **dict.fromkeys(("node", "nodejs"), ("javascript", frozenset({"-e", "-p", "-pe", "--eval", "--print"}))),
}


def _embedded(source: Source, depth: int = 0) -> Iterator[Embedded]:
    """`python3 -c "…"`, `node -e "…"`, and what an interpreter is given on its standard input."""
    for command in commands(source, Words(source)):
        for node, code in _code_of(command) if depth < _DEPTH else ():
            for inner in _embedded(SPEC.source(code), depth + 1):
                yield inner._replace(start=node.start_byte, end=node.end_byte)
        if command.name not in _INTERPRETERS:
            continue
        language, flags = _INTERPRETERS[command.name]
        given = [text for _, text in command.arguments]
        for (_, flag), (node, text) in pairwise(command.arguments):
            if flag in flags and text is not None:
                yield Embedded(language, text, node.start_byte, node.end_byte)
        if all(text == "-" for text in given):
            for node, code in command.inputs:
                yield Embedded(language, code, node.start_byte, node.end_byte)


def _syntax(source: Source) -> list[Finding]:
    problem = find_problem(source.code)
    if problem is None:
        return []
    return [source.finding(len(Source.encode(source.code[: problem.offset])), problem.message)]


SPEC = LanguageSpec(CONFIG, RESTRICTIONS, DANGERS, "tree_sitter_bash", _check, _syntax, _embedded)
