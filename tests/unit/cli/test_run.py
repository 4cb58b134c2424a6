"""What `emberbox run` shows and saves; the run itself is made up."""

from __future__ import annotations

import base64
import io
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from emberbox.cli.printing import printable
from emberbox.cli.run import Screen, save_results
from emberbox.errors import PolicyBlocked, ValidationFailed
from emberbox.models import (
    CodeBlock,
    Execution,
    ExecutionError,
    ExecutionIntent,
    ParseExecuteResponse,
    Result,
    TerminationReason,
    VmExecuteResponse,
)

NOW = datetime.now(UTC)
INTENT = ExecutionIntent(confidence=0.9, suggested_action="auto-execute")
PNG = base64.b64encode(b"\x89PNG data").decode()


def block(code: str = "print(1)", language: str = "python", confidence: float = 0.9, start: int = 0) -> CodeBlock:
    return CodeBlock(
        language=language,
        code=code,
        execution_confidence=confidence,
        start_pos=start,
        end_pos=start,
        metadata={"line": start + 1},
    )


def execution(**fields: Any) -> Execution:
    base: dict[str, Any] = {
        "execution_id": "ex-1", "sandbox_id": "sb-1", "backend": "gvisor", "language": "python", "exit_code": 0,
        "duration_ms": 1234.5, "started_at": NOW, "completed_at": NOW,
    }  # fmt: skip
    return Execution(**{**base, **fields})


def response(*results: Result, **fields: Any) -> ParseExecuteResponse:
    ran = VmExecuteResponse.of(execution(results=list(results)))
    return ParseExecuteResponse(**{"intent": INTENT, "execution_results": [ran], **fields})


@pytest.fixture
def screen() -> Screen:
    return Screen(Console(file=io.StringIO(), width=100, highlight=False), 0.7)


def shown(screen: Screen) -> str:
    assert isinstance(screen.console.file, io.StringIO)
    return screen.console.file.getvalue()


# --- text from a sandbox ----------------------------------------------------------------------------------------------


@given(st.text(st.characters()))
def test_nothing_that_controls_the_terminal_gets_through(text: str) -> None:
    safe = printable(text)
    assert len(safe) == len(text)
    for before, after in zip(text, safe, strict=True):
        controls = (ord(before) < 32 and before not in "\n\t") or 127 <= ord(before) < 160
        half = 0xD800 <= ord(before) < 0xE000  # of a surrogate pair: it cannot be encoded
        assert after == ("\ufffd" if controls or half else before)


def test_usual_text_stays_as_it_is() -> None:
    assert printable("a\tb\né 中 😀") == "a\tb\né 中 😀"
    assert printable("\x1b[2J\x9b1m\x07") == "\ufffd[2J\ufffd1m\ufffd"


# --- the screen -------------------------------------------------------------------------------------------------------


def test_the_overview_has_the_blocks_in_the_order_of_the_text(screen: Screen) -> None:
    blocks = [block("second()", start=50), block("\n\nfirst()\nmore()", "bash", 0.1, start=3)]
    screen.overview("answer.md", blocks, INTENT)
    lines = shown(screen).splitlines()
    assert lines[0] == "answer.md: 2 code blocks, intent auto-execute (0.90)"
    assert lines[1].split() == ["block", "line", "language", "confidence", "verdict", "begins", "with"]
    assert lines[2].split() == ["1", "4", "bash", "0.10", "skip", "(below", "0.70)", "first()"]
    assert lines[3].split() == ["2", "51", "python", "0.90", "run", "second()"]


def test_an_answer_without_code(screen: Screen) -> None:
    screen.overview("[answer].md", [], ExecutionIntent(confidence=0))
    assert shown(screen) == "[answer].md: 0 code blocks, intent none (0.00)\n"


HOSTILE = ["[/x]", "[red]x", "\x1b[2J", "[bold", "\\[x]"]


@pytest.mark.parametrize("text", HOSTILE)
async def test_nothing_of_the_answer_is_taken_for_markup_or_control(screen: Screen, text: str) -> None:
    blocks = [block(code=text, language=text)]
    screen.overview("answer.md", blocks, INTENT)
    listeners = await screen.block_begins(0, blocks[0])
    await listeners.text("stdout", text)
    await listeners.text("stderr", text)
    await listeners.result(Result(text=text))
    error = ExecutionError(name=text, value=text, traceback=text)
    await screen.block_ran(0, execution(error=error))
    await screen.block_refused(0, PolicyBlocked(text, remediation=text))
    assert "\x1b" not in shown(screen)
    assert shown(screen).count(printable(text)) == 9


async def test_output_is_shown_as_it_comes_and_whole(screen: Screen) -> None:
    listeners = await screen.block_begins(0, block())
    before = shown(screen)
    assert "block 1" in before
    assert "python" in before
    for text in ("a", "b\n", "x" * 300, "\n"):
        await listeners.text("stdout", text)
    await listeners.text("stderr", "warning\n")
    assert shown(screen).removeprefix(before) == "ab\n" + "x" * 300 + "\nwarning\n"


