"""What a guest or a client may send, at random: it is understood or refused, and nothing else happens.

What was found so far stays in the examples.
"""

from __future__ import annotations

import inspect
import json
import os
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from emberbox.errors import ExecutionFailed, ValidationFailed
from emberbox.guest.protocol import FrameDecoder, Header, ProtocolError, encode
from emberbox.models import EntryInfo, service
from emberbox.models.base import Model
from emberbox.sandbox.files import _entry
from emberbox.sandbox.snapshots.file_trees import _parsed
from emberbox.server import messages
from emberbox.server.wire import parse

texts = st.text(st.characters(codec=None), max_size=20)
"""Halves of surrogate pairs and NUL included."""
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
frames = st.lists(
    st.tuples(st.dictionaries(st.text(max_size=8), values, max_size=3), st.binary(max_size=60)), min_size=1, max_size=5
)
MODELS = sorted(
    {
        kind
        for module in (service, messages)
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Model) and kind is not Model
    },
    key=lambda kind: kind.__qualname__,
)


def decoded(pieces: list[bytes], *, padded: bool) -> tuple[list[tuple[Header, bytes]], bool]:
    """The frames, and whether the last thing was nonsense."""
    decoder = FrameDecoder(padded=padded)
    found: list[tuple[Header, bytes]] = []
    try:
        for piece in pieces:
            decoder.feed(piece)
            while (frame := decoder.next()) is not None:
                found.append(frame)
    except ProtocolError:
        return found, True
    return found, False


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6), st.booleans())
@example(b"\xff" * 20, [], True)
@example(b"\0\0\0\4\0\0\0\0", [4], False)
@example(b"\0\0\0\6\0\0\0\2[]", [], False)
@example(b'\0\0\0\x0c\0\0\0\x08{"id":-1}', [], False)
def test_any_bytes_are_frames_or_nonsense_however_they_are_cut(data: bytes, places: list[int], padded: bool) -> None:
    assert decoded([data], padded=padded) == decoded(cut(data, places), padded=padded)


@settings(max_examples=150, deadline=None)
@given(frames, st.lists(st.integers(0, 2000), max_size=6), st.integers(0, 5000), st.integers(0, 255))
def test_frames_with_a_wrong_byte_are_frames_or_nonsense(
    sent: list[tuple[dict[str, Any], bytes]], places: list[int], at: int, byte: int
) -> None:
    whole = [({**header, "id": number}, payload) for number, (header, payload) in enumerate(sent)]
    data = b"".join(encode(header, payload) for header, payload in whole)
    read, broken = decoded(cut(data, places), padded=False)
    assert not broken
    assert [payload for _, payload in read] == [payload for _, payload in whole]
    wrong = bytearray(data)
    wrong[at % len(data)] = byte
    found, _ = decoded(cut(bytes(wrong), places), padded=False)
    assert all(type(header["id"]) is int for header, _ in found)


@settings(max_examples=200, deadline=None)
@given(values, texts)
@example({"path": "\ud800", "type": "file"}, "")
@example({"path": "/x", "type": "symlink", "target": "\udfff", "mtime": float("inf"), "size": 1 << 80}, "")
def test_a_description_of_a_file_is_understood_or_refused(value: Any, path: str) -> None:
    for one in (value, {"path": path, "type": "symlink", "target": path, "size": value, "mode": value, "mtime": value}):
        try:
            entry = _entry(one)
        except ExecutionFailed:
            continue
        assert EntryInfo.model_validate_json(entry.model_dump_json()) == entry
        os.fsencode(entry.path)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(values, max_size=7), max_size=4) | values)
@example([["/\ud800", "file", 1, 1, "m", None]])
@example([["/x", "file", 1, 1, "m", ["y"]]])
def test_a_tree_is_understood_or_refused(rows: Any) -> None:
    try:
        found = _parsed(json.dumps(rows).encode())
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError):
        return  # all of them are "is not valid"
    for path in found:
        os.fsencode(path)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__qualname__)
def test_any_json_is_a_request_or_refused(model: type[Model]) -> None:
    names = st.sampled_from([*model.model_fields, "?"])

    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(st.dictionaries(names, values, max_size=6) | values)
    def check(value: Any) -> None:
        try:
            request = model.model_validate(parse(json.dumps(value)))
        except (ValidationFailed, ValidationError):
            return
        assert model.model_validate_json(request.model_dump_json()) == request

    check()


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name))
@example(b"\xed\xa0\x80")
@example(b"caf\xe9")
def test_any_name_of_a_file_comes_back_from_json(name: bytes) -> None:
    path = os.fsdecode(name)
    request = service.PathRequest(path=path)
    written = request.model_dump_json()
    assert os.fsencode(service.PathRequest.model_validate(parse(written)).path) == name
