"""Whether code deletes, stops, overwrites or forces something: what should not run unless somebody asks for it.

No rule of the policy: `terraform destroy` is fine where it is wanted. Extraction asks this of blocks that nobody asks
to run, in whatever language the text around them is.
"""

from __future__ import annotations

from collections.abc import Iterable

from emberbox.errors import ValidationFailed
from emberbox.languages import LANGUAGES, _javascript_names, _python_names
from emberbox.languages._bash_words import Command, Words, commands
from emberbox.languages._tree import Source
from emberbox.languages.rust import used_paths
from emberbox.models import Language

_RULES = frozenset(
    {"wipe", "power", "network-shell", "network-exec", "fork-bomb", "reverse-shell", "crypto-miner", "rm-rf", "mkfs"}
    | {"dd-device"}
)
"""Rules of the policy, in any language."""
_PROGRAMS = frozenset(
    {"shred", "wipefs", "blkdiscard", "fdisk", "parted", "mkfs", "mke2fs", "kill", "pkill", "killall", "userdel"}
    | {"groupdel", "dropdb", "dropuser", "shutdown", "reboot", "halt", "poweroff", "truncate"}
)
_FLAGS = frozenset(
    {"--force", "--hard", "-delete", "--delete", "-auto-approve", "--auto-approve", "--force-with-lease", "--prune"}
    | {"--overwrite", "--purge", "--no-preserve-root", "--mirror"}
)
_VERBS = frozenset(
    {"destroy", "delete", "drop", "prune", "purge", "uninstall", "rollback", "flushall", "flushdb", "terminate", "wipe"}
    | {"delete-stack", "delete-bucket", "terminate-instances", "force-delete", "rb", "nuke", "rmi", "undo", "downgrade"}
)
_REMOVES = frozenset({"rm", "remove"})
_MANAGERS = frozenset(
    {"docker", "podman", "aws", "gsutil", "git", "apt", "apt-get", "yum", "dnf", "brew", "snap", "helm"}
)
_PYTHON = frozenset({"shutil.rmtree", "os.removedirs", "os.kill", "os.killpg", "signal.pthread_kill"})
_JAVASCRIPT = (
    "module:fs.rm",
    "module:fs/promises.rm",
    "module:fs.promises.rm",
    "module:fs-extra.remove",
    "process.kill",
)


def is_destructive(language: Language, code: str) -> bool:
    """Whether the code does something that cannot be taken back so easily, or that is dangerous by the policy.

    Args:
        language: of the code.
        code: source text; it need not be free of syntax errors.
    """
    spec = LANGUAGES[language]
    try:
        source = spec.source(code)
    except ValidationFailed:
        return True  # nobody knows
    if any(hit.rule.partition(".")[2] in _RULES for hit in spec.hits(source)):
        return True
    if language == "bash":
        return any(map(_is_destructive_command, commands(source, Words(source))))
    return any(_of_other(language, source))


def _of_other(language: Language, source: Source) -> Iterable[bool]:
    if language == "python":
        scope = _python_names.Scope(source, _PYTHON.__contains__)
        return (path in _PYTHON for _, path in scope.references())
    if language in {"javascript", "typescript"}:
        return (path.startswith(_JAVASCRIPT) for _, path in _javascript_names.Scope(source).references())
    return (path.endswith("fs::remove_dir_all") for _, path in used_paths(source, lambda _: False))


def _is_destructive_command(command: Command) -> bool:
    name, words = command.name, command.known()
    verbs = {word.lower() for word in words[:3] if not word.startswith("-")}
    flags = "".join(word[1:] for word in words if word.startswith("-") and not word.startswith("--"))
    if name in _PROGRAMS or name.startswith("mkfs."):
        return name != "kill" or "-l" not in words
    if name == "rm":
        return False  # recursive and forced is a rule of the policy; the rest asks, or is a file or two
    if name in {"chmod", "chown"}:
        return "R" in flags or "--recursive" in words
    if name in {"echo", "printf", "grep", "man"} or "cache" in verbs:
        return False
    composed_down = name in {"docker", "docker-compose"} and "down" in verbs and ("v" in flags or "--volumes" in words)
    pushed = name == "git" and "push" in verbs and "f" in flags
    removed = name in _MANAGERS and bool(_REMOVES & verbs)
    return bool(_FLAGS.intersection(words) or _VERBS & verbs) or composed_down or pushed or removed
