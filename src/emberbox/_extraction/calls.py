"""Code that a model hands to a tool instead of writing it in a fence: tool calls in JSON, and tags.

Read are the calls of the OpenAI and Anthropic wire formats, of `<tool_call>`, `<invoke>`, `<function=…>` and
`[TOOL_CALLS]` templates, of `<tool_call>NAME<arg_key>…`, `<execute_command><command>…`, harmony and DeepSeek
(`call_frames`), of ReAct (`action`, `action_input`; `Action:`, `Action Input:`), `{"language": …, "code": …}`, and the
tags `<execute…>`, `<code>` and `<|python_tag|>`. A call of a tool that does not run code is none.
"""

from __future__ import annotations

import json
import re
import shlex
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any

from emberbox._extraction import evidence
from emberbox._extraction.blocks import Lines, RawBlock
from emberbox._extraction.call_frames import find_frames
from emberbox.errors import ValidationFailed
from emberbox.languages import LANGUAGES, resolve

_MAX_CALLS = 1_000
_MAX_PARSED = 4_000_000  # characters that may be parsed as JSON, in all attempts together
_MAX_QUOTED = 100_000
_DEPTH = 12
_MARKS = (
    '"language"',
    '"tool_calls"',
    '"input"',
    '"function_call"',
    '"tool_use"',
    '"arguments"',
    '"parameters"',
    '"action_input"',
)
_TAG = re.compile(
    r"<(execute(?:_\w{1,20})?|code|tool_call|(?:antml:)?function_calls?|function=[\w.-]{1,60}"
    r"|(?:antml:)?invoke(?=\s))(?:\s+name=\"(?P<name>[\w.-]{1,60})\")?>"
)
_PARAMETER = re.compile(r"<(?:antml:)?parameter(?:=|\s+name=\")([\w.-]{1,60})\"?>")
_PARAMETER_END = re.compile(r"</(?:antml:)?parameter>")
_INVOKE = re.compile(r"<(?:antml:)?(?:invoke\s+name=\"([\w.-]{1,60})\"|function=([\w.-]{1,60}))>")
_AFTER_PROSE = re.compile(r"[.:!?>][ \t]+$")
_OBJECT = re.compile(r"(?:^[ \t]*|\[TOOL_CALLS\][ \t]*)([{\[])(?!TOOL_CALLS)", re.MULTILINE)
_ACTION = re.compile(r"^Action:[ \t]*([\w .-]{1,60}?)[ \t]*\r?\n+Action Input:[ \t]*", re.MULTILINE)
_ACTION_ENDS = re.compile(r"^(?:Observation|Thought|Action|Final Answer):", re.MULTILINE)
_ACTION_LINE = re.compile(r"^Action:\s*\Z", re.MULTILINE)
_COMMAND = re.compile(r"\s*<command>(.*?)</command>", re.DOTALL)
_KEYED_CALL = re.compile(r"\s*([\w.-]{1,60})\s*(?=<arg_key>)")
_KEYED = re.compile(r"<arg_key>([\w.-]{1,60})</arg_key>\s*<arg_value>(.*?)(?:</arg_value>|\Z)", re.DOTALL)
_BUILT_IN = re.compile(r"\s*\w{1,60}\.call\(")
"""A tool of the model's own behind `<|python_tag|>`, such as `brave_search.call(query="…")`."""
_PYTHON_TAG = re.compile(r"<\|python_tag\|>")
_PYTHON_TAG_ENDS = re.compile(r"<\|(?:eom_id|eot_id|python_tag)\|>")
_KEYS = (
    "code",
    "source_code",
    "python_code",
    "source",
    "script",
    "cell",
    "command",
    "cmd",
    "bash_command",
    "action_input",
)
_KEY = re.compile(rf'\\?"(?:{"|".join((*_KEYS, "input", "__arg1"))})\\?"\s*:\s*(?=\\?["\[])')
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_RUNS = frozenset(
    {
        "python",
        "ipython",
        "jupyter",
        "notebook",
        "bash",
        "shell",
        "sh",
        "terminal",
        "console",
        "node",
        "javascript",
        "js",
    }
    | {"rust", "code", "repl", "exec", "execute", "run", "interpreter", "command", "script", "cmd"}
)
_NOT_CODE = frozenset(
    {"sql", "query", "search", "file", "editor", "edit", "browser", "url", "review", "format", "test"}
)
_SPEAKS = {
    "python": {"python", "ipython", "jupyter", "notebook"},
    "bash": {"bash", "shell", "sh", "terminal", "console", "cmd"},
    "javascript": {"node", "javascript", "js"},
    "rust": {"rust", "cargo"},
}


