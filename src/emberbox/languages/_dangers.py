"""What the dangerous patterns of all languages share: files, hosts and programs by name."""

from __future__ import annotations

import posixpath
import re

from emberbox.languages.spec import Restriction

CREDENTIALS = re.compile(
    r"(?:^|.*/)(?:\.aws/(?:credentials|config)|\.ssh/(?:id_\w+|identity)|\.netrc|\.git-credentials|\.pypirc|\.npmrc"
    r"|\.docker/config\.json|\.kube/config|\.config/gcloud(?:/.*)?|\.azure(?:/.*)?|\.gnupg(?:/.*)?"
    r"|\.config/gh/hosts\.yml)"
    r"|(?:/+private)?/+etc/+(?:g?shadow|sudoers)-?|/+proc/+(?:\d+|self|\*|\$\$)/+environ",
    re.DOTALL,
)
"""Files that hold credentials, as a path in full."""
METADATA = re.compile(r"(?:[a-z]+://)?(?:169\.254\.169\.254|metadata\.google\.internal|100\.100\.100\.200)(?:[:/].*)?")
"""Addresses under which cloud machines are given their credentials."""
MINERS = frozenset(
    {"xmrig", "minerd", "cpuminer", "ethminer", "nbminer", "lolminer", "ccminer", "cgminer", "bfgminer", "phoenixminer"}
)
_POOL = re.compile(r"stratum\d?\+(?:tcp|ssl|tls|udp)://\S")
_MINER = re.compile(rf"(?:{'|'.join(sorted(MINERS))})(?:[-_.\d].*)?", re.IGNORECASE)
_WORK_FOLDER = re.compile(r"(?:~|/home/user|/tmp|/dev/shm|/workspace|/mnt/data|/app|/data|/testbed|/logs)(?=/|$)")
_WORK_FOLDERS = re.compile(rf"(?:{_WORK_FOLDER.pattern}(?:/.*)?|/dev/(?:stdin|stdout|stderr|null))", re.DOTALL)
_WIPED = re.compile(
    r"/|~|~root|/(?:bin|boot|dev|etc|home|lib|lib32|lib64|opt|proc|root|sbin|srv|sys|usr|var)|/home/\w+"
)


def is_credential(text: str) -> bool:
    """Whether a path or an address is one that credentials are read from."""
    return CREDENTIALS.fullmatch(text) is not None or METADATA.fullmatch(text) is not None


def is_miner(text: str) -> bool:
    """Whether a word names a crypto miner or its pool."""
    if _POOL.search(text):
        return True
    base = posixpath.basename(text.rstrip("/")).removesuffix(".git").removesuffix(".exe")
    return "\n" not in base and _MINER.fullmatch(base) is not None


def is_in_work_folders(path: str) -> bool:
    """Whether a path is one that programs in a sandbox use: relative and not upwards, or below the home directory, /tmp
    and the folders that templates offer, or a standard stream."""
    plain = posixpath.normpath(path)
    if plain.startswith(("/", "~")):
        return _WORK_FOLDERS.fullmatch(plain) is not None
    return plain != ".." and not plain.startswith("../")


def names_a_folder(path: str) -> bool:
    """Whether a path leads to something of its own below the folders to work in, not to all that is there."""
    plain = posixpath.normpath(path)
    if not is_in_work_folders(path) or plain == ".":
        return False
    below = _WORK_FOLDER.sub("", plain) if plain.startswith(("/", "~")) else plain
    return any(re.search(r"[^*?.\[\]{},]", part) for part in below.split("/") if part)


def is_everything(path: str) -> bool:
    """Whether to delete this path is to delete the system, or everything that a person has."""
    if not path:
        return False
    plain = path
    for ending in ("/*", "/.*", "/.", "/{*,.*}"):
        plain = plain.removesuffix(ending) or "/"
    plain = "/" + plain.lstrip("/") if plain.startswith("/") else plain
    return _WIPED.fullmatch(plain.rstrip("/") or "/") is not None


def danger(language: str, topic: str) -> Restriction:
    """The rule of one topic for one language."""
    description, why = _TOPICS[topic]
    return Restriction(f"{language}.{topic}", description, why, group="danger")


_TOPICS = {
    "wipe": ("deletes the whole system or a whole home", "nothing is left for the steps that follow"),
    "power": ("stops the machine or every process", "the sandbox ends with everything in it"),
    "network-shell": ("runs what comes from the network in a shell", "nobody has seen that code"),
    "network-exec": ("executes code that comes from the network", "nobody has seen that code"),
    "crypto-miner": ("mines crypto-currency", "it uses up the machine for somebody else"),
    "credentials": ("reads credentials", "code that a model wrote has no business with them"),
    "reverse-shell": ("opens a shell to somebody outside", "whoever is there can do anything"),
    "fork-bomb": ("starts processes without end (a fork bomb)", "this takes every process there is"),
}
