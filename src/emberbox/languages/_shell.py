"""What code of another language hands to a shell, or to the system, is looked at as Bash."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from emberbox.languages import bash

_LONGEST = 20_000
_DANGERS = frozenset(rule.id for rule in bash.SPEC.dangers)


def shell_rules(code: str) -> Iterator[str]:
    """Ids of the dangerous patterns in a text that is handed to a shell."""
    for rule in dict.fromkeys(hit.rule for hit in bash.SPEC.hits(bash.SPEC.source(code[:_LONGEST]))):
        if rule in _DANGERS:
            yield rule


def argument_rules(words: Sequence[str | None]) -> Iterator[str]:
    """The same of a program and its arguments, as they are handed to the system; None where only running tells."""
    yield from shell_rules(shlex.join("x" if word is None else word for word in words))
