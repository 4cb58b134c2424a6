"""What a language consists of: its configuration, its parser, its syntax check and its restrictions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from emberbox.languages._tree import Source, generic_syntax_findings
from emberbox.models import Finding, LanguageConfig

if TYPE_CHECKING:
    from tree_sitter import Parser, Tree


@dataclass(frozen=True)
class Restriction:
    """Something that code may not do unless the configuration allows it.

    Attributes:
        id: stable name, `language.topic`; what `disabled_restrictions` takes.
        description: what was found, as the beginning of a message.
        why: the reason for the rule, one clause.
    """

    id: str
    description: str
    why: str

    @property
    def remediation(self) -> str:
        """How to allow it."""
        return f'To allow it, add "{self.id}" to `disabled_restrictions` in the configuration.'


class Hit(NamedTuple):
    """A place where a restriction applies, as byte offsets into the source."""

    rule: str
    start: int
    end: int
    what: str = ""


Checker = Callable[[Source], Iterable[Hit]]
SyntaxChecker = Callable[[Source], list[Finding]]


@cache
def _parser(grammar: str) -> Parser:
    from tree_sitter import Language, Parser

    return Parser(Language(import_module(grammar).language()))


@dataclass(frozen=True)
class LanguageSpec:
    """One language.

    Attributes:
        config: names, file extension, run command, time-out multiplier.
        restrictions: what is not allowed by default.
        grammar: module of the tree-sitter grammar.
        checker: finds the places where restrictions apply.
        syntax: a syntax check that is better than the grammar's own error nodes, if there is one.
    """

    config: LanguageConfig
    restrictions: tuple[Restriction, ...]
    grammar: str
    checker: Checker
    syntax: SyntaxChecker | None = None

    @property
    def name(self) -> str:
        """The language's own name."""
        return self.config.name

    def parse(self, code: str) -> Tree:
        """The syntax tree. Never fails: what does not fit the grammar is an ERROR node in the tree."""
        return _parser(self.grammar).parse(Source.encode(code))

    def source(self, code: str) -> Source:
        """The code with its syntax tree and its positions."""
        return Source(code, self.parse(code))

    def syntax_findings(self, code: str) -> list[Finding]:
        """Where the code is not valid in this language (rule `syntax`); empty if it is."""
        source = self.source(code)
        return self.syntax(source) if self.syntax is not None else generic_syntax_findings(source)

    def check(self, code: str, disabled: Collection[str] = ()) -> list[Finding]:
        """Which restrictions the code violates, in order of position.

        Args:
            code: source text; it need not be free of syntax errors.
            disabled: ids of restrictions to leave out. Ids of other languages are ignored.
        """
        source = self.source(code)
        rules = {rule.id: rule for rule in self.restrictions if rule.id not in disabled}
        seen: set[tuple[str, int]] = set()
        findings: list[Finding] = []
        for hit in sorted(self.checker(source), key=lambda hit: (hit.start, hit.rule)):
            rule = rules.get(hit.rule)
            line, column = source.position(hit.start)
            if rule is None or (hit.rule, line) in seen:  # one finding per rule and line is enough to act on
                continue
            seen.add((hit.rule, line))
            what = f": {hit.what}" if hit.what else ""
            findings.append(
                Finding(
                    rule=rule.id,
                    message=f"{rule.description}{what} ({rule.why})",
                    line=line,
                    column=column,
                    snippet=source.line_text(line),
                    remediation=rule.remediation,
                )
            )
        return findings