@dataclass(frozen=True)
class Call:
    """A tool call that runs code."""

    tool: str
    language: str
    code: str


def find_calls(lines: Lines, taken: Sequence[RawBlock]) -> list[RawBlock]:
    """Tags and tool calls that lie in no block of `taken` (in the order of the text); in that order."""
    gaps = list(_gaps(lines.text, taken))
    found = [block for begin, end in gaps for block in (*_tags(lines, begin, end), *_marked(lines, begin, end))]
    if any(mark in lines.text for mark in _MARKS):
        budget = _MAX_PARSED
        spans = [(block.start, block.end) for block in found]
        for begin, end in gaps:
            for match in _OBJECT.finditer(lines.text, begin, end):
                if budget <= 0 or len(found) >= _MAX_CALLS:
                    break
                if any(start <= match.start(1) < stop for start, stop in spans):
                    continue
                blocks, read = _json_at(lines, match.start(1), end)
                budget -= read
                found += blocks
                spans += [(block.start, block.end) for block in blocks]
    return sorted(found[:_MAX_CALLS], key=lambda block: block.start)


def find_framed(lines: Lines, taken: Sequence[RawBlock]) -> list[RawBlock]:
    """Calls between the tokens of a template, unless they begin within a block of `taken`; in the order of the text."""
    begins = [block.start for block in taken]
    found: list[RawBlock] = []
    for frame in find_frames(lines.text):
        before = bisect_right(begins, frame.start) - 1
        if before >= 0 and frame.start < taken[before].end:
            continue
        arguments, beyond = _framed_arguments(frame.payload)
        call = _call(frame.name, arguments)
        if call is not None:
            end = frame.end if frame.fenced else frame.end - len(frame.payload) + beyond
            found.append(_block(lines, call, frame.start, end))
    return sorted(found, key=lambda block: block.start)


def _framed_arguments(payload: str) -> tuple[dict[str, Any], int]:
    """What a call between tokens is given, and where that ends: a JSON document, or the code itself."""
    if not payload.startswith("{"):
        return {"action_input": payload}, len(payload)
    try:
        value, stop = json.JSONDecoder().raw_decode(payload)
    except (ValueError, RecursionError):
        return {}, 0
    return value, stop


def quoted_call(raw: RawBlock, before: str) -> RawBlock:
    """A fenced block; where it holds one tool call as JSON, the code of that. `before`: the end of the text above it;
    below `Action:` a call is made, and elsewhere only shown."""
    if '"' not in raw.code or len(raw.code) > _MAX_QUOTED or not any(mark in raw.code for mark in (*_MARKS, '"input"')):
        return raw
    try:
        calls = list(_calls(json.loads(raw.code)))
    except (ValueError, RecursionError):
        return raw
    if len(calls) != 1:
        return raw
    call = calls[0]
    return RawBlock(
        kind="tool-call",
        start=raw.start,
        end=raw.end,
        code=call.code,
        code_start=None,
        code_end=None,
        info=call.language,
        line=raw.line,
        closed=raw.closed,
        tool=call.tool,
        quoted=_ACTION_LINE.search(before) is None,
    )


def _gaps(text: str, taken: Sequence[RawBlock]) -> Iterator[tuple[int, int]]:
    position = 0
    for block in taken:
        if block.start > position:
            yield position, block.start
        position = max(position, block.end)
    yield position, len(text)


# --- tags -------------------------------------------------------------------------------------------------------------


def _tags(lines: Lines, begin: int, end: int) -> Iterator[RawBlock]:
    text = lines.text
    closings: dict[str, int] = {}
    position = begin
    while True:
        match = _TAG.search(text, position, end)
        if match is None:
            return
        name = match[1].partition("=")[0]
        position = match.end()
        close = closings.get(name, begin)
        if 0 <= close < position:
            close = closings[name] = text.find(f"</{name}>", position, end)
        stop = end if close < 0 else close
        following = _TAG.search(text, position, stop)
        if following is not None and following[1].partition("=")[0] == name:
            position = following.start()  # the closing one belongs to that; and nothing is looked at twice
            continue
        blocks = list(_tag(lines, match, stop, closed=close >= 0))
        if blocks:
            yield from blocks
            position = stop


