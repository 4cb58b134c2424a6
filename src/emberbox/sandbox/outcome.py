"""From the agent's events to an Execution or a CommandResult. Pure: no I/O, tested without a machine.

Nothing here trusts the events: a field of the wrong type or size breaks the protocol (ProtocolError).
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from emberbox._text import printable
from emberbox.guest.protocol import Header, ProtocolError
from emberbox.models import (
    CommandResult,
    Execution,
    ExecutionError,
    FileChange,
    Language,
    Logs,
    Result,
    TerminationReason,
)

_MAX_TEXT = 1 << 20
_MAX_RESULTS = 10_000
_MAX_CHANGES = 1000
"""Of each kind; the agent names no more in all (guest/changes.py)."""
_CHANGES: tuple[Literal["created", "changed", "deleted"], ...] = ("created", "changed", "deleted")
MOST_VALUES = 250_000
"""Of JSON in all results of an execution, as of `values_at_most`: to read them takes some tenths of a second, during
which nobody else is served. A figure has a handful."""
TOO_MANY_VALUES = f"[left out: the rich results of this execution have more than {MOST_VALUES:,} values]"
_MAX_DEPTH = 100
"""Of JSON in a result. pydantic refuses to serialise much deeper ones."""
_FIELD_OF_MIME = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
}
_MAX_LATE = 4096
_LAST = 20
_MAX_SEARCHED = 20_000
_NO_NETWORK = re.compile(
    r"(?i)name resolution|could not resolve host|temporary failure resolving|name or service not known|EAI_AGAIN"
    r"|ENOTFOUND|No matching distribution found|idealTree|ENOTCACHED"
    r"|network is unreachable|ENETUNREACH|unable to resolve host|no address associated with hostname"
    r"|\bapt(?:-get)?: (?:command )?not found"
)
NO_NETWORK = (
    "The sandbox has no network: nothing can be downloaded or installed in it. Use what the template has"
    " (`emberbox image show`), put packages into a template of your own, or bring files in with `files.write`."
)
_LONGEST_MS = 1e12
"""No execution takes that long; infinity and not-a-number are no durations either."""
DEAD_EXIT_CODE = 137
"""Exit code of what died with its machine: 128 + SIGKILL, as a shell says it."""


class TextStream:
    """Bytes of one stream in, text out; a UTF-8 sequence cut between two chunks is joined, nonsense becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.parts: list[str] = []
        self.size = 0

    def feed(self, data: bytes, *, final: bool = False) -> str:
        self.size += len(data)
        text = self._decoder.decode(data, final)
        if text:
            self.parts.append(text)
        return text


@dataclass(slots=True, kw_only=True)
class OutputCollector:
    """What run_code and exec have in common: two streams and how it ended."""

    output_limit: int
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    stdout: TextStream = field(default_factory=TextStream)
    stderr: TextStream = field(default_factory=TextStream)

    def output(self, header: Header, payload: bytes) -> tuple[str, str] | None:
        """Take a stdout or stderr event; (stream, new text), or None when it is another event or no whole character."""
        if header["ev"] not in ("stdout", "stderr"):
            return None
        stream = self.stdout if header["ev"] == "stdout" else self.stderr
        text = stream.feed(payload)
        if stream.size > self.output_limit:
            raise ProtocolError(f"more than the {self.output_limit} bytes of output that were asked for")
        return (header["ev"], text) if text else None

    def flush(self) -> list[tuple[str, str]]:
        """The rest of both streams at the end."""
        rest = (("stdout", self.stdout.feed(b"", final=True)), ("stderr", self.stderr.feed(b"", final=True)))
        return [(name, text) for name, text in rest if text]

    def command_result(self, done: Header) -> CommandResult:
        return CommandResult(
            exit_code=_integer(done, "exit_code"),
            stdout="".join(self.stdout.parts),
            stderr="".join(self.stderr.parts),
            termination_reason=_reason(done),
            stdout_truncated=_flag(done, "stdout_truncated"),
            stderr_truncated=_flag(done, "stderr_truncated"),
            duration_ms=_number(done, "duration_ms"),
        )

    def dead_command(self, reason: TerminationReason, message: str) -> CommandResult:
        return CommandResult(
            exit_code=DEAD_EXIT_CODE,
            stdout="".join(self.stdout.parts),
            stderr="".join(self.stderr.parts),
            termination_reason=reason,
            error=message,
            duration_ms=self.elapsed_ms(),
        )

    def elapsed_ms(self) -> float:
        return (datetime.now(UTC) - self.started_at).total_seconds() * 1000


