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
