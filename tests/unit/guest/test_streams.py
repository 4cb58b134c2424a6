"""Output is capped and cut between characters."""

from __future__ import annotations

import pytest

from emberbox.guest.streams import Capture, incomplete_suffix


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"abc", 0),
        ("é".encode(), 0),
        ("é".encode()[:1], 1),
        ("€".encode()[:2], 2),
        ("😀".encode()[:3], 3),
        ("😀".encode(), 0),
        (b"\x80\x80\x80\x80", 0),
        (b"\xff", 0),
    ],
)
def test_incomplete_suffix(data: bytes, expected: int) -> None:
    assert incomplete_suffix(data) == expected


def test_a_character_that_comes_in_two_reads_is_passed_on_whole() -> None:
    parts: list[bytes] = []
    capture = Capture(100, parts.append)
    data = "a😀b".encode()
    capture.feed(data[:3])
    capture.feed(data[3:])
    capture.finish()
    assert [part.decode() for part in parts] == ["a", "😀b"]


def test_binary_output_is_not_changed() -> None:
    parts: list[bytes] = []
    capture = Capture(10_000, parts.append)
    data = bytes(range(256)) * 4
    for index in range(0, len(data), 7):
        capture.feed(data[index : index + 7])
    capture.finish()
    assert b"".join(parts) == data


def test_what_is_over_the_limit_is_dropped_and_said_so() -> None:
    parts: list[bytes] = []
    capture = Capture(5, parts.append)
    capture.feed("aaéé".encode())
    capture.feed(b"more")
    capture.finish()
    assert capture.truncated
    assert b"".join(parts).decode() == "aaé"


def test_exactly_the_limit_is_not_truncated() -> None:
    parts: list[bytes] = []
    capture = Capture(4, parts.append)
    capture.feed(b"1234")
    assert (parts, capture.truncated) == ([b"1234"], False)
