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


def captured(limit: int, *pieces: bytes) -> tuple[bytes, Capture]:
    parts: list[bytes] = []
    capture = Capture(limit, parts.append)
    for piece in pieces:
        capture.feed(piece)
    capture.finish()
    return b"".join(parts), capture


@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
def test_output_over_the_limit_keeps_its_beginning_and_its_end(size: int) -> None:
    data = b"".join(b"line %d\n" % number for number in range(20_000)) + "RESULT 42 é\n".encode()
    kept, capture = captured(4096, *[data[at : at + size] for at in range(0, len(data), size)])
    assert capture.truncated
    assert len(kept) <= 4096
    beginning, _, rest = kept.partition(b"\n[... ")
    missing, _, end = rest.partition(b" bytes left out ...]\n")
    assert data.startswith(beginning)
    assert data.endswith(end)
    assert len(end) > 900
    assert len(beginning) > 3000
    assert len(beginning) + int(missing.replace(b",", b"")) + len(end) == len(data)


def test_output_up_to_the_limit_is_whole() -> None:
    for size in (3000, 3071, 3072, 3073, 4000, 4095, 4096):
        data = bytes(n % 251 for n in range(size))
        kept, capture = captured(4096, data[:100], data[100:])
        assert (kept, capture.truncated) == (data, False)
    kept, capture = captured(4096, b"x" * 4097)
    assert capture.truncated
    assert b" bytes left out " in kept


def test_characters_are_whole_on_both_sides_of_the_mark() -> None:
    for shift in range(4):
        kept, _ = captured(4096, b"a" * shift + "😀".encode() * 5000)
        assert "�" not in kept.decode("utf-8", "replace")
