"""Fields of requests are checked."""

from __future__ import annotations

import pytest

from emberbox.guest.fields import RequestError, RequestFields


@pytest.mark.parametrize(
    ("getter", "value"),
    [
        ("text", 1),
        ("text", None),
        ("text", "a\0b"),
        ("flag", 1),
        ("integer", -1),
        ("integer", True),
        ("integer", 1.5),
        ("integer", None),
        ("seconds", 0),
        ("seconds", "1"),
        ("seconds", True),
        ("texts", "ab"),
        ("texts", ["a", 1]),
        ("texts", ["a\0"]),
        ("environment", []),
        ("environment", {"A=B": "x"}),
        ("environment", {"": "x"}),
        ("environment", {"A": 1}),
        ("environment", {"A": "\0"}),
    ],
)
def test_wrong_values_are_bad_requests(getter: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        getattr(RequestFields({"x": value}), getter)("x")
    assert caught.value.kind == "bad_request"


def test_absent_fields_have_their_defaults() -> None:
    fields = RequestFields({})
    assert fields.optional_text("x") is None
    assert fields.flag("x") is False
    assert fields.integer("x", 7) == 7
    assert fields.seconds("x") is None
    assert fields.texts("x") == []
    assert fields.environment("x") == {}
