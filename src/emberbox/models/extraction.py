"""What is found in a text."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from emberbox.models.base import Model


class CodeBlock(Model):
    """A piece of code found in a text."""

    language: str
    code: str
    execution_confidence: float = Field(ge=0, le=1)
    start_pos: int = Field(ge=0)
    end_pos: int = Field(ge=0)
    metadata: dict[str, Any] = Field(default_factory=dict)


class ExecutionIntent(Model):
    """How strongly a text asks for its code to be run."""

    confidence: float = Field(ge=0, le=1)
    trigger_keywords: list[str] = Field(default_factory=list)
    context_clues: list[str] = Field(default_factory=list)
    suggested_action: Literal["auto-execute", "ask", "show", "none"] = "none"


class Finding(Model):
    """One reason why a validation refused a piece of code. Lines and columns count from 1."""

    rule: str
    message: str
    line: int = Field(ge=1)
    column: int = Field(ge=1)
    snippet: str = ""
    why: str = Field(default="", description="the reason for the rule")
    remediation: str = Field(default="", description="how to allow it, or to mend it")
    action: Literal["block", "ask"] = Field(default="block", description="ask: a person may let it pass")
