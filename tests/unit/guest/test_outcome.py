"""Why an execution ended."""

from __future__ import annotations

import pytest

from emberbox.guest.outcome import ExitInfo, clean_error, reason, shorten


def ending(exit_code: int = 1, **facts: object) -> ExitInfo:
    made = ExitInfo(exit_code)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (ending(0), "completed"),
        (ending(1), "completed"),
        (ending(0, truncated=True), "output-truncated"),
        (ending(137, died=True), "crashed"),
        (ending(137, died=True, memory_kill=True), "memory"),
        (ending(134, died=True, stderr=b"FATAL ERROR: JavaScript heap out of memory"), "memory"),
        (ending(1, cause="disk"), "disk"),
        (ending(0, stderr=b"No space left on device"), "completed"),
        (ending(1, stderr=b"cp: write error: No space left on device"), "disk"),
        (ending(254, stderr=b"fork: retry: Resource temporarily unavailable"), "processes"),
        (ending(137, timed_out=True, killed=True), "timeout"),
        (ending(137, timed_out=True, cause="processes"), "processes"),
        (ending(137, killed=True, died=True), "killed"),
        (ending(130, interrupted=True), "interrupted"),
        (ending(1, cause="nonsense"), "completed"),
    ],
)
def test_reason(facts: ExitInfo, expected: str) -> None:
    assert reason(facts) == expected


@pytest.mark.parametrize("nonsense", [1, "text", [], {"name": "x"}, {"name": 1, "value": "", "traceback": ""}])
def test_an_error_that_is_none_is_refused(nonsense: object) -> None:
    with pytest.raises(ValueError, match="error that is none"):
        clean_error(nonsense)


def test_a_long_error_is_cut_in_the_middle() -> None:
    error = clean_error({"name": "E", "value": "v", "traceback": "begin" + "x" * 200_000 + "end"})
    assert error is not None
    assert len(error["traceback"]) < 61_000
    assert error["traceback"].startswith("begin")
    assert error["traceback"].endswith("end")


def test_short_text_stays() -> None:
    assert shorten("abc", 3) == "abc"
