"""A hook that adds the imports that code uses and forgot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from emberbox.hooks import _imports_javascript, _imports_python, _imports_rust
from emberbox.hooks.contract import Allow, Hook, HookDecision, Modify, PreToolContext
from emberbox.languages import resolve
from emberbox.languages.policy import Policy
from emberbox.models import Language

LONGEST = 100_000
"""Characters of code that is still looked at."""
CHECKED = 300_000
"""Characters that the policy checks for one answer, which a hook has seconds for."""


class _Way(NamedTuple):
    """How it is done in one language: what is missing, how it is added, and how a check of code gets to see it."""

    find: Callable[[str], dict[str, str]]
    add: Callable[[str, Collection[str]], str]
    plain: Callable[[str, Collection[str]], str]


_WAYS: dict[Language, _Way] = {
    "python": _Way(_imports_python.find, _imports_python.add, _imports_python.add),
    "javascript": _Way(_imports_javascript.find, _imports_javascript.add, _imports_javascript.plain),
    "rust": _Way(_imports_rust.find, _imports_rust.add, _imports_rust.add),
}


class DependencyInjectorHook(Hook):
    """Adds what code uses without importing it, where the name can mean only one thing: `json.dumps(x)` gets its
    `import json`. Code in which nothing is missing, or that does not parse, stays as it is.

    Python gets lines of their own, which the kernel leaves out of line numbers; JavaScript and Rust get a beginning of
    the first line. Either gives way to a variable of that name from an earlier execution.

    Args:
        policy: nothing is added that would violate it; None: everything is.
        disabled: names for which nothing is added, as they stand in the code: `np`, `fs`, `HashMap`.
    """

    def __init__(self, policy: Policy | None = None, disabled: Collection[str] = ()) -> None:
        self._policy = policy
        self._disabled = frozenset(disabled)

    def pre_tool(self, context: PreToolContext) -> HookDecision:
        """Give the code with what it misses."""
        language = resolve(context.language)
        way = None if language is None else _WAYS.get(language)
        if language is None or way is None or len(context.code) > LONGEST:
            return Allow()
        missing = [statement for statement, name in way.find(context.code).items() if name not in self._disabled]
        if missing and self._policy is not None:
            missing = _Permitted(self._policy, context, language, way).of(missing)
        changed = way.add(context.code, missing) if missing else context.code
        if changed == context.code:
            return Allow()
        return Modify(value=changed, reason=f"added {', '.join(missing)}")


class _Permitted:
    """Which additions bring no finding that the code does not have anyway."""

    def __init__(self, policy: Policy, context: PreToolContext, language: Language, way: _Way) -> None:
        self._policy = policy
        self._context = context
        self._language = language
        self._way = way
        self._left = CHECKED // max(1, len(context.code))
        self._gave_up = False
        self._before = self._findings(())

    def of(self, statements: Sequence[str]) -> list[str]:
        """Those that can be added together, in their order; none where to find out would take too long."""
        permitted = self._search(statements, [])
        return [] if self._gave_up else permitted

    def _search(self, statements: Sequence[str], accepted: list[str]) -> list[str]:
        """`accepted` and what can be added to them. Mostly that is all: so all are tried at once, then the halves."""
        if self._left <= 0:
            self._gave_up = True
            return accepted
        if not self._findings([*accepted, *statements]) - self._before:
            return [*accepted, *statements]
        if len(statements) == 1:
            return accepted
        middle = len(statements) // 2
        return self._search(statements[middle:], self._search(statements[:middle], accepted))

    def _findings(self, statements: Collection[str]) -> Counter[str]:
        self._left -= 1
        code = self._way.plain(self._context.code, statements)
        found = self._policy.check(code, self._language, agent_id=self._context.agent_id, role=self._context.role)
        return Counter(finding.rule for finding in found)
