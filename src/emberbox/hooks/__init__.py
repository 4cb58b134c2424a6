"""Hooks: policy around every execution and every call of a model (docs/hooks.md)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emberbox.hooks.approval import ApprovalDesk, Approver
    from emberbox.hooks.contract import (
        Allow,
        AskUser,
        Block,
        Hook,
        HookDecision,
        Modify,
        OutputFilter,
        PostLlmContext,
        PostToolContext,
        PreLlmContext,
        PreToolContext,
        ToolOutput,
    )
    from emberbox.hooks.dangerous_pattern import DangerousPatternHook
    from emberbox.hooks.dependency_injector import DependencyInjectorHook
    from emberbox.hooks.execution_logger import ExecutionLoggerHook
    from emberbox.hooks.manager import HookManager
    from emberbox.hooks.output_sanitizer import OutputSanitizerHook
    from emberbox.hooks.syntax_validation import SyntaxValidationHook
    from emberbox.models import ApprovalRequest, ApprovalResponse

_HOMES = {
    "emberbox.hooks.approval": ("ApprovalDesk", "Approver"),
    "emberbox.hooks.contract": (
        "Allow", "AskUser", "Block", "Hook", "HookDecision", "Modify", "OutputFilter", "PostLlmContext",
        "PostToolContext", "PreLlmContext", "PreToolContext", "ToolOutput",
    ),
    "emberbox.hooks.dangerous_pattern": ("DangerousPatternHook",),
    "emberbox.hooks.dependency_injector": ("DependencyInjectorHook",),
    "emberbox.hooks.execution_logger": ("ExecutionLoggerHook",),
    "emberbox.hooks.manager": ("HookManager",),
    "emberbox.hooks.output_sanitizer": ("OutputSanitizerHook",),
    "emberbox.hooks.syntax_validation": ("SyntaxValidationHook",),
    "emberbox.models": ("ApprovalRequest", "ApprovalResponse"),
}  # fmt: skip

__all__ = [
    "Allow",
    "ApprovalDesk",
    "ApprovalRequest",
    "ApprovalResponse",
    "Approver",
    "AskUser",
    "Block",
    "DangerousPatternHook",
    "DependencyInjectorHook",
    "ExecutionLoggerHook",
    "Hook",
    "HookDecision",
    "HookManager",
    "Modify",
    "OutputFilter",
    "OutputSanitizerHook",
    "PostLlmContext",
    "PostToolContext",
    "PreLlmContext",
    "PreToolContext",
    "SyntaxValidationHook",
    "ToolOutput",
]


def __getattr__(name: str) -> Any:
    """Names are loaded at first use: most programs have few hooks, and some hooks need much."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'emberbox.hooks' has no attribute {name!r}")
    return getattr(import_module(home), name)