async def test_results_are_shown_as_text_and_figures_by_their_size(screen: Screen) -> None:
    listeners = await screen.block_begins(0, block())
    before = shown(screen)
    await listeners.result(Result(text="42", is_main_result=True))
    await listeners.result(Result(text="a  b\nc  d"))
    await listeners.result(Result(text="<Figure>", png="A" * 4000))
    await listeners.result(Result(html="<b>"))
    assert shown(screen).removeprefix(before) == "⇒ 42\n◆\na  b\nc  d\n◆ figure: PNG, 3,000 bytes\n"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "✓ exit 0 · 1,234 ms"),
        ({"exit_code": 3}, "✗ exit 3 · 1,234 ms"),
        (
            {"exit_code": 137, "termination_reason": TerminationReason.TIMEOUT, "context_survived": False},
            "✗ exit 137 · 1,234 ms · timeout · its variables are lost",
        ),
        ({"termination_reason": TerminationReason.OUTPUT_TRUNCATED}, "✓ exit 0 · 1,234 ms · output-truncated"),
    ],
)
async def test_the_line_after_a_block(screen: Screen, fields: dict[str, Any], line: str) -> None:
    await screen.block_ran(0, execution(**fields))
    assert shown(screen) == f"{line}\n"


@pytest.mark.parametrize(("traceback", "wanted"), [("", "ValueError: no"), ("Traceback …\n", "Traceback …")])
async def test_an_error_is_shown_with_its_traceback_if_it_has_one(screen: Screen, traceback: str, wanted: str) -> None:
    error = ExecutionError(name="ValueError", value="no", traceback=traceback)
    await screen.block_ran(0, execution(exit_code=1, error=error))
    assert shown(screen).splitlines() == [wanted, "✗ exit 1 · 1,234 ms"]


@pytest.mark.parametrize(
    ("error", "head"),
    [(PolicyBlocked("rm -rf", remediation="Don't."), "blocked by policy"), (ValidationFailed("empty"), "not run")],
)
async def test_a_refusal_has_its_reason_and_its_remedy(screen: Screen, error: ValidationFailed, head: str) -> None:
    await screen.block_refused(1, error)
    lines = shown(screen).splitlines()
    assert f"block 2 · {head}" in lines[0]
    assert lines[1:] == [f"✗ {error.message}", f"  → {error.remediation}"]


def test_the_summary_when_nothing_was_run(screen: Screen) -> None:
    screen.summary(ParseExecuteResponse(intent=INTENT, code_blocks=[block(confidence=0.3)]), None)
    assert "Nothing was run" in shown(screen)
    assert "--all" in shown(screen)


def test_the_summary_says_why_each_block_was_left_out(screen: Screen) -> None:
    why = [
        {"rule": "tagged", "weight": 0.6, "reason": "its fence names a language"},
        {"rule": "browser", "weight": -0.2, "reason": "it needs a browser", "cap": 0.4, "detail": "`document`"},
    ]
    left = block("document.title", "javascript", 0.4)
    left.metadata["why"] = why
    screen.overview("answer.md", [left], INTENT)
    screen.summary(ParseExecuteResponse(code_blocks=[left], intent=INTENT), None)
    assert "block 1: it needs a browser (`document`)" in shown(screen)


def test_the_summary_when_there_is_no_code(screen: Screen) -> None:
    screen.summary(ParseExecuteResponse(intent=INTENT), None)
    assert "there is no code in the text" in shown(screen)


@pytest.mark.parametrize("action", ["show", "ask", "none"])
def test_the_overview_says_why_blocks_run_though_nobody_asks(screen: Screen, action: str) -> None:
    screen.overview("answer.md", [block()], INTENT.model_copy(update={"suggested_action": action}))
    assert f"intent {action}); you asked to, with `run`" in " ".join(shown(screen).split())


def test_the_overview_says_nothing_of_the_kind_where_it_does_not_apply(screen: Screen) -> None:
    screen.overview("answer.md", [block()], INTENT)
    screen.overview("answer.md", [block(confidence=0.3)], INTENT.model_copy(update={"suggested_action": "show"}))
    assert "does not ask" not in shown(screen)


def test_the_summary_when_everything_was_refused(screen: Screen) -> None:
    errors = [{"block": 0, "code": "blocked_by_policy", "message": "m"}]
    screen.summary(ParseExecuteResponse(intent=INTENT, errors=errors), None)
    assert shown(screen).splitlines()[-1] == "0 ran, 1 refused"


# --- files ------------------------------------------------------------------------------------------------------------


def test_results_are_saved_by_execution_and_position(tmp_path: Path) -> None:
    answer = response(
        Result(text="only text"),
        Result(png=PNG, jpeg=PNG, pdf=PNG, svg="<svg/>", html="<b>é</b>", markdown="# x", latex="$x$"),
    )
    folder = tmp_path / "new" / "folder"
    saved = save_results(answer, folder)
    assert sorted(path.name for path in saved) == sorted(path.name for path in folder.iterdir())
    content = {path.name.removeprefix("execution-1-result-2."): path.read_bytes() for path in saved}
    assert content == {
        "png": b"\x89PNG data", "jpeg": b"\x89PNG data", "pdf": b"\x89PNG data", "svg": b"<svg/>",
        "html": "<b>é</b>".encode(), "md": b"# x", "tex": b"$x$",
    }  # fmt: skip


@pytest.mark.parametrize("nonsense", ["not base64!", "é", "A", "\x00", "😀" * 4])
def test_a_figure_that_is_none_is_left_out(tmp_path: Path, nonsense: str) -> None:
    saved = save_results(response(Result(png=nonsense), Result(svg="<svg/>")), tmp_path)
    assert [path.name for path in saved] == ["execution-1-result-2.svg"]


def test_nothing_to_save(tmp_path: Path) -> None:
    assert save_results(response(), tmp_path / "out") == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValidationFailed, match=r"Cannot save results in .*/file/x: Not a directory"):
        save_results(response(Result(svg="")), tmp_path / "file" / "x")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValidationFailed, match="Permission denied"):
        save_results(response(Result(svg="")), tmp_path)
