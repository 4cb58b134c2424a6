"""The frames between host and agent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberbox.guest.protocol import MAX_HEADER, MAX_PAYLOAD, PREFIX, FrameDecoder, Header, ProtocolError, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=5,
)
HEADERS = st.builds(
    lambda number, fields: {**fields, "id": number},
    st.integers(min_value=0),
    st.dictionaries(st.text(st.characters()), JSON, max_size=4),
)
FRAMES = st.lists(st.tuples(HEADERS, st.binary()), max_size=5)


def frames_of(decoder: FrameDecoder) -> list[tuple[Header, bytes]]:
    found = []
    while (frame := decoder.next()) is not None:
        found.append(frame)
    return found


def raw(header: bytes, payload: bytes = b"") -> bytes:
    return PREFIX.pack(4 + len(header) + len(payload), len(header)) + header + payload


def decode(data: bytes) -> list[tuple[Header, bytes]]:
    decoder = FrameDecoder()
    decoder.feed(data)
    return frames_of(decoder)


@given(FRAMES, st.lists(st.integers(min_value=1, max_value=50), min_size=1))
def test_frames_come_back_as_they_were_however_they_were_cut(frames: Any, sizes: list[int]) -> None:
    data, decoder, found = b"".join(encode(*frame) for frame in frames), FrameDecoder(), []
    turn = 0
    while data:
        size = sizes[turn % len(sizes)]
        decoder.feed(data[:size])
        found += frames_of(decoder)
        data, turn = data[size:], turn + 1
    assert found == frames


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_half_a_frame_or_nonsense(data: bytes) -> None:
    try:
        for header, _ in decode(data):
            assert header["id"] >= 0
    except ProtocolError:
        pass


def test_half_a_frame_waits_for_its_rest() -> None:
    data = encode({"id": 1}, b"payload")
    decoder = FrameDecoder()
    for end in range(len(data)):
        decoder.feed(data[end : end + 1])
        if end < len(data) - 1:
            assert decoder.next() is None
    assert decoder.next() == ({"id": 1}, b"payload")
    assert decoder.next() is None


def test_the_largest_frame_fits_and_one_byte_more_does_not() -> None:
    ((_, payload),) = decode(encode({"id": 1}, bytes(MAX_PAYLOAD)))
    assert len(payload) == MAX_PAYLOAD
    with pytest.raises(ProtocolError, match="frame too large"):
        encode({"id": 1}, bytes(MAX_PAYLOAD + 1))


def test_the_largest_header_fits_and_one_byte_more_does_not() -> None:
    rest = MAX_HEADER - len(json.dumps({"id": 1, "t": ""}, separators=(",", ":")))
    ((header, _),) = decode(encode({"id": 1, "t": "x" * rest}))
    assert len(header["t"]) == rest
    with pytest.raises(ProtocolError, match="frame too large"):
        encode({"id": 1, "t": "x" * (rest + 1)})


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, 0),
        (3, 0),
        (10, 7),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 2),
        (4 + MAX_HEADER + 1, MAX_HEADER + 1),
        (4 + 2 + MAX_PAYLOAD + 1, 2),
    ],
)
def test_impossible_sizes_are_refused_before_their_bytes_arrive(size: int, header: int) -> None:
    with pytest.raises(ProtocolError, match="impossible frame"):
        decode(PREFIX.pack(size, header))


@pytest.mark.parametrize("header", [b"", b"{", b"nonsense", b"\xff\xfe\xfd", b"[" * 100_000, b'{"id":' + b"1" * 5000])
def test_a_header_that_is_not_json(header: bytes) -> None:
    with pytest.raises(ProtocolError, match="not JSON"):
        decode(raw(header))


@pytest.mark.parametrize(
    "header",
    [
        b"1", b"[]", b"null", b'"id"', b"{}", b'{"id": null}', b'{"id": "1"}', b'{"id": 1.0}', b'{"id": true}',
        b'{"id": -1}',
    ],
)  # fmt: skip
def test_a_header_without_an_id(header: bytes) -> None:
    with pytest.raises(ProtocolError, match="no id"):
        decode(raw(header))


def test_frames_before_the_nonsense_are_given_out() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode({"id": 1}) + raw(b"nonsense"))
    assert decoder.next() == ({"id": 1}, b"")
    with pytest.raises(ProtocolError):
        decoder.next()
