"""Reading what the user points at."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from emberbox import Settings
from emberbox.cli.inputs import read_input
from emberbox.errors import ValidationFailed


@pytest.fixture
def small(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path, max_input_bytes=1024)


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def write(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "answer.md"
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("text", ["x", "é 中 😀\n", "a\r\nb\r\n", "x" * 1024])
def test_text_is_read_as_it_is(small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert read_input(write(tmp_path, text.encode()), small) == text
    stdin(monkeypatch, text.encode())
    assert read_input("-", small) == text


def test_a_byte_order_mark_is_no_text(small: Settings, tmp_path: Path) -> None:
    assert read_input(write(tmp_path, b"\xef\xbb\xbfx"), small) == "x"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"ab\xff", r"is not UTF-8 text \(byte 2\)"),
        (b"x" * 1025, "is longer than 1024 bytes"),
    ],
)
def test_what_cannot_be_taken_is_named(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, words: str
) -> None:
    with pytest.raises(ValidationFailed, match=rf"answer\.md {words}"):
        read_input(write(tmp_path, data), small)
    stdin(monkeypatch, data)
    with pytest.raises(ValidationFailed, match=f"^standard input {words}"):
        read_input("-", small)


def test_an_endless_input_is_refused(small: Settings) -> None:
    with pytest.raises(ValidationFailed, match="longer than"):
        read_input("/dev/zero", small)


def test_a_file_that_is_not_there_or_is_none(small: Settings, tmp_path: Path) -> None:
    with pytest.raises(ValidationFailed, match=r"Cannot read .*/gone: No such file"):
        read_input(str(tmp_path / "gone"), small)
    with pytest.raises(ValidationFailed, match=r"Cannot read .*: Is a directory"):
        read_input(str(tmp_path), small)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(small: Settings, tmp_path: Path) -> None:
    name = write(tmp_path, b"x")
    Path(name).chmod(0)
    with pytest.raises(ValidationFailed, match="Permission denied"):
        read_input(name, small)
