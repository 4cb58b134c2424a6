"""JSON of clients: how much of it is taken."""

from __future__ import annotations

import json

import pytest

from emberbox.errors import ValidationFailed
from emberbox.server import wire


@pytest.mark.parametrize(
    "value",
    [{str(i): i for i in range(25_001)}, [0] * 25_001, {"args": [[0] * 1000] * 26}],
    ids=["keys", "list", "lists"],
)
def test_too_many_values_are_refused_in_words(value: object) -> None:
    with pytest.raises(ValidationFailed, match="more than 25,000 values"):
        wire.parse(json.dumps(value))


def test_long_text_and_many_values_are_taken() -> None:
    value = {"code": "x" * 1_000_000, "args": ["a"] * 20_000}
    assert wire.parse(json.dumps(value)) == value
