"""Dangerous patterns in Bash code, found on its commands as the shell would run them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from emberbox.languages import _dangers
from emberbox.languages._bash_words import SHELLS, Command, Words, command_of
from emberbox.languages._tree import Source, walk
from emberbox.languages.spec import Hit

if TYPE_CHECKING:
    from tree_sitter import Node

DANGERS = tuple(
    _dangers.danger("bash", topic)
    for topic in ("wipe", "power", "network-shell", "crypto-miner", "credentials", "reverse-shell")
)

_FETCHERS = frozenset({"curl", "wget", "fetch", "lynx", "aria2c", "http", "https"})
_INTERPRETERS = frozenset({"python", "python2", "python3", "node", "perl", "ruby", "php"})
_POWER = frozenset({"shutdown", "reboot", "halt", "poweroff", "killall5"})
_STOPS = frozenset({"poweroff", "reboot", "halt", "kexec", "emergency", "rescue"})
_ONLY_SAY = frozenset({"echo", "printf"})
_KEEP_KEYS = frozenset(
    {"ssh", "ssh-keygen", "ssh-add", "ssh-copy-id", "chmod", "chown", "ls", "stat", "test", "[", "mkdir", "touch"}
    | {"rm", "export", "alias", "git", "which"}
)
"""Commands that name the file of a key without giving away what is in it."""
_NETCAT = frozenset({"nc", "ncat", "netcat", "nc.traditional", "nc.openbsd"})
_CLIMB = 40  # how far around a fetching command one is looked for that runs what it fetches
_DEV_TCP = re.compile(r"/dev/(?:tcp|udp)/.+")
_DISK = re.compile(r"/dev/(?:[shv]d[a-z]|xvd|nvme|mmcblk|disk/)\S*")
_EXECUTES = re.compile(r"-[a-zA-Z]*[ec][a-zA-Z]*|--exec|--sh-exec|--lua-exec")


def dangers(command: Command) -> Iterator[Hit]:
    """The patterns of one command."""
    for topic in _topics(command):
        yield _hit(topic, command.node)


def _topics(command: Command) -> Iterator[str]:
    name, words = command.name, command.known()
    if _dangers.is_miner(name) or (name not in _ONLY_SAY and any(map(_dangers.is_miner, words))):
        yield "crypto-miner"
    if _wipes(name, words):
        yield "wipe"
    if _stops(name, words):
        yield "power"
    if name in _NETCAT and any(_EXECUTES.fullmatch(word) for word in words):
        yield "reverse-shell"
    if name == "socat" and any(word.lower().startswith(("exec:", "system:")) for word in words):
        yield "reverse-shell"
    if name not in _ONLY_SAY | _KEEP_KEYS and any(map(_dangers.is_credential, _read(name, words))):
        yield "credentials"


def _read(name: str, words: list[str]) -> Iterator[str]:
    """Files and addresses that a command may read; the key that `scp -i` logs in with is not read out."""
    for before, word in zip(["", *words], words, strict=False):
        if name in {"scp", "sftp", "rsync"} and before == "-i":
            continue
        yield word
        _, equals, value = word.partition("=")
        if equals or word.startswith("@"):
            yield value or word[1:]
        if "=@" in word:
            yield word.partition("=@")[2]


def _wipes(name: str, words: list[str]) -> bool:
    operands = [word for word in words if not word.startswith("-")]
    flags = "".join(word for word in words if word.startswith("-") and not word.startswith("--"))
    recursive = "r" in flags.lower() or any(len(word) > 3 and "--recursive".startswith(word) for word in words)
    if name == "rm":
        return recursive and any(map(_dangers.is_everything, operands))
    if name in {"chmod", "chown", "chgrp"}:
        return ("R" in flags or "--recursive" in words) and any(map(_dangers.is_everything, operands[1:]))
    if name == "find":
        deletes = "-delete" in words or any(
            a in {"-exec", "-execdir"} and b.rpartition("/")[2] in {"rm", "shred", "unlink"} for a, b in pairwise(words)
        )
        roots = [word for word in operands[:1] if words and not words[0].startswith("-")]
        narrowed = any(word in {"-name", "-iname", "-path", "-mtime", "-regex", "-size", "-user"} for word in words)
        return deletes and not narrowed and any(map(_dangers.is_everything, roots))
    if name in {"wipefs", "blkdiscard"}:
        return any(word.startswith("/dev/") for word in operands)
    if name == "shred":
        return any(_DISK.fullmatch(word) for word in operands)
    return name == "mv" and len(operands) > 1 and any(map(_dangers.is_everything, operands[:-1]))


def _stops(name: str, words: list[str]) -> bool:
    if name in _POWER:
        return not {"-c", "--help", "--version", "-k"} & set(words)
    if name in {"init", "telinit"}:
        return any(word in {"0", "6"} for word in words)
    if name == "systemctl":
        return bool(_STOPS & set(words))
    if name == "kill":
        forced = any(word.upper().removeprefix("-").removeprefix("SIG") in {"9", "KILL"} for word in words)
        return forced and bool(words) and words[-1] == "-1"
    return False


class _Commands:
    """The simple commands of a text, each looked at once."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._known: dict[int, Command | None] = {}

    def at(self, node: Node) -> Command | None:
        """The command that a node runs, behind wrappers."""
        if node.id not in self._known:
            self._known[node.id] = command_of(node, self._words)
        return self._known[node.id]