def _parameters(inside: str) -> dict[str, str]:
    found: dict[str, str] = {}
    position = 0
    while (match := _PARAMETER.search(inside, position)) is not None:
        over = _PARAMETER_END.search(inside, match.end())
        position = len(inside) if over is None else over.start()  # left open at the end of a turn
        found[match[1]] = inside[match.end() : position].removeprefix("\n").removesuffix("\n")
    return found


def _tag(lines: Lines, match: re.Match[str], stop: int, *, closed: bool) -> Iterator[RawBlock]:
    text, tag = lines.text, match[1]
    inside = text[match.end() : stop]
    end = stop + len(f"</{tag.partition('=')[0]}>") if closed else stop
    if tag in {"tool_call", "function_call", "function_calls", "antml:function_calls"}:
        yield from _wrapped(lines, match.start(), match.end(), stop, end)
        return
    if tag.startswith("function=") or match["name"]:
        call = _call(match["name"] or tag.partition("=")[2], _parameters(inside))
        if call is not None:
            yield _block(lines, call, match.start(), end)
        return
    command = _COMMAND.match(inside) if tag.startswith("execute") else None
    if command is not None:
        call = _call(tag, {"command": unescape(command[1].strip())})
        if call is not None:
            yield _block(lines, call, match.start(), end)
        return
    lead = text[lines.starts[lines.number(match.start())] : match.start()]
    trail = text[end : lines.ends[lines.number(end)]]
    in_line = tag != "code" and closed and "\n" not in inside and not trail.strip() and _AFTER_PROSE.search(lead)
    alone = not lead.strip() or in_line
    if not alone or (tag == "code" and not inside.startswith(("\n", "\r\n"))) or not inside.strip():
        return  # a word in the running text
    if "\n" not in inside.strip():
        start = match.end() + len(inside) - len(inside.lstrip())
        stop = match.end() + len(inside.rstrip()) if "\n" not in inside else stop
    else:
        start = match.end() + _blank_lines(inside)
    code = text[start:stop]
    yield RawBlock(
        kind="tag",
        start=match.start(),
        end=end,
        code=code,
        code_start=start,
        code_end=stop,
        info=_language_of_tag(tag, code),
        line=lines.number(match.start()) + 1,
        closed=closed,
    )


def _blank_lines(inside: str) -> int:
    """How many characters come before the code: line ends behind the tag, or blanks if it is on that line."""
    first, _, rest = inside.partition("\n")
    if first.strip():
        return len(first) - len(first.lstrip())
    return len(first) + 1 + len(rest) - len(rest.lstrip("\r\n"))


def _language_of_tag(tag: str, code: str) -> str:
    named = tag.partition("_")[2]
    for language, words in _SPEAKS.items():
        if named in words:
            return language
    detected = evidence.detect(code)
    if detected is not None:
        return detected
    try:
        return "python" if not LANGUAGES["python"].syntax_findings(code[:20_000]) else ""
    except ValidationFailed:
        return ""


def _wrapped(lines: Lines, start: int, begin: int, stop: int, end: int) -> Iterator[RawBlock]:
    """What a template puts between tags: JSON, or tags again, perhaps several."""
    inside = lines.text[begin:stop]
    invokes = list(_INVOKE.finditer(inside))
    for number, invoke in enumerate(invokes):
        last = number + 1 == len(invokes)
        beyond = len(inside) if last else invokes[number + 1].start()
        call = _call(invoke[1] or invoke[2], _parameters(inside[invoke.end() : beyond]))
        if call is not None:
            yield _block(lines, call, start if not number else begin + invoke.start(), end if last else begin + beyond)
    keyed = _KEYED_CALL.match(inside)
    if keyed is not None:
        call = _call(keyed[1], {key: value.removesuffix("\n") for key, value in _KEYED.findall(inside)})
        if call is not None:
            yield _block(lines, call, start, end)
    if invokes or keyed is not None:
        return
    try:
        calls = list(_calls(json.loads(inside)))
    except (ValueError, RecursionError):
        return
    for call in calls[:1]:
        yield _block(lines, call, start, end)


def _marked(lines: Lines, begin: int, end: int) -> Iterator[RawBlock]:
    """What follows a mark: `Action:` with `Action Input:`, and `<|python_tag|>`."""
    text = lines.text
    for match in _ACTION.finditer(text, begin, end):
        over = _ACTION_ENDS.search(text, match.end(), end)
        stop = over.start() if over else end
        payload = text[match.end() : stop].strip()
        call = _call(match[1], _arguments(payload)) if payload else None
        if call is not None:
            yield _block(lines, call, match.start(), match.end() + len(text[match.end() : stop].rstrip()))
    for match in _PYTHON_TAG.finditer(text, begin, end):
        over = _PYTHON_TAG_ENDS.search(text, match.end(), end)
        stop = over.start() if over else end
        code = text[match.end() : stop]
        call = _of_python_tag(code) if code.strip() else None
        if call is not None:
            yield _block(lines, call, match.start(), stop)


