"""Where a secret was found."""

from __future__ import annotations

from typing import NamedTuple

MAX_VALUE = 4096
"""Characters of the longest value of a name (`password=…`) that is taken as one secret."""


class Found(NamedTuple):
    """A secret: `text[start:end]`. `text[begin:stop]` is what tells that it is one, and must not be cut."""

    start: int
    end: int
    slug: str
    begin: int
    stop: int
