"""The policy in force: which rules are looked at for whom, and what follows from a violation.

What such rules can do and what not is in docs/policy.md; the security boundary is the machine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from threading import Lock
from typing import Literal

from emberbox.errors import ConfigError
from emberbox.languages import LANGUAGES
from emberbox.languages._tree import Source
from emberbox.languages.spec import Hit, Restriction, findings_of
from emberbox.models import Finding, Language, PolicyConfig, PolicySwitches, RuleConfig

Action = Literal["block", "ask", "off"]
_REMEMBERED_CHARACTERS = 200_000
"""Of code whose hits are remembered: twice what one execution may have by default."""
_REMEMBERED_HITS = 1000


@dataclass(frozen=True, slots=True)
class RuleInForce:
    """A rule and what it does. `language` is that of the code it looks at."""

    rule: Restriction
    language: Language
    action: Action


class Policy:
    """Rules that come with Emberbox and one's own, switched for everybody, by role and by agent.

    Args:
        config: the switches and rules of the settings; everything at its default if None.

    Raises:
        ConfigError: a switch names no rule, or a rule of one's own is wrong.
    """

    def __init__(self, config: PolicyConfig | None = None) -> None:
        self._config = config or PolicyConfig()
        self._rules: dict[str, tuple[Restriction, Language]] = {
            rule.id: (rule, spec.config.name) for spec in LANGUAGES.values() for rule in spec.rules
        }
        self._own = {rule.id: rule for rule in self._config.rules}
        if self._own:
            self._add_own(self._config.rules)
        self._verify()
        self._remembered: OrderedDict[tuple[Language, str], tuple[Source, list[Hit]]] = OrderedDict()
        self._lock = Lock()
        self._actions = lru_cache(maxsize=1024)(self._compute_actions)
        self._strict = lru_cache(maxsize=1024)(self._compute_strict)

    def _add_own(self, rules: Iterable[RuleConfig]) -> None:
        from emberbox.languages._own_rules import finder_of, restriction_of

        self._finders = {rule.id: finder_of(rule) for rule in self._config.rules}
        for rule in rules:
            if rule.id in self._rules:
                raise ConfigError(f"policy.rules: there are two rules {rule.id!r}.", remediation="Rename one of them.")
            self._rules[rule.id] = (restriction_of(rule), rule.language)

    def _verify(self) -> None:
        levels: list[tuple[str, PolicySwitches]] = [("policy", self._config)]
        levels += [(f"policy.roles.{name}", switches) for name, switches in self._config.roles.items()]
        levels += [(f"policy.agents.{name}", switches) for name, switches in self._config.agents.items()]
        for where, switches in levels:
            for key in ("disabled", "ask", "enabled"):
                self._names_rules(f"{where}.{key}", getattr(switches, key))

    def _names_rules(self, where: str, patterns: Iterable[str]) -> None:
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in self._rules):
                near = get_close_matches(pattern, self._rules, n=1)
                hint = f"Did you mean {near[0]}? " if near else ""
                raise ConfigError(
                    f"{where}: there is no rule {pattern!r:.80}.",
                    remediation=f"{hint}`emberbox policy list` shows all rules.",
                )

    # --- rules ------------------------------------------------------------------------------------------------------

    def rules(self, agent_id: str | None = None, role: str | None = None) -> list[RuleInForce]:
        """All rules with what they do for an agent and a role (None: as for everybody)."""
        actions = self._actions(agent_id, role)
        return [RuleInForce(rule, language, actions[name]) for name, (rule, language) in self._rules.items()]

    def _levels(self, agent_id: str | None, role: str | None) -> list[PolicySwitches]:
        """The switches that count, the widest first."""
        levels: list[PolicySwitches] = [self._config]
        if role is not None and role in self._config.roles:
            levels.append(self._config.roles[role])
        if agent_id is not None:
            levels += [one for name, one in self._config.agents.items() if fnmatchcase(agent_id, name)]
        return levels

    def _compute_strict(self, agent_id: str | None, role: str | None) -> frozenset[str]:
        """The rules that refuse what ordinary programs do as well: all in the profile `strict`, and those that a switch
        names in `enabled` or `ask`."""
        levels = self._levels(agent_id, role)
        profile = next((level.profile for level in reversed(levels) if level.profile), "standard")
        patterns = [pattern for level in levels for pattern in (*level.enabled, *level.ask)]
        named = {name for name in self._rules if any(fnmatchcase(name, pattern) for pattern in patterns)}
        return frozenset(self._rules if profile == "strict" else named)

    def _compute_actions(self, agent_id: str | None, role: str | None) -> dict[str, Action]:
        actions: dict[str, Action] = {
            name: self._own[name].action if name in self._own else "block" for name in self._rules
        }
        for level in self._levels(agent_id, role):
            if level.profile is not None:
                for name in self._rules.keys() - self._own.keys():
                    actions[name] = "off" if level.profile == "open" else "block"
            self._switch(actions, level.disabled, "off")
            self._switch(actions, level.ask, "ask")
            self._switch(actions, level.enabled, "block")
        return actions

    @staticmethod
    def _switch(actions: dict[str, Action], patterns: Iterable[str], action: Action) -> None:
        for pattern in patterns:
            for name in actions:
                if fnmatchcase(name, pattern):
                    actions[name] = action

    # --- check ------------------------------------------------------------------------------------------------------

    def check(
        self,
        code: str,
        language: Language,
        *,
        agent_id: str | None = None,
        role: str | None = None,
        groups: Collection[str] = ("restriction", "danger", "own"),
    ) -> list[Finding]:
        """Which rules the code violates, in order of position; each finding says what its rule does.

        Args:
            code: source text; it need not be free of syntax errors.
            language: of the code.
            agent_id, role: for whom; None: as for everybody.
            groups: look only at rules of these groups.
        """
        actions = self._actions(agent_id, role)
        rules = {
            name: rule for name, (rule, _) in self._rules.items() if actions[name] != "off" and rule.group in groups
        }
        if not rules:
            return []
        strict = self._strict(agent_id, role)
        source, found = self._hits(code, language)
        hits = [hit for hit in found if not hit.strict or hit.rule in strict]
        findings = findings_of(source, hits, rules)
        return [
            finding if actions[finding.rule] == "block" else finding.model_copy(update={"action": "ask"})
            for finding in findings
        ]

    def _hits(self, code: str, language: Language) -> tuple[Source, list[Hit]]:
        """Everything that any rule has against the code, in order of position. The hits of the codes that were looked
        at last are remembered: a block of an answer is looked at when it is chosen, by hooks, and when it runs."""
        key = (language, code)
        with self._lock:
            if (known := self._remembered.get(key)) is not None:
                self._remembered.move_to_end(key)
                return known
        spec = LANGUAGES[language]
        source = spec.source(code)
        hits = [*spec.hits(source), *self._own_hits(source, language)]
        hits.sort(key=lambda hit: (hit.start, hit.rule))
        if len(code) <= _REMEMBERED_CHARACTERS and len(hits) <= _REMEMBERED_HITS:
            with self._lock:
                self._remembered[key] = (source, hits)
                while sum(len(text) for _, text in self._remembered) > _REMEMBERED_CHARACTERS:
                    self._remembered.popitem(last=False)
        return source, hits

    def _own_hits(self, source: Source, language: Language) -> list[Hit]:
        found: list[Hit] = []
        for name, rule in self._own.items():
            if rule.language == language:
                found += self._finders[name](source)
        return found
