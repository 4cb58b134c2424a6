"""runsc from its Go module, with a shell script in place of Go. (The real build is what `./ember test` runs first.)"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emberbox import Settings
from emberbox.errors import VmNotAvailable
from emberbox.machines.gvisor.build import build_runsc, built_runsc, label, module_version
from emberbox.machines.gvisor.runsc import Runsc

GO = """#!/bin/sh
[ -f go.mod ] && [ -f go.sum ] || exit 9
case $1 in
    list) printf 'a\nb\nc\n'; exit $LIST_STATUS ;;
    build) printf 'a\nb\n' >&2; [ -z "$BUILD_STATUS" ] || { echo 'no space left' >&2; exit 1; }; echo made >runsc ;;
esac
"""


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin/go"
    program.parent.mkdir()
    program.write_text(GO)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("LIST_STATUS", "0")
    return program


@pytest.fixture
def own_settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache")


def test_the_version_is_pinned_and_its_label_names_the_day() -> None:
    assert module_version().startswith("v0.0.0-20")
    assert Runsc(Path("x"), label(), "").date > 20260101


def test_it_is_built_once_and_progress_is_told(go: Path, own_settings: Settings) -> None:
    told: list[str] = []
    path = build_runsc(own_settings, told.append)
    assert path == built_runsc(own_settings)
    assert path.read_text() == "made\n"
    assert path.stat().st_mode & 0o777 == 0o755
    assert told == [f"fetching gVisor {module_version()} and what it needs", "compiling package 1 of 3"]
    go.unlink()
    assert build_runsc(own_settings, told.append) == path
    assert [entry.name for entry in path.parent.iterdir()] == ["runsc"], "nothing else is left"


def test_what_go_refuses_is_said_in_its_words(
    go: Path, own_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIST_STATUS", "1")
    with pytest.raises(VmNotAvailable, match="cannot be built from") as error:
        build_runsc(own_settings, print)
    assert "GOPROXY" in error.value.remediation
    monkeypatch.setenv("LIST_STATUS", "0")
    monkeypatch.setenv("BUILD_STATUS", "1")
    with pytest.raises(VmNotAvailable, match="no space left"):
        build_runsc(own_settings, print)
    assert not built_runsc(own_settings).exists()
    assert list(built_runsc(own_settings).parent.iterdir()) == []


def test_without_go_it_says_what_to_do(own_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VmNotAvailable, match="no `go` on the PATH") as error:
        build_runsc(own_settings, print)
    assert "setup --runsc FILE" in error.value.remediation
