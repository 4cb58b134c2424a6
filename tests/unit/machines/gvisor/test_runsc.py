"""Which runsc is taken, with shell scripts in their place."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from emberbox import Settings
from emberbox.errors import VmNotAvailable
from emberbox.machines.gvisor.install import choose_runsc
from emberbox.machines.gvisor.runsc import PINNED_VERSION, Runsc, candidates, chosen_runsc, find_runsc, private_runsc

GOOD = "echo runsc version release-20240729.0; echo spec: 1.1.0-rc.1"


def program(path: Path, script: str = GOOD, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH; it is empty."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def own_settings(on_path: Path, tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache")


def test_nowhere(own_settings: Settings) -> None:
    found, problems = find_runsc(own_settings)
    assert found is None
    assert problems == [f"{private_runsc(own_settings)}: not there"]


def test_in_the_private_folder(own_settings: Settings) -> None:
    path = program(private_runsc(own_settings))
    assert find_runsc(own_settings) == (Runsc(path, "release-20240729.0", "private folder"), [])


def test_the_path_comes_before_the_private_folder(own_settings: Settings, on_path: Path) -> None:
    program(private_runsc(own_settings))
    found, problems = find_runsc(own_settings)
    assert found is not None
    assert found.origin == "private folder"
    path = program(on_path / "runsc")
    found, problems = find_runsc(own_settings)
    assert found is not None
    assert (found.program, found.origin, problems) == (path, "PATH", [])


def test_a_setting_is_the_only_place(own_settings: Settings, on_path: Path, tmp_path: Path) -> None:
    program(on_path / "runsc")
    program(private_runsc(own_settings))
    path = tmp_path / "mine"
    settings = own_settings.model_copy(update={"runsc": path})
    assert candidates(settings) == [(path, "settings")]
    assert find_runsc(settings) == (None, [f"{path}: not there"])
    program(path)
    found, _ = find_runsc(settings)
    assert found is not None
    assert (found.program, found.origin) == (path, "settings")


def test_a_relative_path_in_the_settings_is_that_file(
    tmp_path: Path, on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = program(tmp_path / "my-runsc")
    found, problems = find_runsc(Settings(cache_dir=tmp_path, runsc=Path("my-runsc")))
    assert problems == []
    assert found is not None
    assert found.program == path


def test_one_that_does_not_work_is_passed_over_and_named(own_settings: Settings, on_path: Path) -> None:
    bad = program(on_path / "runsc", "echo runsc version 0.0~20221219.0")
    good = program(private_runsc(own_settings))
    found, problems = find_runsc(own_settings)
    assert found is not None
    assert found.program == good
    assert problems == [f"{bad}: version 0.0~20221219.0 is older than {PINNED_VERSION}"]


@pytest.mark.parametrize(
    ("script", "mode", "words"),
    [
        ("echo runsc version release-20230417.0", 0o755, "version release-20230417.0 is older than"),
        ("echo runsc version VERSION_MISSING", 0o755, "version VERSION_MISSING names no release"),
        ("true", 0o755, "version unknown names no release"),
        ("printf '\\377\\376'", 0o755, "names no release"),
        ("echo broken; exit 3", 0o755, "exit status 3"),
        (GOOD, 0o644, "not executable"),
    ],
)
def test_what_is_wrong_with_it(own_settings: Settings, script: str, mode: int, words: str) -> None:
    path = program(private_runsc(own_settings), script, mode)
    found, problems = find_runsc(own_settings)
    assert found is None
    assert len(problems) == 1
    assert str(path) in problems[0]
    assert words in problems[0]


def test_a_file_that_is_no_program(own_settings: Settings) -> None:
    path = program(private_runsc(own_settings))
    path.write_bytes(b"\x7fELF nonsense")
    found, problems = find_runsc(own_settings)
    assert found is None
    assert "Exec format error" in problems[0]


def test_a_directory_in_its_place(own_settings: Settings) -> None:
    private_runsc(own_settings).mkdir(parents=True)
    assert find_runsc(own_settings) == (None, [f"{private_runsc(own_settings)}: not there"])


@pytest.mark.parametrize(
    ("version", "tested", "old"),
    [
        ("0.0~20240729.0-5+b1", True, True),
        ("release-20240729.0", True, True),
        ("release-20240807.0", False, True),
        ("release-20251130.0", False, False),
        ("go-20260905-160fafc42237", True, False),
    ],
)
def test_what_is_said_of_versions(own_settings: Settings, version: str, tested: bool, old: bool) -> None:
    program(private_runsc(own_settings), f"echo 'runsc version {version}'")
    found, _ = find_runsc(own_settings)
    assert found is not None
    assert found.version == version
    remarks = " / ".join(found.remarks(dt.date(2026, 11, 29)))
    assert ("Emberbox is tested with runsc of" in remarks) is not tested
    assert ("`emberbox setup --runsc newest` gets a newer one" in remarks) is old


def test_what_was_chosen_comes_before_all_but_a_setting(own_settings: Settings, on_path: Path, tmp_path: Path) -> None:
    program(on_path / "runsc")
    mine = program(tmp_path / "mine/runsc", "echo runsc version release-20260105.0")
    assert choose_runsc(own_settings, str(mine), print).version == "release-20260105.0"
    found, _ = find_runsc(own_settings)
    assert found is not None
    assert (found.program.resolve(), found.origin) == (mine, "emberbox setup --runsc")
    assert candidates(own_settings.model_copy(update={"runsc": mine})) == [(mine, "settings")]
    assert choose_runsc(own_settings, "default", print).origin == "PATH"


def test_what_was_chosen_can_be_named_by_its_link_and_is_followed_once(own_settings: Settings, tmp_path: Path) -> None:
    mine = program(tmp_path / "mine/runsc")
    choose_runsc(own_settings, str(mine), print)
    assert choose_runsc(own_settings, str(chosen_runsc(own_settings)), print).program == mine
    found, _ = find_runsc(own_settings)
    assert found is not None
    choose_runsc(own_settings, str(program(tmp_path / "other/runsc")), print)
    assert found.program == mine, "a running engine goes on with what it began with"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo ls 9.1", "names no release"),
        ("echo runsc version 0.0~20220101.0", "is older than"),
        ("exit 3", "status 3"),
    ],
)
def test_a_choice_that_does_not_work_changes_nothing(
    own_settings: Settings, on_path: Path, tmp_path: Path, script: str, words: str
) -> None:
    good = program(tmp_path / "good/runsc")
    choose_runsc(own_settings, str(good), print)
    with pytest.raises(VmNotAvailable, match=words):
        choose_runsc(own_settings, str(program(tmp_path / "bad/runsc", script)), print)
    with pytest.raises(VmNotAvailable, match="No such file"):
        choose_runsc(own_settings, str(tmp_path / "nowhere"), print)
    found, _ = find_runsc(own_settings)
    assert found is not None
    assert found.program.resolve() == good


def test_it_does_not_see_the_environment(own_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    program(private_runsc(own_settings), f'test -z "$SECRET" && {GOOD}')
    assert find_runsc(own_settings)[0] is not None
