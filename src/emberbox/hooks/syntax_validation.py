"""Refuses code that cannot run, and says where, as a compiler does."""

from __future__ import annotations

from emberbox.errors import UnsupportedLanguage
from emberbox.hooks.contract import Allow, Block, Hook, HookDecision, PreToolContext
from emberbox.hooks.dangerous_pattern import listed
from emberbox.languages.validation import allowed_language, unfit
from emberbox.models import VmExecutionConfig


class SyntaxValidationHook(Hook):
    """Refuses code whose language is not allowed, that is empty or too long, or that does not parse.

    Args:
        config: `allowed_languages` and `max_code_length`; the defaults if None.
    """

    def __init__(self, config: VmExecutionConfig | None = None) -> None:
        self._config = config or VmExecutionConfig()

    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        """Block with every place that is wrong."""
        try:
            spec = allowed_language(context.language, self._config)
        except UnsupportedLanguage as exc:
            return Block(reason=exc.message)
        bad = unfit(context.code, self._config.max_code_length)
        findings = [bad] if bad is not None else spec.syntax_findings(context.code)
        return Block(reason=listed(findings), findings=findings) if findings else Allow()
