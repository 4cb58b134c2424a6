"""Whether a piece of code may run at all: there is some, it is not too long, it parses; and how to show where not."""

from __future__ import annotations

import unicodedata

from emberbox.errors import UnsupportedLanguage
from emberbox.languages import get_language
from emberbox.languages.spec import LanguageSpec
from emberbox.models import Finding, VmExecutionConfig


def allowed_language(name: str, config: VmExecutionConfig) -> LanguageSpec:
    """The language behind a name or alias.

    Raises:
        UnsupportedLanguage: it is unknown, or not among `allowed_languages`.
    """
    spec = get_language(name)
    if spec.config.name not in config.allowed_languages:
        allowed = ", ".join(config.allowed_languages) or "none"
        raise UnsupportedLanguage(
            f"language {name!r} is not allowed by the configuration; allowed are: {allowed}",
            remediation=f'Add "{spec.config.name}" to `allowed_languages` in the configuration.',
            details={"language": name, "allowed": list(config.allowed_languages)},
        )
    return spec


def unfit(code: str, limit: int) -> Finding | None:
    """Why code is not even looked at: it is empty, or has more than `limit` characters. The limit also protects the
    parsers."""
    if not code.strip():
        return Finding(rule="empty", message="there is no code", line=1, column=1)
    if len(code) <= limit:
        return None
    return Finding(
        rule="length",
        message=f"the code has {len(code)} characters, {limit} are allowed",
        line=1,
        column=1,
        remediation="Shorten the code, or raise `max_code_length` in the configuration.",
    )


def render(finding: Finding, name: str = "code") -> str:
    """A finding as a compiler shows it: place and message, the line, a caret below the place."""
    head = f"{name}:{finding.line}:{finding.column}: {finding.message} [{finding.rule}]"
    if not finding.snippet.strip() or finding.column > len(finding.snippet) + 1:
        return head
    number = str(finding.line)
    return f"{head}\n  {number} | {finding.snippet}\n  {' ' * len(number)} | {_pad(finding.snippet, finding.column)}^"


def _pad(snippet: str, column: int) -> str:
    """Blanks that are as wide as what stands before a column; tabs stay, since nobody knows how wide they are."""
    blanks = []
    for char in snippet[: column - 1]:
        if char == "\t":
            blanks.append(char)
        elif not unicodedata.combining(char):
            blanks.append("  " if unicodedata.east_asian_width(char) in "WF" else " ")
    return "".join(blanks)
