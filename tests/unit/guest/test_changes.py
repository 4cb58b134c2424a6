"""Which files an execution changed, as the agent sees it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emberbox.guest import changes
from emberbox.guest.changes import Changes

from .conftest import Client


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where the user can write."""
    monkeypatch.setattr(changes, "ELSEWHERE", ())
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def looker(home: Path) -> Changes:
    settings: Any = SimpleNamespace(home=str(home), workdir=str(home / "work"), uid=0, gid=0, writable=[])
    looker = Changes(settings)
    assert looker.look() is None, "there is nothing to compare the first look with"
    return looker


def named(home: Path, found: dict[str, Any] | None) -> dict[str, list[str]]:
    assert found is not None
    return {kind: [os.path.relpath(path, home) for path in paths] for kind, paths in found.items()}


def test_created_changed_deleted(looker: Changes, home: Path) -> None:
    (home / "a").write_text("1")
    (home / "d/e").mkdir(parents=True)
    (home / "d/e/f").write_text("1")
    assert named(home, looker.look()) == {"created": ["a", "d/e/f"]}
    assert looker.look() == {}
    (home / "a").write_text("2")
    (home / "d/e/f").unlink()
    (home / "d/g").symlink_to("nowhere")
    assert named(home, looker.look()) == {"created": ["d/g"], "changed": ["a"], "deleted": ["d/e/f"]}


def test_a_folder_that_is_removed_or_moved(looker: Changes, home: Path) -> None:
    for name in ("d/a", "d/deep/b", "d/deep/deeper/c"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    looker.look()
    (home / "d").rename(home / "moved")
    assert named(home, looker.look()) == {
        "created": ["moved/a", "moved/deep/b", "moved/deep/deeper/c"],
        "deleted": ["d/a", "d/deep/b", "d/deep/deeper/c"],
    }


def test_a_file_under_the_name_of_another(looker: Changes, home: Path) -> None:
    (home / "a").write_text("1")
    (home / "b").write_text("2")
    looker.look()
    (home / "b").rename(home / "a")
    assert named(home, looker.look()) == {"changed": ["a"], "deleted": ["b"]}
    (home / "a").unlink()
    (home / "a").mkdir()
    (home / "a/x").write_text("")
    assert named(home, looker.look()) == {"created": ["a/x"], "deleted": ["a"]}


def test_rights_are_a_change(looker: Changes, home: Path) -> None:
    (home / "a").write_text("1")
    looker.look()
    (home / "a").chmod(0o700)
    assert named(home, looker.look()) == {"changed": ["a"]}


def test_links_are_not_followed(looker: Changes, home: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (home / "way-out").symlink_to(tmp_path / "outside")
    looker.look()
    (tmp_path / "outside/secret").write_text("")
    assert looker.look() == {}
    (home / "d").mkdir()
    (home / "d/a").write_text("")
    looker.look()
    (home / "d/a").unlink()
    (home / "d").rmdir()
    (home / "d").symlink_to(tmp_path / "outside")
    assert named(home, looker.look()) == {"created": ["d"], "deleted": ["d/a"]}


def test_too_many_files_or_too_deep(looker: Changes, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MOST_FILES", 10)
    for number in range(11):
        (home / str(number)).write_text("")
    assert looker.look() is None
    (home / "0").unlink()
    assert looker.look() is None, "what is there now is the beginning of the next comparison"
    (home / "1").unlink()
    assert named(home, looker.look()) == {"deleted": ["1"]}
    deep = home / "/".join(["d"] * 70)
    deep.mkdir(parents=True)
    assert looker.look() is None


def test_as_many_names_as_there_is_room_for(looker: Changes, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MOST_NAMES", 3)
    for number in range(5):
        (home / str(number)).write_text("")
    found = looker.look()
    assert found is not None
    assert (len(found["created"]), found["more"]) == (3, 2)


def test_compiled_programs_are_the_agents(looker: Changes, home: Path) -> None:
    (home / ".cache/rust-programs/x").mkdir(parents=True)
    (home / ".cache/rust-programs/x/main").write_text("")
    assert looker.look() == {}


def test_the_agent_tells_only_those_who_ask(agent: Client) -> None:
    """What it tells depends on the host's /tmp here; tests/integration/test_policies.py looks at it in a sandbox."""
    assert "changes" in agent.code("1", track=True).final
    assert "changes" not in agent.code("1").final
