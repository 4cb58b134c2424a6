"""The policy as a hook: refuses, or asks about, code that does something dangerous."""

from __future__ import annotations

from collections.abc import Collection

from emberbox.hooks.contract import Allow, AskUser, Block, Hook, HookDecision, PreToolContext
from emberbox.languages import resolve
from emberbox.languages.policy import Policy
from emberbox.languages.validation import render
from emberbox.models import Finding

_SHOWN = 10


class DangerousPatternHook(Hook):
    """Looks for dangerous patterns on the syntax tree: destructive commands, fork bombs, code from the network, crypto
    miners, credentials (docs/policy.md has the catalogue). An engine does so by itself, for all groups of rules; this
    is for managers of one's own.

    Args:
        policy: the rules in force; all of them, blocking, if None.
        groups: which groups of rules: `danger`, `restriction`, `own`.
    """

    def __init__(self, policy: Policy | None = None, groups: Collection[str] = ("danger", "own")) -> None:
        self._policy = policy or Policy()
        self._groups = tuple(groups)

    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        """Block where a rule blocks, AskUser where all that apply leave it to a person."""
        language = resolve(context.language)
        if language is None:
            return Allow()
        found = self._policy.check(
            context.code, language, agent_id=context.agent_id, role=context.role, groups=self._groups
        )
        blocking = [finding for finding in found if finding.action == "block"]
        if blocking:
            return Block(reason=listed(blocking), findings=blocking)
        return AskUser(prompt=question(found)) if found else Allow()


def question(findings: list[Finding]) -> str:
    """What a person is asked about findings."""
    return f"Run this code? {listed(findings)}"


def listed(findings: list[Finding]) -> str:
    """Findings for people, one below the other."""
    more = len(findings) - _SHOWN
    lines = [render(finding) for finding in findings[:_SHOWN]]
    return "\n".join([*lines, f"and {more} more"] if more > 0 else lines)