def _of_python_tag(payload: str) -> Call | None:
    """Behind `<|python_tag|>` stands Python, or a call as JSON."""
    if not payload.lstrip().startswith(("{", "[")):
        return None if _BUILT_IN.match(payload) else Call("python", "python", payload)
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        return Call("python", "python", payload) if payload.lstrip().startswith("[") else None
    return next(_calls(value), None)


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json_at(lines: Lines, start: int, end: int) -> tuple[list[RawBlock], int]:
    """Calls of the JSON document that begins at an offset, and how many characters were read."""
    text = lines.text[start:end] if end < len(lines.text) else lines.text
    offset = 0 if end < len(lines.text) else start
    try:
        value, stop = json.JSONDecoder().raw_decode(text, offset)
    except (ValueError, RecursionError) as exc:
        return [], getattr(exc, "pos", len(text)) - offset + 100
    stop += start - offset
    calls = list(_calls(value))
    if not calls:
        return [], stop - start
    places = [match.start() for match in _KEY.finditer(lines.text, start, stop)]
    if len(places) != len(calls):
        places = [start + index for index in range(len(calls))]
    places[0] = start
    ends = [*places[1:], stop]
    blocks = [_block(lines, call, place, last) for call, place, last in zip(calls, places, ends, strict=True)]
    return blocks, stop - start


def _calls(value: object, depth: int = 0) -> Iterator[Call]:
    if depth > _DEPTH:
        return
    if isinstance(value, list):
        for item in value:
            yield from _calls(item, depth + 1)
        return
    if not isinstance(value, dict):
        return
    name, arguments = _named(value)
    if name is not None:
        call = _call(name, arguments)
        if call is not None:
            yield call
        return
    for key in ("tool_calls", "function_call", "function", "content", "message", "choices", "output"):
        if key in value:
            yield from _calls(value[key], depth + 1)


def _named(value: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The name and the arguments, if this object is a call."""
    speaks = value.get("language")
    if isinstance(speaks, str) and resolve(speaks) is not None and isinstance(value.get("code"), str):
        return "code", value
    for key, fields in (("name", ("arguments", "parameters", "input")), ("action", ("action_input",))):
        name = value.get(key)
        field = next((field for field in fields if field in value), None)
        if not isinstance(name, str) or field is None:
            continue
        arguments = value[field]
        if isinstance(arguments, str):
            arguments = _arguments(arguments)
        if isinstance(arguments, dict):
            return name, arguments
    return None, {}


def _arguments(text: str) -> dict[str, Any]:
    """Arguments that are written as text: JSON, or the code itself."""
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError):
        decoded = None
    return decoded if isinstance(decoded, dict) else {"action_input": text}


def _call(name: str, arguments: dict[str, Any]) -> Call | None:
    """The code that a call runs; None where its tool is for something else."""
    words = {word.lower() for word in _WORD.findall(name)}
    if not words & _RUNS or words & _NOT_CODE:
        return None
    for key in (*_KEYS, "input", "__arg1"):
        code = arguments.get(key)
        if isinstance(code, list) and code and all(isinstance(part, str) for part in code):
            code = code[-1] if len(code) > 2 and code[-2] in {"-c", "-lc"} else shlex.join(code)
        if isinstance(code, str) and code.strip():
            return Call(name[:100], _language(words, key, arguments, code), code)
    return None


def _language(words: set[str], key: str, arguments: dict[str, Any], code: str) -> str:
    for field in ("language", "lang", "runtime", "kernel"):
        named = arguments.get(field)
        if isinstance(named, str) and resolve(named) is not None:
            return named
    for language, speaks in _SPEAKS.items():
        if words & speaks:
            return language
    if key in {"command", "cmd", "bash_command"} or "command" in words:
        return "bash"
    return evidence.detect(code) or "python"


def _block(lines: Lines, call: Call, start: int, end: int) -> RawBlock:
    return RawBlock(
        kind="tool-call",
        start=start,
        end=end,
        code=call.code,
        code_start=None,
        code_end=None,
        info=call.language,
        line=lines.number(start) + 1,
        tool=call.tool,
    )
