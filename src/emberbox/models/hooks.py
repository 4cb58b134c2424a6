"""What hooks decide, what people are asked, and what is written down of both."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from emberbox.models.base import Model

HookStage = Literal["pre_tool", "post_tool", "pre_llm", "post_llm"]
Verdict = Literal["allow", "block", "modify", "ask_user"]


class HookUse(Model):
    """A hook that the settings name. Its name alone is enough where nothing else is said."""

    name: str = Field(description="a built-in hook, an entry point of the group emberbox.hooks, or module:Class")
    order: int = Field(default=0, description="lower ones run first; those of the same order as they are listed")
    agents: list[str] = Field(default_factory=list, description="only for these agents (patterns with *); all if empty")
    templates: list[str] = Field(default_factory=list, description="only in sandboxes of these templates; all if empty")
    timeout_seconds: float | None = Field(default=None, gt=0, description="for one decision of this hook")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of its class")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class HooksConfig(Model):
    """Hooks of this installation."""

    use: list[HookUse] = Field(default_factory=list, description="hooks in force, by name or as a table")
    timeout_seconds: float = Field(default=5.0, gt=0, description="what a hook has for one decision")
    approval_timeout_seconds: float = Field(default=300.0, gt=0, description="what a person has for one answer")


class ApprovalRequest(Model):
    """A question to a person. `code` is what it is about: code, output, prompt or response."""

    approval_id: str
    prompt: str
    code: str
    stage: HookStage
    hook: str = Field(description="who asks")
    language: str | None = None
    agent_id: str = "local"
    vm_id: str | None = None
    expires_at: datetime = Field(description="no answer by then counts as no")


class ApprovalResponse(Model):
    """A person's answer. `edited_code`, where it is given with a yes, takes the place of what was asked about."""

    approval_id: str
    approve: bool
    edited_code: str | None = None
    by: str = Field(default="", max_length=200, description="who answered, for the audit trail")
    reason: str = Field(default="", max_length=2000)


class DecisionRecord(Model):
    """One decision, as the audit trail has it."""

    stage: HookStage
    hook: str
    decision: Verdict
    reason: str = ""
    approved: bool | None = Field(default=None, description="for ask_user: what the person said; None: nobody answered")
    approved_by: str = ""
    edited: bool = Field(default=False, description="the person changed it")
    duration_ms: float = Field(ge=0, description="of the hook itself, without the wait for a person")
    decided_at: datetime