def tree_dangers(source: Source, words: Words) -> Iterator[Hit]:
    """The patterns that several commands make together, or a command and its redirections."""
    known = _Commands(words)
    for node in walk(source.root):
        if node.type == "pipeline" and not is_inner(node):
            yield from _pipeline(node, known)
        elif node.type == "command":
            command = known.at(node)
            runs = _runs_download(node, known) if command is not None and command.name in _FETCHERS else None
            if runs is not None:
                yield _hit("network-shell", runs)
        elif node.type == "redirected_statement":
            yield from _redirected(node, words, known)


def is_inner(pipeline: Node) -> bool:
    """Whether it is the first part of a longer one: where a command has redirections, the grammar nests them."""
    outer = pipeline.parent
    if outer is not None and outer.type == "redirected_statement":
        outer = outer.parent
    return outer is not None and outer.type == "pipeline"


def _pipeline(node: Node, known: _Commands) -> Iterator[Hit]:
    fetched = shell = False
    for part in _parts(node):
        command = known.at(part)
        if command is None:
            continue
        name = command.name
        if name in _NETCAT and shell:
            yield _hit("reverse-shell", node)
            return
        if fetched and _takes_code(name, command):
            yield _hit("network-shell", node)
            return
        fetched = fetched or name in _FETCHERS
        shell = shell or (name in SHELLS and "-i" in command.known())


def _parts(pipeline: Node) -> Iterator[Node]:
    """The commands of a pipeline; where one has redirections, the grammar nests the ones before it."""
    stack = [pipeline]
    while stack:
        node = stack.pop()
        body = node.child_by_field_name("body") if node.type == "redirected_statement" else None
        if node.type == "pipeline":
            stack.extend(reversed(node.named_children))
        elif body is not None and body.type == "pipeline":
            stack.append(body)
        else:
            yield node


def _takes_code(name: str, command: Command) -> bool:
    """Whether what is piped into a command is run as code: a program in its arguments would take it as data."""
    if name not in SHELLS | _INTERPRETERS:
        return False
    program = {"-c", "-m", "-e", "-p", "-n", "-r"} if name in _INTERPRETERS else set()
    for _, text in command.arguments:
        if text in {"-", "/dev/stdin", "-s", "--"}:
            return True
        if text is None or not text.startswith("-") or text[:2] in program:
            return False
        if name in SHELLS and "c" in text.partition("--")[0]:
            return False
    return True


def _runs_download(fetcher: Node, known: _Commands) -> Node | None:
    """The command that runs as code what this one fetches: `bash <(curl …)`, `source <(curl …)`, `eval "$(curl …)"`,
    `sh -c "$(curl …)"`, `bash <<< "$(curl …)"`."""
    substituted = False
    node = fetcher.parent
    for _ in range(_CLIMB):
        if node is None:
            break
        substituted = substituted or node.type in {"process_substitution", "command_substitution"}
        command = known.at(node) if substituted and node.type == "command" else None
        if command is not None and command.name in SHELLS | _INTERPRETERS | {"source", ".", "eval"}:
            return node
        node = node.parent
    return None


def _redirected(node: Node, words: Words, known: _Commands) -> Iterator[Hit]:
    body = node.child_by_field_name("body")
    command = None if body is None else known.at(body)
    for redirect in node.named_children:
        target = words.constant(redirect.child_by_field_name("destination"))
        if redirect.type != "file_redirect" or target is None:
            continue
        if _DEV_TCP.fullmatch(target) and command is not None and command.name in SHELLS:
            yield _hit("reverse-shell", node)
        reads = any(child.type == "<" for child in redirect.children)
        if reads and _dangers.is_credential(target):
            yield _hit("credentials", redirect)


def _hit(topic: str, node: Node) -> Hit:
    return Hit(f"bash.{topic}", node.start_byte, node.end_byte)
