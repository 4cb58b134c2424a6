"""Commands that tests run in their own process are as those of a process, and change nothing in it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from commandline import emberbox, process


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["--version"], ""),
        (["run"], ""),
        (["run", "-"], b"caf\xe9"),
        (["extract", "-"], "Run this:\n\n```bash\nrm -rf / # né\n```\n"),
        (["policy", "check", "-l", "python", "-"], "eval('1')\r\n"),
    ],
    ids=["version", "usage", "input", "text", "refusal"],
)
def test_output_and_exit_code_are_those_of_a_process(arguments: list[str], stdin: str | bytes) -> None:
    here, there = emberbox(*arguments, stdin=stdin), process(*arguments, stdin=stdin)
    assert (here.returncode, here.stdout) == (there.returncode, there.stdout)
    assert here.stderr == there.stderr


def test_nothing_of_a_command_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emberbox.toml").write_text("auto_execute_threshold = 0.25\n")

    def state() -> tuple[object, ...]:
        return dict(os.environ), Path.cwd(), sys.argv, sys.stdin, sys.stdout, sys.stderr

    def setting(name: str, *options: str, **variables: str) -> object:
        shown = emberbox(*options, "config", "show", "--json", **variables)
        return json.loads(shown.stdout)["settings"][name]["value"]

    before = state()
    assert setting("auto_execute_threshold", "--config", str(tmp_path / "emberbox.toml")) == 0.25
    assert state() == before
    assert setting("auto_execute_threshold") != 0.25
    assert setting("cache_dir", EMBERBOX_CACHE_DIR="/elsewhere") == "/elsewhere"
    assert state() == before


def test_what_the_program_does_not_expect_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("emberbox.cli.extract.load_settings", broken)
    with pytest.raises(ZeroDivisionError):
        emberbox("extract", "-", stdin="text")
