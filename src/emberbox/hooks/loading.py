"""Hooks by name: those that come with Emberbox, entry points, and classes of one's own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from emberbox.errors import ConfigError
from emberbox.hooks.approval import Approver
from emberbox.hooks.contract import Hook
from emberbox.hooks.manager import HookManager
from emberbox.languages.policy import Policy
from emberbox.models import HooksConfig, HookUse, VmExecutionConfig

GROUP = "emberbox.hooks"
"""The group of entry points."""
_STAGES = ("pre_tool", "post_tool", "pre_llm", "post_llm", "output_filter")


def manager_of(
    hooks: HooksConfig, execution: VmExecutionConfig, policy: Policy, *, approver: Approver | None = None
) -> HookManager:
    """A manager with the hooks that the settings name.

    Raises:
        ConfigError: a hook is not there or cannot be made; the message names it.
    """
    manager = HookManager(
        approver=approver,
        timeout_seconds=hooks.timeout_seconds,
        approval_timeout_seconds=hooks.approval_timeout_seconds,
    )
    for use in hooks.use:
        manager.add_hook(
            load_hook(use, execution, policy),
            order=use.order,
            agents=use.agents,
            templates=use.templates,
            timeout_seconds=use.timeout_seconds,
        )
    return manager


def load_hook(use: HookUse, execution: VmExecutionConfig, policy: Policy) -> Hook:
    """The hook of a name, made with its options. Built-in ones get policy and limits of the settings.

    Raises:
        ConfigError: it is not there or cannot be made.
    """
    try:
        hook = _maker(use.name, execution, policy)(**use.options)
    except ConfigError:
        raise
    except Exception as exc:
        raise ConfigError(
            f"hooks.use: hook {use.name!r} cannot be made: {type(exc).__name__}: {exc}.",
            remediation="Correct its `options`, or its class.",
        ) from exc
    if not any(callable(getattr(hook, stage, None)) for stage in _STAGES):
        raise ConfigError(
            f"hooks.use: {use.name!r} is no hook: it has none of {', '.join(_STAGES)}.",
            remediation="Derive its class from emberbox.hooks.Hook.",
        )
    return hook  # type: ignore[no-any-return]


def _maker(name: str, execution: VmExecutionConfig, policy: Policy) -> Callable[..., Any]:
    own = built_in(execution, policy)
    if name in own:
        return own[name]
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
        except (ImportError, AttributeError, ValueError) as exc:
            raise ConfigError(
                f"hooks.use: {name!r} cannot be imported: {exc}.",
                remediation="Write it as module:Class, with the module where Python finds it (PYTHONPATH).",
            ) from exc
    found = entry_points(group=GROUP, name=name)
    if not found:
        others = sorted({*own, *(point.name for point in entry_points(group=GROUP))})
        raise ConfigError(
            f"hooks.use: there is no hook {name!r:.80}; known are {', '.join(others)}.",
            remediation="Name one of them, or a class of your own as module:Class.",
        )
    try:
        return next(iter(found)).load()  # type: ignore[no-any-return]
    except Exception as exc:
        raise ConfigError(f"hooks.use: the entry point {name!r} cannot be loaded: {exc}.") from exc


def built_in(execution: VmExecutionConfig, policy: Policy) -> dict[str, Callable[..., Hook]]:
    """Makers of the hooks that come with Emberbox, by name."""

    def dangerous_pattern(**options: Any) -> Hook:
        from emberbox.hooks.dangerous_pattern import DangerousPatternHook

        return DangerousPatternHook(policy, **options)

    def syntax_validation(**options: Any) -> Hook:
        from emberbox.hooks.syntax_validation import SyntaxValidationHook

        return SyntaxValidationHook(execution, **options)

    def execution_logger(**options: Any) -> Hook:
        from emberbox.hooks.execution_logger import ExecutionLoggerHook

        return ExecutionLoggerHook(**options)

    def dependency_injector(**options: Any) -> Hook:
        from emberbox.hooks.dependency_injector import DependencyInjectorHook

        return DependencyInjectorHook(policy, **options)

    def output_sanitizer(**options: Any) -> Hook:
        from emberbox.hooks.output_sanitizer import OutputSanitizerHook

        return OutputSanitizerHook(**options)

    return {
        "dangerous-pattern": dangerous_pattern,
        "syntax-validation": syntax_validation,
        "execution-logger": execution_logger,
        "dependency-injector": dependency_injector,
        "output-sanitizer": output_sanitizer,
    }
