"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from emberbox._files import replacing, write_whole


@pytest.mark.parametrize("durable", [False, True])
def test_it_takes_the_place_of_what_was_there(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    write_whole(path, "old", durable=durable)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("old", 0o600)
    with path.open() as reader:
        write_whole(path, b"n\xff", mode=0o644, durable=durable)
        assert reader.read() == "old", "who has it open reads on what it opened"
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"n\xff", 0o644)
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_finished_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fill() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space"):
        fill()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "file").symlink_to(other)
    write_whole(tmp_path / "file", "new")
    assert other.read_text() == "mine"
    assert not (tmp_path / "file").is_symlink()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "no/file", "x")
