"""One JSON line for everything that happens, with secrets taken out."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

import structlog

from emberbox.errors import ConfigError
from emberbox.hooks._redaction import Rules, redact
from emberbox.hooks.contract import (
    Allow,
    Hook,
    HookDecision,
    PostLlmContext,
    PostToolContext,
    PreLlmContext,
    PreToolContext,
)

_SHOWN = 2_000
"""Characters of a code, output, prompt or answer that are logged; the rest is counted."""


class ExecutionLoggerHook(Hook):
    """Logs `execution.requested`, `execution.finished`, `llm.requested` and `llm.answered`.

    A line has the time (UTC), who and where, and the text with secrets redacted: its first 2,000 characters, its
    length and the SHA-256 of the whole, which finds it again in the history.

    Args:
        path: append to this file (made for its owner only); standard error if None.
        show_text: log texts at all; False logs lengths and hashes only.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: str | Path | None = None, *, show_text: bool = True) -> None:
        self._show_text = show_text
        self._rules = Rules()
        self._path = None if path is None else Path(path)
        self._lock = threading.Lock()
        if self._path is not None:
            self._write(self._path, "")
        self._log = structlog.wrap_logger(
            self,
            wrapper_class=structlog.BoundLogger,
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
                structlog.processors.JSONRenderer(),
            ],
        )

    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        """Log the code."""
        self._event("execution.requested", context, language=context.language, **self._text("code", context.code))
        return Allow()

    async def post_tool(self, context: PostToolContext) -> HookDecision:
        """Log how it ended and what it printed."""
        error = context.parts.error
        self._event(
            "execution.finished",
            context,
            language=context.language,
            exit_code=context.exit_code,
            duration_ms=context.duration_ms,
            error=None if error is None else redact(self._rules, f"{error.name}: {error.value}")[:_SHOWN],
            **self._text("output", context.output),
        )
        return Allow()

    async def pre_llm(self, context: PreLlmContext) -> HookDecision:
        """Log the prompt."""
        self._event("llm.requested", context, token_count=context.token_count, **self._text("prompt", context.prompt))
        return Allow()

    async def post_llm(self, context: PostLlmContext) -> HookDecision:
        """Log the answer."""
        answer = self._text("response", context.response)
        self._event("llm.answered", context, model=context.model, token_count=context.token_count, **answer)
        return Allow()

    def _event(
        self, event: str, context: PreToolContext | PostToolContext | PreLlmContext | PostLlmContext, **fields: Any
    ) -> None:
        who = {name: getattr(context, name) for name in ("agent_id", "role", "vm_id", "template", "execution_id")}
        self._log.info(event, **{name: value for name, value in {**who, **fields}.items() if value is not None})

    def _text(self, name: str, text: str) -> dict[str, Any]:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        facts: dict[str, Any] = {f"{name}_characters": len(text), f"{name}_sha256": digest}
        # redacted first: a secret that is cut in two would not be found
        return {name: redact(self._rules, text)[:_SHOWN], **facts} if self._show_text else facts

    def info(self, line: str) -> None:
        """Write a line; structlog calls it with what the processors made."""
        if self._path is not None:
            self._write(self._path, f"{line}\n")
        else:
            print(line, file=sys.stderr, flush=True)

    def _write(self, path: Path, text: str) -> None:
        try:
            with self._lock, _appending(path) as file:
                file.write(text)
        except OSError as exc:
            raise ConfigError(
                f"Cannot write the log {path}: {exc.strerror}.", remediation="Name a file that you may write to."
            ) from exc


def _appending(path: Path) -> TextIO:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")
