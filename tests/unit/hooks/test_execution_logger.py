"""One JSON line for everything, without secrets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from emberbox.errors import ConfigError
from emberbox.hooks import (
    Allow,
    ExecutionLoggerHook,
    PostLlmContext,
    PostToolContext,
    PreLlmContext,
    PreToolContext,
    ToolOutput,
)
from emberbox.models import ExecutionError

KEY = "AKIAIOSFODNN7EXAMPLF"
WHO = {"agent_id": "a", "vm_id": "sb-1", "execution_id": "ex-1"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def test_every_stage_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    hook = ExecutionLoggerHook(path)
    code, output = f"key = '{KEY}'\n", f"the key is {KEY}\n\u2028\x1b[2J"
    parts = ToolOutput(stdout=output, error=ExecutionError(name="ValueError", value=f"bad {KEY}"))
    stages = [
        await hook.pre_tool(PreToolContext(code=code, language="python", **WHO)),
        await hook.post_tool(
            PostToolContext(original_code=code, output=output, exit_code=1, duration_ms=2.5, parts=parts, **WHO)
        ),
        await hook.pre_llm(PreLlmContext(prompt="hi", token_count=1)),
        await hook.post_llm(PostLlmContext(prompt="hi", response="ho", model="m")),
    ]
    assert stages == [Allow()] * 4
    assert KEY not in path.read_text()
    asked, ended, prompt, answer = lines(path)
    assert (asked["event"], asked["code"], asked["code_characters"]) == (
        "execution.requested", "key = '[REDACTED:aws-key]'\n", len(code),
    )  # fmt: skip
    assert asked["code_sha256"] == hashlib.sha256(code.encode()).hexdigest()
    assert {key: asked[key] for key in WHO} == WHO
    assert (ended["event"], ended["exit_code"], ended["duration_ms"]) == ("execution.finished", 1, 2.5)
    assert ended["error"] == "ValueError: bad [REDACTED:aws-key]"
    assert (prompt["event"], prompt["prompt"], answer["event"], answer["model"]) == (
        "llm.requested", "hi", "llm.answered", "m",
    )  # fmt: skip
    assert all(line["level"] == "info" and line["at"].endswith("Z") for line in lines(path))


async def test_long_texts_are_cut_after_redaction(tmp_path: Path) -> None:
    hook = ExecutionLoggerHook(tmp_path / "log")
    code = "#" * 1_990 + f" {KEY}"
    await hook.pre_tool(PreToolContext(code=code, language="python"))
    (line,) = lines(tmp_path / "log")
    assert (len(line["code"]), line["code_characters"]) == (2_000, len(code))
    assert "AKIA" not in line["code"]


async def test_texts_can_be_left_out(tmp_path: Path) -> None:
    hook = ExecutionLoggerHook(str(tmp_path / "log"), show_text=False)
    await hook.pre_tool(PreToolContext(code="x = 1", language="python"))
    (line,) = lines(tmp_path / "log")
    assert "code" not in line
    assert line["code_characters"] == 5


async def test_the_file_is_its_owners_alone_and_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(2):
        await ExecutionLoggerHook(path).pre_llm(PreLlmContext(prompt="x"))
    assert len(lines(path)) == 2
    assert path.stat().st_mode & 0o777 == 0o600


async def test_without_a_file_it_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    await ExecutionLoggerHook().pre_tool(PreToolContext(code="x", language="bash"))
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["language"] == "bash"


def test_a_file_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot write the log .*: No such file"):
        ExecutionLoggerHook(tmp_path / "missing" / "log")
