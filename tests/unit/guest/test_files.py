"""File operations of the agent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from emberbox.guest.protocol import CHUNK_SIZE

from .conftest import Client


def test_a_file_comes_back_as_it_was_written(agent: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "folder" / "data.bin")
    data = os.urandom(CHUNK_SIZE + 1000)
    assert agent.call("write", data[:CHUNK_SIZE], path=path, upload="u", offset=0).final["ev"] == "done"
    assert not Path(path).exists()
    final = agent.call("write", data[CHUNK_SIZE:], path=path, upload="u", offset=CHUNK_SIZE, final=True).final
    assert final["size"] == len(data)
    first = agent.call("read", path=path, offset=0, length=CHUNK_SIZE)
    assert (first.final["size"], first.final["eof"]) == (len(data), False)
    ident = first.final["ident"]
    second = agent.call("read", path=path, offset=CHUNK_SIZE, length=CHUNK_SIZE, ident=ident)
    assert second.final["eof"]
    assert first.payload + second.payload == data
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["data.bin"]


def test_relative_paths_start_in_the_work_directory(agent: Client) -> None:
    agent.call("write", b"x", path="relative.txt", upload="u", offset=0, final=True)
    assert agent.code("open('relative.txt').read()").main == {"text/plain": "'x'"}


def test_a_file_that_was_exchanged_while_it_is_read_is_an_error(agent: Client, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    ident = agent.call("read", path=str(path), offset=0, length=10).final["ident"]
    (tmp_path / "g").write_text("new")
    (tmp_path / "g").rename(path)
    assert agent.call("read", path=str(path), offset=3, length=10, ident=ident).final["errno"] == "ESTALE"


def test_reading_what_is_no_file_does_not_block(agent: Client, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert agent.call("read", path=str(tmp_path / "fifo"), offset=0, length=1).final["errno"] == "EINVAL"
    assert agent.call("read", path=str(tmp_path), offset=0, length=1).final["errno"] == "EISDIR"
    assert agent.call("read", path="/dev/zero", offset=0, length=1).final["errno"] == "EINVAL"
    assert agent.call("read", path=str(tmp_path / "none"), offset=0, length=1).final["errno"] == "ENOENT"


def test_writing_keeps_the_mode_and_follows_links(agent: Client, tmp_path: Path) -> None:
    target, link = tmp_path / "script", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o750)
    link.symlink_to(target)
    agent.call("write", b"new", path=str(link), upload="u", offset=0, final=True)
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o750
    agent.call("write", b"new", path=str(target), upload="u", offset=0, final=True, mode=0o600)
    assert target.stat().st_mode & 0o777 == 0o600


def test_an_aborted_upload_leaves_nothing(agent: Client, tmp_path: Path) -> None:
    agent.call("write", b"part", path=str(tmp_path / "f"), upload="u", offset=0)
    agent.call("write_abort", path=str(tmp_path / "f"), upload="u")
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize("token", ["", "../x", "a/b", "x" * 65])
def test_upload_tokens_cannot_name_paths(agent: Client, tmp_path: Path, token: str) -> None:
    final = agent.call("write", b"x", path=str(tmp_path / "f"), upload=token, offset=0, final=True).final
    assert final["kind"] == "bad_request"


def test_list_and_stat(agent: Client, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "inner").write_text("12345")
    (tmp_path / "a").symlink_to("nowhere")
    flat = json.loads(agent.call("list", path=str(tmp_path), depth=1, limit=10).payload)
    assert [(entry["name"], entry["type"]) for entry in flat] == [("a", "symlink"), ("b", "dir")]
    deep = agent.call("list", path=str(tmp_path), depth=5, limit=10)
    assert [entry["path"] for entry in json.loads(deep.payload)] == [
        str(tmp_path / name) for name in ("a", "b", "b/inner")
    ]
    assert not deep.final["truncated"]
    assert agent.call("list", path=str(tmp_path), depth=5, limit=2).final["truncated"]
    entry = agent.call("stat", path=str(tmp_path / "a")).final["entry"]
    assert (entry["type"], entry["target"]) == ("symlink", "nowhere")
    assert agent.call("list", path=str(tmp_path / "none"), depth=3, limit=5).final["errno"] == "ENOENT"


def test_names_that_are_not_unicode_survive(agent: Client, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).write_text("x")
    (entry,) = json.loads(agent.call("list", path=str(tmp_path), depth=1, limit=5).payload)
    assert os.fsencode(entry["name"]) == b"caf\xe9"
    assert agent.call("read", path=entry["path"], offset=0, length=5).payload == b"x"


def test_directories_are_made_renamed_and_removed(agent: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "a" / "b")
    assert agent.call("mkdir", path=path).final["created"]
    assert not agent.call("mkdir", path=path).final["created"]
    (tmp_path / "a" / "b" / "f").write_text("x")
    assert agent.call("rename", path=path, to=str(tmp_path / "c")).final["ev"] == "done"
    assert agent.call("remove", path=str(tmp_path / "c")).final["ev"] == "done"
    assert agent.call("remove", path=str(tmp_path / "a")).final["ev"] == "done"
    assert [path.name for path in tmp_path.iterdir()] == []
    assert agent.call("remove", path=str(tmp_path / "a")).final["errno"] == "ENOENT"


def test_removing_a_link_leaves_what_it_names(agent: Client, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    agent.call("remove", path=str(tmp_path / "link"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
