"""The hook that keeps secrets out of what callers and models get to see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberbox.errors import ConfigError
from emberbox.hooks import (
    Allow,
    Block,
    Modify,
    OutputSanitizerHook,
    PostLlmContext,
    PostToolContext,
    PreLlmContext,
    PreToolContext,
    ToolOutput,
)
from emberbox.hooks.contract import Stream
from emberbox.models import ExecutionError, Result

KEY = "AKIA" + "IOSFODNN7EXAMPLF"
MARK = "[REDACTED:aws-key]"


def ran(parts: ToolOutput) -> PostToolContext:
    output = parts.stdout + parts.stderr
    return PostToolContext(original_code="x", output=output, exit_code=0, duration_ms=1, parts=parts)


def changed(hook: OutputSanitizerHook, parts: ToolOutput) -> ToolOutput:
    decision = hook.post_tool(ran(parts))
    assert isinstance(decision, Modify)
    assert isinstance(decision.value, ToolOutput)
    return decision.value


def test_clean_output_is_let_through() -> None:
    parts = ToolOutput(stdout="all well\n", stderr="", results=[Result(text="42", png="QUtJQQ==")])
    assert OutputSanitizerHook().post_tool(ran(parts)) == Allow()


def test_every_part_is_redacted_and_nothing_else_changes() -> None:
    bundle: dict[str, Any] = {"rows": [KEY, 1, None, True], KEY: {"deep": f"a {KEY}"}, "password": "hunter2"}
    result = Result(
        text=f"t {KEY}",
        html=f"<b>{KEY}</b>",
        markdown=KEY,
        svg=f"<text>{KEY}</text>",
        latex=KEY,
        javascript=f"x = '{KEY}'",
        json=bundle,
        png=f"AAAA{KEY}AAAA",
        extra={"text/x-more": KEY, "image/gif": f"AAAA{KEY}AAAA"},
        is_main_result=True,
    )
    error = ExecutionError(name="ValueError", value=KEY, traceback=f"line 1\nValueError: {KEY}\n")
    parts = ToolOutput(stdout=f"out {KEY}\n", stderr=f"err {KEY}\n", results=[result], error=error)
    clean = changed(OutputSanitizerHook(), parts)
    assert (clean.stdout, clean.stderr) == (f"out {MARK}\n", f"err {MARK}\n")
    (shown,) = clean.results
    assert (shown.text, shown.html, shown.markdown, shown.svg) == (
        f"t {MARK}",
        f"<b>{MARK}</b>",
        MARK,
        f"<text>{MARK}</text>",
    )
    assert (shown.latex, shown.javascript, shown.is_main_result) == (MARK, f"x = '{MARK}'", True)
    assert shown.json == {"rows": [MARK, 1, None, True], MARK: {"deep": f"a {MARK}"}, "password": "[REDACTED:password]"}
    assert shown.extra["text/x-more"] == MARK
    assert (shown.png, shown.extra["image/gif"]) == (result.png, result.extra["image/gif"])  # base64 is no text
    assert clean.error == ExecutionError(name="ValueError", value=MARK, traceback=f"line 1\nValueError: {MARK}\n")


def test_what_was_redacted_is_counted_once_and_told_without_the_secrets() -> None:
    hook = OutputSanitizerHook()
    decision = hook.post_tool(ran(ToolOutput(stdout=f"{KEY} ada@example.com bob@example.com\n")))
    assert isinstance(decision, Modify)
    assert decision.reason == "redacted 2 email, 1 aws-key"
    assert hook.counts == {"email": 2, "aws-key": 1}
    chain = hook.output_filter(PreToolContext(code="", language="python"))
    assert chain is not None
    chain.feed("stdout", f"{KEY}\n")
    assert hook.counts == {"email": 2, "aws-key": 1}  # post_tool counts what has streamed


def test_block_mode_blocks_without_saying_the_secret() -> None:
    hook = OutputSanitizerHook(mode="block")
    decision = hook.post_tool(ran(ToolOutput(stdout=KEY)))
    assert decision == Block(reason="the output holds secrets: 1 aws-key")
    assert hook.post_llm(PostLlmContext(prompt="", response="fine")) == Allow()


def test_answers_are_redacted_and_prompts_only_if_asked_for() -> None:
    answer = PostLlmContext(prompt=KEY, response=f"use {KEY}")
    assert OutputSanitizerHook().post_llm(answer) == Modify(value=f"use {MARK}", reason="redacted 1 aws-key")
    prompt = PreLlmContext(prompt=f"my key is {KEY}")
    assert OutputSanitizerHook().pre_llm(prompt) == Allow()
    decision = OutputSanitizerHook(prompts=True).pre_llm(prompt)
    assert decision == Modify(value=f"my key is {MARK}", reason="redacted 1 aws-key")


def test_kinds_and_exceptions() -> None:
    only_mail = OutputSanitizerHook(kinds=["email"])
    assert changed(only_mail, ToolOutput(stdout=f"{KEY} a@example.com")).stdout == f"{KEY} [REDACTED:email]"
    fine = OutputSanitizerHook(allow=["@example.com", KEY])
    assert fine.post_tool(ran(ToolOutput(stdout=f"{KEY} a@example.com"))) == Allow()


@pytest.mark.parametrize(
    ("options", "why"),
    [({"kinds": ["nonsense"]}, "no kind 'nonsense'; there are: .*aws-key"), ({"mode": "hide"}, "'hide'")],
)
def test_options_that_make_no_sense_are_errors(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        OutputSanitizerHook(**options)


PIECES = st.lists(
    st.sampled_from(
        [KEY, KEY[:7], KEY[7:], "ada@exam", "ple.com", " ", "\n", "password=", "hunter22", "é", '"', "\r\n", "x"]
    ),
    max_size=25,
)


@given(PIECES, PIECES)
@settings(max_examples=80, deadline=None)
def test_what_streams_is_together_what_the_answer_says(out: Sequence[str], err: Sequence[str]) -> None:
    hook = OutputSanitizerHook()
    chain = hook.output_filter(PreToolContext(code="", language="python"))
    assert chain is not None
    streams: dict[Stream, Sequence[str]] = {"stdout": out, "stderr": err}
    shown = {name: "".join(chain.feed(name, piece) for piece in pieces) for name, pieces in streams.items()}
    parts = ToolOutput(stdout="".join(out), stderr="".join(err))
    decision = hook.post_tool(ran(parts))
    clean = decision.value if isinstance(decision, Modify) else parts
    assert isinstance(clean, ToolOutput)
    assert shown["stdout"] + chain.finish("stdout") == clean.stdout
    assert shown["stderr"] + chain.finish("stderr") == clean.stderr
    assert KEY not in clean.stdout
    assert KEY not in clean.stderr


def test_json_lines_stay_json() -> None:
    line = json.dumps({"token": KEY, "password": 12345678, "mail": "ada@example.com", "n": [1, 2.5, None]})
    clean = changed(OutputSanitizerHook(), ToolOutput(stdout=f"{line}\n")).stdout
    assert json.loads(clean)["n"] == [1, 2.5, None]
    assert KEY not in clean
    assert "ada@" not in clean
