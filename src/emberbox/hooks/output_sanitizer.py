"""Keeps secrets out of what callers and models get to see: output, rich results, errors, answers, prompts."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, get_args

from emberbox.errors import ConfigError
from emberbox.hooks._named_values import names_a_secret
from emberbox.hooks._redaction import MARKER, Rules, StreamRedactor, redact
from emberbox.hooks._secrets import KINDS
from emberbox.hooks.contract import (
    Allow,
    Block,
    Hook,
    HookDecision,
    Modify,
    OutputFilter,
    PostLlmContext,
    PostToolContext,
    PreLlmContext,
    PreToolContext,
    Stream,
    ToolOutput,
)
from emberbox.models import Result

Mode = Literal["redact", "block"]

_TEXTS = ("text", "html", "markdown", "svg", "latex", "javascript")
_BINARY = re.compile(r"(?:image/(?!svg)|audio/|video/|font/|application/(?:pdf|octet-stream|zip))")
"""MIME types whose text is base64: whatever looks like a token there is none."""


class OutputSanitizerHook(Hook):
    """Replaces secrets and personal data by `[REDACTED:kind]`, or blocks what holds them.

    Looks at the output of code (both streams, the texts of rich results, the error) while it streams and when it has
    ended, at answers of models, and, with `prompts`, at prompts. Nothing else of them changes, and JSON stays JSON.

    Args:
        mode: `redact` shows the rest; `block` shows nothing of an output or an answer that holds a secret (what has
            been streamed by then was redacted).
        kinds: which kinds of secrets (`KINDS` of this module, such as `aws-key`, `password`, `email`); None: all.
        allow: texts that are fine, exactly as they are written, and domains (`@example.com`) of e-mail addresses.
        prompts: redact prompts too, before they go to a model.

    Raises:
        ConfigError: an unknown kind or mode.
    """

    def __init__(
        self,
        mode: Mode = "redact",
        kinds: Collection[str] | None = None,
        allow: Sequence[str] = (),
        *,
        prompts: bool = False,
    ) -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"mode of OutputSanitizerHook is {mode!r}; there are: {', '.join(get_args(Mode))}")
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        unknown = sorted(set(kinds or ()) - set(KINDS))
        if unknown:
            named = ", ".join(repr(one) for one in unknown)
            raise ConfigError(
                f"OutputSanitizerHook knows no kind {named}; there are: {', '.join(sorted(KINDS))}",
                remediation="Use kinds of the list in the message, or none at all for every kind.",
            )
        self.mode = mode
        self.prompts = prompts
        self.counts: Counter[str] = Counter()
        """How many secrets of each kind were found so far. What streams is counted once, when it has ended."""
        self._rules = Rules(kinds, (allow,) if isinstance(allow, str) else tuple(allow))

    def post_tool(self, context: PostToolContext) -> HookDecision:
        """Redact, or block, the output of code that ran."""
        found: Counter[str] = Counter()
        parts = context.parts
        if context.output and parts == ToolOutput():  # a context that was made by hand
            return self._decided(found, self._text(context.output, found), "the output")
        error = parts.error
        if error is not None:
            value, traceback = self._text(error.value, found), self._text(error.traceback, found)
            error = error.model_copy(update={"value": value, "traceback": traceback})
        clean = ToolOutput(
            stdout=self._text(parts.stdout, found),
            stderr=self._text(parts.stderr, found),
            results=[_Walk(self._rules, found).result(one) for one in parts.results],
            error=error,
        )
        return self._decided(found, clean, "the output")

    def post_llm(self, context: PostLlmContext) -> HookDecision:
        """Redact, or block, the answer of a model."""
        found: Counter[str] = Counter()
        return self._decided(found, self._text(context.response, found), "the answer")

    def pre_llm(self, context: PreLlmContext) -> HookDecision:
        """Redact, or block, a prompt, if the hook was made with `prompts`. The history of the conversation went out
        before; it is not looked at."""
        if not self.prompts:
            return Allow()
        found: Counter[str] = Counter()
        return self._decided(found, self._text(context.prompt, found), "the prompt")

    def output_filter(self, context: PreToolContext) -> OutputFilter | None:
        """What redacts one execution's output as it streams, in both modes."""
        del context
        return SanitizingFilter(self._rules)

    def _text(self, text: str, found: Counter[str]) -> str:
        return redact(self._rules, text, found)

    def _decided(self, found: Counter[str], value: str | ToolOutput, where: str) -> HookDecision:
        if not found:
            return Allow()
        self.counts.update(found)
        told = ", ".join(
            f"{number} {kind}" for kind, number in sorted(found.items(), key=lambda one: (-one[1], one[0]))
        )
        if self.mode == "block":
            return Block(reason=f"{where} holds secrets: {told}")
        return Modify(value=value, reason=f"redacted {told}")


