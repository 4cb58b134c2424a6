"""From the agent's events to results: pure, so tested without a machine."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberbox.guest.protocol import ProtocolError
from emberbox.models import Execution, TerminationReason
from emberbox.sandbox.outcome import DEAD_EXIT_CODE, ExecutionCollector, OutputCollector, TextStream, result_of

DONE: dict[str, Any] = {"exit_code": 0, "reason": "completed", "duration_ms": 12.5}
LIMIT = 1000


def collector(*, output_limit: int = LIMIT, results_limit: int = 1 << 20) -> ExecutionCollector:
    return ExecutionCollector(
        output_limit=output_limit,
        results_limit=results_limit,
        execution_id="ex-1",
        sandbox_id="sb-1",
        backend="gvisor",
        language="bash",
    )


def result(bundle: object) -> Execution:
    made = collector()
    made.result({"ev": "result", "main": True}, json.dumps(bundle).encode())
    return made.execution(DONE)


# --- text -------------------------------------------------------------------------------------------------------------


@given(st.text(), st.lists(st.integers(min_value=0), max_size=10))
def test_text_is_the_same_wherever_its_bytes_were_cut(text: str, cuts: list[int]) -> None:
    data = text.encode()
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    stream = TextStream()
    told = [stream.feed(data[start:end]) for start, end in pairwise(places)]
    told.append(stream.feed(b"", final=True))
    assert "".join(told) == text
    assert "".join(stream.parts) == text


@given(st.binary(), st.integers(min_value=0))
def test_nonsense_is_the_same_text_wherever_it_was_cut(data: bytes, cut: int) -> None:
    stream = TextStream()
    stream.feed(data[: cut % (len(data) + 1)])
    stream.feed(data[cut % (len(data) + 1) :], final=True)
    assert "".join(stream.parts) == data.decode("utf-8", "replace")


def test_no_event_is_reported_for_half_a_character() -> None:
    made = collector()
    assert made.output({"ev": "stdout"}, b"\xc3") is None
    assert made.output({"ev": "stdout"}, b"\xa9") == ("stdout", "é")


def test_half_a_character_at_the_end_becomes_a_replacement_of_its_own_stream() -> None:
    made = collector()
    made.output({"ev": "stderr"}, b"a\xe2\x82")
    assert made.flush() == [("stderr", "\ufffd")]
    assert made.execution(DONE).stderr == "a\ufffd"


def test_streams_are_kept_apart_and_in_order() -> None:
    made = collector()
    for event, data in (("stdout", b"1"), ("stderr", b"x"), ("stdout", b"2")):
        made.output({"ev": event}, data)
    run = made.execution(DONE)
    assert (run.logs.stdout, run.logs.stderr) == (["1", "2"], ["x"])
    assert (run.stdout, run.stderr) == ("12", "x")


@pytest.mark.parametrize("event", ["started", "result", "done", "STDOUT", ""])
def test_other_events_are_no_output(event: str) -> None:
    made = collector()
    assert made.output({"ev": event}, b"text") is None
    assert made.execution(DONE).stdout == ""


def test_output_up_to_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    made = collector(output_limit=10)
    made.output({"ev": "stdout"}, b"x" * 10)
    made.output({"ev": "stderr"}, b"y" * 10)  # a limit is that of each stream
    with pytest.raises(ProtocolError, match="10 bytes of output"):
        made.output({"ev": "stdout"}, b"x")


def test_output_that_is_no_text_counts_as_well() -> None:
    made = OutputCollector(output_limit=3)
    with pytest.raises(ProtocolError):
        made.output({"ev": "stdout"}, b"\xf0\x9f\x98\x80"[:3] + b"\xf0")


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_result_has_its_formats_by_name_and_the_rest_as_extra() -> None:
    bundle = {
        "text/plain": "t", "text/html": "h", "text/markdown": "m", "image/svg+xml": "s", "image/png": "p",
        "image/jpeg": "j", "application/pdf": "f", "text/latex": "l", "application/json": {"a": [1, None]},
        "application/javascript": "c", "application/x-own": [1],
    }  # fmt: skip
    made = result_of(bundle, main=True)
    values = (made.text, made.html, made.markdown, made.svg, made.png, made.jpeg, made.pdf, made.latex, made.javascript)
    assert "".join(str(value) for value in values) == "thmspjflc"
    assert made.json == {"a": [1, None]}
    assert made.extra == {"application/x-own": [1]}
    assert made.is_main_result


@pytest.mark.parametrize("value", [1, None, ["x"], {"a": "b"}, True])
def test_a_text_format_that_is_no_text_is_dropped(value: object) -> None:
    made = result_of({"text/html": value, "text/plain": "kept"}, main=False)
    assert made.formats() == ["text"]
    assert not made.is_main_result


@given(st.one_of(st.none(), st.integers(), st.text(), st.lists(st.integers())))
def test_main_is_only_what_says_exactly_so(main: object) -> None:
    made = collector().result({"ev": "result", "main": main}, b"{}")
    assert made is not None
    assert not made.is_main_result


def test_an_event_that_is_no_result_is_left_alone() -> None:
    assert collector().result({"ev": "stdout"}, b"nonsense") is None


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[" * 100_000, b'{"text/plain": ' + b"9" * 5000 + b"}"])
def test_a_result_that_is_not_json_breaks_the_protocol(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="not JSON"):
        collector().result({"ev": "result"}, payload)


@pytest.mark.parametrize("payload", [b"1", b"null", b"[]", b'"text"'])
def test_a_result_that_is_no_bundle_breaks_the_protocol(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="MIME bundle"):
        collector().result({"ev": "result"}, payload)


def test_results_together_are_bounded_by_bytes() -> None:
    made = collector(results_limit=20)
    made.result({"ev": "result"}, b'{"a/b": 1234567890}')
    with pytest.raises(ProtocolError, match="more results"):
        made.result({"ev": "result"}, b"{}")


def test_results_are_bounded_by_number() -> None:
    made = collector()
    for _ in range(10_000):
        made.result({"ev": "result"}, b"{}")
    with pytest.raises(ProtocolError, match="more results"):
        made.result({"ev": "result"}, b"{}")


@pytest.mark.parametrize("mime", ["text/plain", "application/json", "text/html", "x/own"])
def test_json_can_be_written_whatever_text_the_guest_sent(mime: str) -> None:
    """JSON can name half of a surrogate pair; no encoding of Unicode can carry it."""
    run = result({mime: "a\ud800b"})
    assert "a?b" in run.model_dump_json()


def test_lone_surrogates_deep_in_json_do_no_harm() -> None:
    run = result({"application/json": {"k\udfff": ["\ud800", 1]}, "m\ud800": "x"})
    assert run.results[0].json == {"k?": ["?", 1]}
    assert run.results[0].extra == {"m?": "x"}
    run.model_dump_json()


def test_text_beyond_the_basic_plane_stays() -> None:
    assert result({"text/plain": "😀 é 中"}).text == "😀 é 中"


def test_json_that_is_too_deep_to_write_is_dropped_alone() -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    run = result({"application/json": deep, "x/own": {"a": deep}, "text/plain": "kept"})
    assert run.results[0].formats() == ["text"]
    run.model_dump_json()


def test_json_of_usual_depth_stays() -> None:
    deep: Any = 1
    for _ in range(50):
        deep = {"a": deep}
    run = result({"application/json": deep})
    assert run.results[0].json == deep
    run.model_dump_json()


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_done_event_becomes_an_execution() -> None:
    done = {
        **DONE, "exit_code": 3, "reason": "output-truncated", "context": "c1", "context_survived": True,
        "execution_count": 7, "stdout_truncated": True, "stderr_truncated": False, "results_truncated": True,
        "error": {"name": "ValueError", "value": "v", "traceback": "t"},
    }  # fmt: skip
    run = collector().execution(done)
    assert (run.execution_id, run.sandbox_id, run.backend, run.language) == ("ex-1", "sb-1", "gvisor", "bash")
    assert (run.exit_code, run.termination_reason) == (3, TerminationReason.OUTPUT_TRUNCATED)
    assert (run.context_id, run.context_survived, run.execution_count) == ("c1", True, 7)
    assert (run.stdout_truncated, run.stderr_truncated, run.results_truncated) == (True, False, True)
    assert run.error is not None
    assert (run.error.name, run.error.value, run.error.traceback) == ("ValueError", "v", "t")
    assert run.duration_ms == 12.5
    assert run.started_at <= run.completed_at


def test_a_command_that_is_done() -> None:
    made = OutputCollector(output_limit=10)
    made.output({"ev": "stdout"}, b"out")
    made.output({"ev": "stderr"}, b"err")
    done = made.command_result({**DONE, "exit_code": 139, "reason": "crashed", "stderr_truncated": True})
    assert (done.exit_code, done.termination_reason, done.stdout, done.stderr) == (139, "crashed", "out", "err")
    assert (done.stdout_truncated, done.stderr_truncated) == (False, True)


@pytest.mark.parametrize("reason", list(TerminationReason))
def test_every_reason_is_understood(reason: TerminationReason) -> None:
    assert collector().execution({**DONE, "reason": str(reason)}).termination_reason is reason


MALFORMED: dict[str, list[object]] = {
    "exit_code": [None, "0", 1.0, True, [], 1 << 31, -(1 << 31) - 1, 10**400],
    "duration_ms": [None, "1", True, -1, -0.001, math.inf, math.nan, 10**400, []],
    "reason": [None, "", "boredom", 1, [], {}],
    "stdout_truncated": [None, 0, 1, "false", []],
    "stderr_truncated": [None, 0, ""],
}
MALFORMED_OF_EXECUTION: dict[str, list[object]] = {
    "error": ["x", 1, [], True],
    "context_survived": [None, 1, "yes"],
    "results_truncated": [None, 1, "yes"],
}


def pairs(fields: dict[str, list[object]]) -> list[tuple[str, object]]:
    return [(key, value) for key, values in fields.items() for value in values]


@pytest.mark.parametrize(("key", "value"), pairs(MALFORMED))
def test_a_malformed_field_breaks_the_protocol(key: str, value: object) -> None:
    done = {**DONE, key: value}
    with pytest.raises(ProtocolError):
        collector().execution(done)
    with pytest.raises(ProtocolError):
        OutputCollector(output_limit=1).command_result(done)


@pytest.mark.parametrize(("key", "value"), pairs(MALFORMED_OF_EXECUTION))
def test_a_malformed_field_of_an_execution_breaks_the_protocol(key: str, value: object) -> None:
    with pytest.raises(ProtocolError):
        collector().execution({**DONE, key: value})


@pytest.mark.parametrize("missing", ["exit_code", "reason", "duration_ms"])
def test_a_missing_field_breaks_the_protocol(missing: str) -> None:
    done = {key: value for key, value in DONE.items() if key != missing}
    with pytest.raises(ProtocolError):
        collector().execution(done)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [
    "exit_code", "reason", "duration_ms", "error", "context", "context_survived", "execution_count", "stdout_truncated",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_whatever_the_guest_sends_is_an_execution_that_can_be_written_or_breaks_the_protocol(fields: Any) -> None:
    try:
        run = collector().execution({**DONE, **fields})
    except ProtocolError:
        return
    assert Execution.model_validate_json(run.model_dump_json()) == run


@given(st.dictionaries(st.sampled_from(["text/plain", "application/json", "image/png"]) | st.text(), JSON))
def test_whatever_bundle_the_guest_sends_can_be_written(bundle: Any) -> None:
    json.loads(result(bundle).model_dump_json())


@pytest.mark.parametrize("value", [None, "7", 1.5, True])
def test_a_count_that_is_none_is_left_out(value: object) -> None:
    assert collector().execution({**DONE, "execution_count": value}).execution_count is None


def test_parts_of_an_error_are_bounded_and_may_be_missing() -> None:
    error = collector().execution({**DONE, "error": {"value": "v" * (3 << 20)}}).error
    assert error is not None
    assert (error.name, len(error.value), error.traceback) == ("", 1 << 20, "")


def test_an_error_with_text_that_is_no_unicode_can_be_written() -> None:
    run = collector().execution({**DONE, "context": "\ud800", "error": {"name": "E", "value": "\ud800!"}})
    assert run.error is not None
    assert run.error.value == "?!"
    run.model_dump_json()


def test_code_whose_machine_died_keeps_what_it_printed() -> None:
    made = collector()
    made.context = "c9"
    made.output({"ev": "stdout"}, b"before")
    made.result({"ev": "result"}, b'{"text/plain": "r"}')
    run = made.dead(TerminationReason.MEMORY, "too much")
    assert (run.stdout, run.results[0].text, run.context_id) == ("before", "r", "c9")
    assert (run.exit_code, run.termination_reason, run.context_survived) == (DEAD_EXIT_CODE, "memory", False)
    assert run.error is not None
    assert (run.error.name, run.error.value) == ("SandboxDied", "too much")
    assert not run.succeeded


def test_a_command_whose_machine_died_keeps_what_it_printed() -> None:
    made = OutputCollector(output_limit=100)
    made.output({"ev": "stderr"}, b"before")
    done = made.dead_command(TerminationReason.KILLED, "why")
    assert (done.exit_code, done.stderr, done.error, done.termination_reason) == (137, "before", "why", "killed")
    assert done.duration_ms >= 0


@pytest.mark.parametrize(
    "stderr",
    [
        "ERROR: Could not find a version (NewConnectionError: [Errno -3] Temporary failure in name resolution)",
        "fatal: unable to access 'https://github.com/a/b/': Could not resolve host: github.com",
        "npm error code EAI_AGAIN",
        "E: Temporary failure resolving 'deb.debian.org'",
        "getaddrinfo ENOTFOUND example.org",
    ],
)
def test_who_needs_a_network_is_told_what_to_do(stderr: str) -> None:
    made = collector()
    made.output({"id": 1, "ev": "stderr"}, stderr.encode())
    (note,) = made.execution({**DONE, "exit_code": 1}).notes
    assert "no network" in note
    assert "template" in note


def test_ordinary_output_gets_no_note() -> None:
    made = collector()
    made.output({"id": 1, "ev": "stdout"}, b"hello")
    assert made.execution(DONE).notes == []


def test_late_output_is_a_note() -> None:
    (note,) = collector().execution({**DONE, "late": "tick\n"}).notes
    assert "'tick\\n'" in note
    with pytest.raises(ProtocolError, match="late"):
        collector().execution({**DONE, "late": 1})
