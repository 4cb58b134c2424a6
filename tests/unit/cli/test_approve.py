"""Asking the person at the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from emberbox.cli.approve import Prompt, terminal_approver
from emberbox.models import ApprovalRequest, ApprovalResponse

REQUEST = ApprovalRequest(
    approval_id="ap-1",
    prompt="Run this code? code:1:1: evaluates \x1b[2Jtext",
    code="eval('1')\n",
    stage="pre_tool",
    hook="policy",
    language="python",
    expires_at=datetime.now(UTC),
)


def ask(typed: Iterable[str], request: ApprovalRequest = REQUEST) -> tuple[ApprovalResponse, str]:
    """The answer, and what was on the screen."""
    console, lines = Console(file=io.StringIO(), width=80), iter(typed)

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    answer = Prompt(console, read).ask(request)
    assert isinstance(console.file, io.StringIO)
    return answer, console.file.getvalue()


@pytest.mark.parametrize(("typed", "approve"), [("y", True), ("YES ", True), ("n", False), ("no", False)])
def test_yes_and_no(typed: str, approve: bool) -> None:
    answer, screen = ask([typed])
    assert (answer.approval_id, answer.approve, answer.edited_code) == ("ap-1", approve, None)
    assert answer.by
    assert "policy asks" in screen
    assert "eval('1')" in screen
    assert "\x1b[2J" not in screen


def test_anything_else_is_asked_again_and_the_end_of_input_is_a_no() -> None:
    assert ask(["what", "", "y"])[0].approve
    assert not ask(["what"])[0].approve


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "editor"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$1" > ' + str(tmp_path / "named") + '\necho "print(2)" > "$1"\n')
    script.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(script))
    monkeypatch.delenv("VISUAL", raising=False)
    return tmp_path


def test_the_code_may_be_edited(editor: Path) -> None:
    answer, _ = ask(["e", "y"])
    assert (answer.approve, answer.edited_code) == (True, "print(2)\n")
    assert (editor / "named").read_text().endswith(".py\n")
    refused, _ = ask(["e", "n"])
    assert (refused.approve, refused.edited_code) == (False, None)


def test_an_editor_that_fails_is_said_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", "/nowhere/editor")
    monkeypatch.delenv("VISUAL", raising=False)
    answer, screen = ask(["e", "y"])
    assert (answer.approve, answer.edited_code) == (True, None)
    assert "Set EDITOR" in screen


def test_scripts_are_not_asked() -> None:
    assert terminal_approver(as_json=True, reads_stdin=False) is None
    assert terminal_approver(as_json=False, reads_stdin=True) is None
    assert terminal_approver(as_json=False, reads_stdin=False) is None  # pytest has no terminal
