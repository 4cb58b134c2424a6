"""The audit chain: one link for every change of the history, each with the hash of the one before. Pure: no database.

A link holds the hash of the entry's content as it was after the change. So whoever edits, removes or reorders entries
or links later must rewrite every link from there on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from emberbox.models import BadLink

START = "0" * 64
"""The hash before the first link."""
PRUNED = "pruned"
"""The event of an entry that retention dropped."""


@dataclass(frozen=True, slots=True)
class Link:
    """One change: `event` is the state that the entry got, or `pruned`."""

    sequence: int
    entry_id: str
    event: str
    at: str
    content: str
    previous: str
    hash: str

    @classmethod
    def after(cls, head: Head, entry_id: str, event: str, at: str, content: str) -> Link:
        fields: dict[str, Any] = {
            "sequence": head.sequence + 1,
            "entry_id": entry_id,
            "event": event,
            "at": at,
            "content": content,
            "previous": head.hash,
        }
        return cls(**fields, hash=digest(fields))

    def own_hash(self) -> str:
        """What `hash` must be."""
        fields = asdict(self)
        del fields["hash"]
        return digest(fields)


@dataclass(frozen=True, slots=True)
class Head:
    """The last link."""

    sequence: int = 0
    hash: str = START


def digest(fields: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON. Fields that are None are left out, so that later versions may add fields."""
    present = {key: value for key, value in fields.items() if value is not None}
    text = json.dumps(present, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Verifier:
    """Takes all links, then all entries, and knows the first link that is wrong.

    `noted` is the head of an earlier check: a chain that was cut or rewritten since does not have it.
    """

    def __init__(self, noted: str | None = None) -> None:
        self._noted = None if noted in (None, START) else noted
        self.head = Head()
        self.links = 0
        self.entries = 0
        self.bad: BadLink | None = None
        self._last: dict[str, Link] = {}

    def take_links(self, links: Iterable[Link]) -> None:
        """Links in the order of their sequence."""
        for link in links:
            self.links += 1
            self._check(link)
            if link.hash == self._noted:
                self._noted = None
            self.head = Head(link.sequence, link.hash)
            self._last[link.entry_id] = link

    def _check(self, link: Link) -> None:
        if link.sequence != self.head.sequence + 1:
            self._found(link, f"link {self.head.sequence + 1} is missing")
        elif link.previous != self.head.hash:
            self._found(link, "it does not follow from the link before it")
        elif link.hash != link.own_hash():
            self._found(link, "the link was changed")

    def take_entry(self, entry_id: str, content: str) -> None:
        """An entry that is there, with the hash of what it holds now."""
        self.entries += 1
        last = self._last.pop(entry_id, None)
        if last is None:
            if self.bad is None:
                self.bad = BadLink(sequence=None, execution_id=entry_id, why="no link knows this entry")
        elif last.event == PRUNED:
            self._found(last, "the entry is there although it was dropped")
        elif last.content != content:
            self._found(last, "the entry was changed")

    def finish(self) -> BadLink | None:
        """The first bad link, when all links and entries were given."""
        for link in self._last.values():
            if link.event != PRUNED:
                self._found(link, "the entry is missing")
        if self._noted is not None and self.bad is None:
            self.bad = BadLink(sequence=None, execution_id=None, why=f"no link has the noted hash {self._noted:.80}")
        return self.bad

    def _found(self, link: Link, why: str) -> None:
        if self.bad is None or self.bad.sequence is None or link.sequence < self.bad.sequence:
            self.bad = BadLink(sequence=link.sequence, execution_id=link.entry_id, why=why)