class SanitizingFilter:
    """Redacts the output of one execution while it streams. Together it lets out what `post_tool` makes of the whole.

    Holds back at most an incomplete line of each stream, of which 24 Ki characters at most.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._streams = {"stdout": StreamRedactor(rules), "stderr": StreamRedactor(rules)}

    def feed(self, stream: Stream, text: str) -> str:
        """Take the next piece; return what may be shown now."""
        return self._streams[stream].feed(text)

    def idle(self, stream: Stream) -> str:
        """Return of an incomplete line what is certain to be harmless: a prompt, dots of progress."""
        return self._streams[stream].idle()

    def finish(self, stream: Stream) -> str:
        """The stream has ended: return the rest."""
        return self._streams[stream].finish()

    def result(self, result: Result) -> Result:
        """Take a rich result; return it as it may be shown."""
        return _Walk(self._rules, Counter()).result(result)


class _Walk:
    """Through all texts of a rich result."""

    def __init__(self, rules: Rules, found: Counter[str]) -> None:
        self._rules = rules
        self._found = found

    def result(self, result: Result) -> Result:
        texts = {name: text for name in _TEXTS if (text := getattr(result, name)) is not None}
        extra = {mime: value for mime, value in result.extra.items() if not _is_binary(mime, value)}
        if not self._rules.concerns("\n".join(_strings([*texts.values(), result.json, extra]))):
            return result
        before = self._found.total()
        changes: dict[str, Any] = {name: self._any(text) for name, text in texts.items()}
        changes["json"] = self._any(result.json)
        changes["extra"] = result.extra | {mime: self._any(value) for mime, value in extra.items()}
        return dataclasses.replace(result, **changes) if self._found.total() > before else result

    def _any(self, value: Any) -> Any:
        if isinstance(value, str):
            return redact(self._rules, value, self._found)
        if isinstance(value, list | tuple):
            return [self._any(item) for item in value]
        return self._dict(value) if isinstance(value, dict) else value

    def _dict(self, value: dict[Any, Any]) -> dict[Any, Any]:
        """Names that become the same are numbered, so that no value is lost."""
        out: dict[Any, Any] = {}
        for key, item in value.items():
            name = clean = redact(self._rules, key, self._found) if isinstance(key, str) else key
            number = 1
            while name != key and (name in out or name in value):
                number += 1
                name = f"{clean} ({number})"
            out[name] = self._named(key, item)
        return out

    def _named(self, key: Any, item: Any) -> Any:
        """A value together with its name, which may be what tells that it is a secret: `{"password": "…"}`."""
        if isinstance(key, str) and type(item) in (str, int, float) and names_a_secret(key):
            pair = redact(self._rules, json.dumps({key: item}, ensure_ascii=False))
            (told,) = json.loads(pair).values()
            marker = MARKER.fullmatch(told) if isinstance(told, str) and told != item else None
            if marker:
                self._found[marker["kind"]] += 1
                return told
        return self._any(item)


def _is_binary(mime: str, value: Any) -> bool:
    return isinstance(value, str) and _BINARY.match(mime) is not None


def _strings(value: Any) -> Iterator[str]:
    """All texts in a value; names as they stand before one."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f'"{key}": '
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
