"""What a Bash block makes and needs, from its commands."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING

from emberbox._extraction.needs import Needs, word_set
from emberbox.languages import LANGUAGES
from emberbox.languages._bash_words import Command, Words, commands
from emberbox.languages._tree import Source, walk

if TYPE_CHECKING:
    from tree_sitter import Node

_INTERPRETERS = frozenset({"python", "python3", "node", "bash", "sh", "ruby", "perl", "php", "Rscript", "zsh"})
_NO_FILES = word_set(
    """
    echo printf pip pip3 uv touch mkdir tee export curl wget ping dig nslookup host whois apt apt-get git sed awk
    test [ [[ expr find basename dirname set trap return exit type command which man mkfs
    """
)
_FILE = re.compile(r"(?!\d)(?:\./)?[\w-][\w.-]*(?:/[\w.-]+)*\.[A-Za-z]\w{0,5}")
_WRITES_WITH_O = frozenset({"sort", "shuf", "gcc", "g++", "cc", "clang", "rustc", "openssl"})
_MAKERS = frozenset({"touch", "mkdir", "tee", "cp", "mv", "ln"})
_OF_THE_MACHINE = word_set(
    """
    ssh ssh-keygen ssh-copy-id ssh-add scp rsync docker docker-compose podman kubectl helm terraform ansible aws
    gcloud az heroku vercel netlify firebase flyctl gh systemctl service journalctl ufw firewall-cmd crontab chsh
    usermod useradd passwd mount umount lsblk fdisk nmcli ifconfig iptables brew choco winget scoop yum dnf pacman
    snap flatpak zypper apt apt-get dpkg npm npx yarn pnpm bun ng rails bundle gem django-admin composer artisan
    mvn gradle ./gradlew flutter dart dotnet xcodebuild adb open xdg-open code vim vi nano emacs conda mamba
    poetry pipenv pyenv nvm rbenv virtualenv streamlit uvicorn gunicorn flask celery scrapy jupyter pytest tox
    ruff mypy mysql psql mongo mongosh redis-cli sqlplus swift go make cmake deno ollama nvidia-smi tmux screen
    hugo expo lsof kill pkill killall netstat top htop reboot git cargo pre-commit alembic twine black isort
    eslint prettier tsc jest vite webpack playwright
    """
)
# Commands that read files, with the letters of their options that take a value, and how many operands come before the
# files.
_FILE_READERS = {
    "cat": ("", 0), "tac": ("", 0), "nl": ("bdfhilnpsvw", 0), "head": ("nc", 0), "tail": ("ncs", 0), "wc": ("", 0),
    "sort": ("kotST", 0), "uniq": ("fsw", 0), "cut": ("bcdf", 0), "paste": ("d", 0), "rev": ("", 0), "fold": ("w", 0),
    "less": ("", 0), "more": ("", 0), "od": ("AjNtw", 0), "xxd": ("clsg", 0), "hexdump": ("ens", 0),
    "strings": ("n", 0), "file": ("", 0), "stat": ("cf", 0), "md5sum": ("", 0), "sha256sum": ("", 0), "shuf": ("no", 0),
    "comm": ("", 0), "diff": ("U", 0), "cmp": ("n", 0), "join": ("12aetov", 0),
    "grep": ("ABCmef", 1), "egrep": ("ABCmef", 1), "fgrep": ("ABCmef", 1), "zgrep": ("ABCmef", 1), "sed": ("ef", 1),
    "awk": ("Fvf", 1), "gawk": ("Fvf", 1), "jq": ("f", 1), "iconv": ("ft", 0), "column": ("s", 0),
}  # fmt: skip
_GLOB = re.compile(r"\*\.[A-Za-z]\w{0,5}")
"""Files of one kind, whatever they are called."""
_LOOKS_FIRST = re.compile(r"\[\[? (?:! )?-[ef] |\bnullglob\b")
_BARE = re.compile(r"[A-Za-z_][\w-]*")
_HOST = re.compile(r"\.(?:com|org|net|io|dev|example|local|gov|edu)$|\.(?:service|timer|socket)$")
_HARMLESS = re.compile(r"--?version|-V|--help|version")
_GIT_ANYWHERE = frozenset({"init", "clone", "config", "--version", "version", "help"})
_ASKS = re.compile(r"(?:^|[;&|\n]\s*)(?:read\s+(?:-\w+\s+)*-\w*p|select\s+\w+\s+in\b)", re.MULTILINE)
_LOCAL = re.compile(r"(?:https?://)?(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\w+\.local)(?=[:/]|$)")
_OWN_FOLDER = re.compile(
    r"(?:~|\$HOME|\$\{HOME\})(?:/?$|/(?!\.cache)\w|/\.(?:bash|zsh|ssh|config|profile))|/etc/\w|/var/(?:www|log)|/home/\w"
)
_ACTIVATES = re.compile(r"[\w./-]*/bin/activate")
_SILENT = frozenset({"function_definition", "variable_assignment", "variable_assignments"})
_VARIABLE_ONLY = frozenset({"export", "alias", "unset"})


def bash_needs(code: str) -> Needs:
    """Reads one block."""
    source = Source(code, LANGUAGES["bash"].parse(code))
    found = list(commands(source, Words(source)))
    makes = _makes(source, found)
    nodes = list(walk(source.root))
    functions = {
        source.text(name)
        for node in nodes
        if node.type == "function_definition" and (name := node.child_by_field_name("name")) is not None
    }
    made = {name.partition("/")[0] for name in makes} | makes
    own = next((word for command in found if (word := _of_the_machine(command, source, made))), "")
    if not own and found and all(command.name in _VARIABLE_ONLY for command in found):
        own = source.text(found[0].node)[:60]
    declares = all(child.type == "declaration_command" for child in source.root.named_children)
    if not own and declares and code.lstrip().startswith("export"):
        own = "export"
    asks = _ASKS.search(code)
    top = [node for node in source.root.named_children if node.type != "comment"]
    runs = any(node.type in {"command_substitution", "process_substitution"} for node in nodes)
    wanted = [*map(_reads, found), *(name for command in found for name in _bare_operands(command))]
    if not _LOOKS_FIRST.search(code):
        wanted += [source.text(node) for node in nodes if node.type == "word" and _GLOB.fullmatch(source.text(node))]
    return Needs(
        defines=frozenset(_assigned(source, top)),
        functions=frozenset(functions),
        files=tuple(name for name in dict.fromkeys(wanted) if name and not _has(name, made)),
        makes=frozenset(makes),
        acts=any(node.type not in {"function_definition", "comment"} for node in source.root.named_children),
        waits=asks[0].strip(" ;&|\n") if asks is not None else "",
        machine=own,
        changes=bool(makes) or any(_edits(command) for command in found),
        uses=frozenset(
            [command.name for command in found] + [source.text(node) for node in nodes if node.type == "variable_name"]
        ),
        silent=bool(top) and all(node.type in _SILENT for node in top) and not (runs and _assigned(source, top)),
    )


def _edits(command: Command) -> bool:
    """Whether a command changes a file in place."""
    words = command.known()
    if command.name in {"sed", "perl"}:
        return any(re.match(r"-\w*i|--in-place", word) for word in words)
    return command.name == "patch" or (command.name == "git" and words[:1] == ["apply"])


def _assigned(source: Source, top: list[Node]) -> set[str]:
    """The variables that a block sets at its top."""
    names: set[str] = set()
    for node in top:
        inner = [node] if node.type == "variable_assignment" else node.named_children if node.type in _SILENT else []
        found = (one.child_by_field_name("name") for one in inner if one.type == "variable_assignment")
        names |= {source.text(name) for name in found if name is not None}
    return names


def _bare_operands(command: Command) -> list[str]:
    """Words without a dot or a slash that a command reads as files: the f of `head -n 10 f`."""
    if command.name not in _FILE_READERS:
        return []
    valued, before = _FILE_READERS[command.name]
    operands: list[str | None] = []
    skips = False
    for _, word in command.arguments:
        if skips:
            skips = False
        elif word is not None and word.startswith("-") and len(word) > 1:
            skips = not word.startswith("--") and word[-1] in valued and not word[1:-1].isdigit()
            before -= before > 0 and command.name != "awk" and word[:2] in {"-e", "-f"}
        else:
            operands.append(word)
    files = operands[before : 1 if command.name in {"uniq", "xxd"} else None]
    # the program of awk or sed may look like a file; what follows it is one
    program = command.name in _NO_FILES
    return [word for word in files if word and (_BARE.fullmatch(word) or (program and _FILE.fullmatch(word)))]


def _has(name: str, made: set[str]) -> bool:
    name = name.removeprefix("./")
    if name.startswith("*") and any(fnmatchcase(one, name) or "$" in one or "{" in one for one in made):
        return True
    return name in made or name.partition("/")[0] in made


def _makes(source: Source, found: list[Command]) -> set[str]:
    makes: set[str] = set()
    for node in walk(source.root):
        if node.type == "file_redirect" and ">" in source.text(node)[:3]:
            target = node.child_by_field_name("destination")
            if target is not None:
                makes.add(source.text(target).strip("\"'"))
    for command in found:
        words = [word for word in command.known() if not word.startswith("-")]
        if command.name in _MAKERS:
            makes.update(words if command.name in {"touch", "mkdir", "tee"} else words[-1:])
        elif command.name == "git" and words[:1] == ["clone"] and len(words) > 1:
            makes.add(words[-1].rstrip("/").rpartition("/")[2].removesuffix(".git"))
        elif command.name == "git" and words[:1] == ["init"]:
            makes.update({".git", *words[1:]})
        elif command.name == "dd":
            makes.update(word[3:] for word in words if word.startswith("of="))
        elif command.name in {"curl", "wget"}:
            makes.update(_downloaded(command))
        elif command.name in _WRITES_WITH_O:
            makes.update(after for flag, after in pairwise(command.known()) if flag in {"-o", "-out", "--output"})
        elif command.name == "cargo" and words[:1] in (["new"], ["init"]):
            makes.update({"Cargo.toml", *words[1:2]})
    return {name.removeprefix("./").rstrip("/") for name in makes}


def _downloaded(command: Command) -> set[str]:
    words = command.known()
    named = {after for flag, after in pairwise(words) if flag in {"-o", "-O", "--output"}}
    return named | {word.rpartition("/")[2] for word in words if "://" in word}


def _reads(command: Command) -> str:
    """The file of the reader's own that a command cannot do without."""
    words = command.known()
    plain = [word for word in words if not word.startswith("-")]
    if command.name == "cd":
        return plain[0] if plain and re.fullmatch(r"\w[\w./-]*", plain[0]) else ""
    if command.name in _NO_FILES:
        return ""
    if command.name in _INTERPRETERS and (not words or words[0].startswith("-")):
        return ""
    return next((word for word in plain if _FILE.fullmatch(word) and not _HOST.search(word)), "")


def _of_the_machine(command: Command, source: Source, made: set[str]) -> str:  # noqa: PLR0911 - one per kind
    """The words of a command that is about somebody's own machine, repository or service."""
    words = command.known()
    text = " ".join([command.name, *words])[:60]
    if words and _HARMLESS.fullmatch(words[0]):
        return ""
    if command.name == "git":
        return "" if ".git" in made or (words and words[0] in _GIT_ANYWHERE) or _cloned(made, words) else text
    if command.name == "cargo":
        return "" if "Cargo.toml" in made or words[:1] == ["new"] else text
    if command.name in _OF_THE_MACHINE:
        return text
    if source.text(command.node).lstrip().startswith("sudo "):
        return text if command.name == "sudo" else f"sudo {text}"
    if command.name in _INTERPRETERS and words and words[0].rpartition("/")[2] == "manage.py":
        return text
    if command.name in {"source", "."} and words and _ACTIVATES.fullmatch(words[0]):
        return text
    if any(_LOCAL.match(word) for word in words) and command.name in {"curl", "wget", "http"}:
        return text
    known = "" if _HOME_MADE.search(text) else text
    return known if any(_OWN_FOLDER.match(word) for word in words) else ""


_HOME_MADE = re.compile(r"^(?:mkdir|echo|ls|df|du)\b")


def _cloned(made: set[str], words: list[str]) -> bool:
    return bool(made) and "-C" in words