@dataclass(slots=True, kw_only=True)
class ExecutionCollector(OutputCollector):
    """Events of one run_code."""

    results_limit: int
    execution_id: str = ""
    sandbox_id: str = ""
    backend: str = ""
    language: Language = "python"
    results: list[Result] = field(default_factory=list)
    context: str | None = None
    results_size: int = 0
    results_values: int = 0

    def result(self, header: Header, payload: bytes) -> Result | None:
        """Take a result event; None for any other."""
        if header["ev"] != "result":
            return None
        self.results_size += len(payload)
        if self.results_size > self.results_limit or len(self.results) >= _MAX_RESULTS:
            raise ProtocolError("more results than were asked for")
        self.results_values += values_at_most(payload)
        if self.results_values > MOST_VALUES:
            result = Result(text=TOO_MANY_VALUES, is_main_result=header.get("main") is True)
            self.results.append(result)
            return result
        try:
            bundle = json.loads(payload)
        except (ValueError, RecursionError) as exc:
            raise ProtocolError("a result that is not JSON") from exc
        if not isinstance(bundle, dict):
            raise ProtocolError("a result that is no MIME bundle")
        result = result_of(bundle, main=header.get("main") is True)
        self.results.append(result)
        return result

    def execution(self, done: Header) -> Execution:
        """The finished Execution."""
        error = done.get("error")
        count = done.get("execution_count")
        context = done.get("context")
        return Execution(
            **self._common(),
            context_id=_text(context[:100]) if isinstance(context, str) else None,
            error=None if error is None else _error(error),
            exit_code=_integer(done, "exit_code"),
            termination_reason=_reason(done),
            context_survived=_flag(done, "context_survived"),
            execution_count=count if type(count) is int else None,
            stdout_truncated=_flag(done, "stdout_truncated"),
            stderr_truncated=_flag(done, "stderr_truncated"),
            results_truncated=_flag(done, "results_truncated"),
            duration_ms=_number(done, "duration_ms"),
            **self._changes_and_notes(done),
        )

    def _changes_and_notes(self, done: Header) -> dict[str, Any]:
        fields = _changed_files(done.get("changes"))
        notes = fields.pop("notes", [])
        late = done.get("late")
        if late is not None:
            if not isinstance(late, str):
                raise ProtocolError("late output that is no text")
            text = _text(late[:_MAX_LATE])
            notes.append(f"Before it began, what earlier code of this context had left running printed: {text!r}")
        error = done.get("error")
        value = str(error.get("value", "")) if isinstance(error, dict) else ""
        said = "".join([*self.stderr.parts[-_LAST:], *self.stdout.parts[-_LAST:], value])
        if _NO_NETWORK.search(said[-_MAX_SEARCHED:]):
            notes.append(NO_NETWORK)
        return {**fields, "notes": notes}

    def dead(self, reason: TerminationReason, message: str) -> Execution:
        """The Execution of code whose machine died under it."""
        return Execution(
            **self._common(),
            context_id=self.context,
            error=ExecutionError(name="SandboxDied", value=message),
            exit_code=DEAD_EXIT_CODE,
            termination_reason=reason,
            context_survived=False,
            duration_ms=self.elapsed_ms(),
        )

    def _common(self) -> dict[str, Any]:
        return {
            "execution_id": self.execution_id,
            "sandbox_id": self.sandbox_id,
            "backend": self.backend,
            "language": self.language,
            "results": self.results,
            "logs": Logs(stdout=self.stdout.parts, stderr=self.stderr.parts),
            "started_at": self.started_at,
            "completed_at": datetime.now(UTC),
        }


def result_of(bundle: dict[str, Any], *, main: bool) -> Result:
    """A Result from a MIME bundle; text formats that are not text are dropped, and so is JSON that is too deep."""
    fields: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for mime, value in bundle.items():
        name = _FIELD_OF_MIME.get(mime)
        with contextlib.suppress(_TooDeep):
            if name is None:
                extra[_text(mime[:200])] = _plain(value)
            elif name == "json" or isinstance(value, str):
                fields[name] = _plain(value)
    return Result(**fields, extra=extra, is_main_result=main)


def values_at_most(payload: bytes) -> int:
    """How many values JSON may have, those in texts counted as well."""
    return payload.count(b",") + payload.count(b":") + payload.count(b"[")


class _TooDeep(Exception):
    """JSON nested deeper than _MAX_DEPTH."""


def _plain(value: Any, depth: int = 0) -> Any:
    """JSON that can be written as JSON again: not too deep, and all of its text is Unicode."""
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, list | dict):
        return value
    if depth == _MAX_DEPTH:
        raise _TooDeep
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    return {_text(key): _plain(item, depth + 1) for key, item in value.items()}


def _text(value: str) -> str:
    """JSON can name lone surrogates, which no encoding of Unicode can carry: they become `?`."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _changed_files(changes: object) -> dict[str, Any]:
    """The fields of an Execution about files. None from the guest: there are too many to look at."""
    if changes is None:
        return {}
    if not isinstance(changes, dict):
        raise ProtocolError("changes that are no object")
    found: list[FileChange] = []
    for change in _CHANGES:
        paths = changes.get(change, [])
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ProtocolError(f"names of {change} files that are no list of texts")
        found += [FileChange(path=printable(path), change=change) for path in paths[:_MAX_CHANGES]]
    more = changes.get("more", 0)
    if type(more) is not int or more < 0:
        raise ProtocolError("a number of files that is none")
    notes = [f"{more:,} more files changed than are named."] if more else []
    return {"changed_files": found, "notes": notes}


def _error(value: object) -> ExecutionError:
    if not isinstance(value, dict):
        raise ProtocolError("an error that is no object")
    name, text, traceback = (_text(str(value.get(key, ""))[:_MAX_TEXT]) for key in ("name", "value", "traceback"))
    return ExecutionError(name=name, value=text, traceback=traceback)


def _reason(done: Header) -> TerminationReason:
    try:
        return TerminationReason(done["reason"])
    except (KeyError, ValueError) as exc:
        raise ProtocolError("an unknown reason of the end") from exc


def _integer(done: Header, key: str) -> int:
    value = done.get(key)
    if type(value) is not int or not -(1 << 31) <= value < 1 << 31:
        raise ProtocolError(f"{key} is no integer")
    return value


def _number(done: Header, key: str) -> float:
    value = done.get(key)
    if type(value) not in (int, float) or not 0 <= value <= _LONGEST_MS:  # type: ignore[operator]
        raise ProtocolError(f"{key} is no duration")
    return float(value)  # type: ignore[arg-type]


def _flag(done: Header, key: str) -> bool:
    value = done.get(key, False)
    if type(value) is not bool:
        raise ProtocolError(f"{key} is no boolean")
    return value
