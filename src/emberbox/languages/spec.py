"""What a language consists of: its configuration, its parser, its syntax check and its restrictions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Literal, NamedTuple

from emberbox.errors import ValidationFailed
from emberbox.languages._bearable import is_bearable
from emberbox.languages._tree import Source, generic_syntax_findings
from emberbox.models import Finding, Language, LanguageConfig

if TYPE_CHECKING:
    from tree_sitter import Language as Grammar
    from tree_sitter import Parser, Tree


@dataclass(frozen=True)
class Restriction:
    """Something that code may not do unless the configuration allows it.

    Attributes:
        id: stable name, `language.topic`; what the settings' policy takes.
        description: what was found, as the beginning of a message.
        why: the reason for the rule, one clause.
        group: `restriction` (what this language may not do), `danger` (the catalogue of dangerous patterns) or `own`
            (from the settings).
    """

    id: str
    description: str
    why: str
    group: Literal["restriction", "danger", "own"] = "restriction"

    @property
    def remediation(self) -> str:
        """How to allow it."""
        return f'To allow it, add "{self.id}" to `vm_execution.policy.disabled` in the settings.'


class Hit(NamedTuple):
    """A place where a restriction applies, as byte offsets into the source. `strict`: what is there is ordinary, and
    only the strict profile of the policy refuses it."""

    rule: str
    start: int
    end: int
    what: str = ""
    strict: bool = False


class Embedded(NamedTuple):
    """Code of another language in a text, with the bytes of the source that hold it."""

    language: Language
    code: str
    start: int
    end: int


Checker = Callable[[Source], Iterable[Hit]]
SyntaxChecker = Callable[[Source], list[Finding]]


@cache
def _grammar(name: str) -> Grammar:
    from tree_sitter import Language

    return Language(import_module(name).language())


@cache
def _parser(grammar: str) -> Parser:
    from tree_sitter import Parser

    return Parser(_grammar(grammar))


@dataclass(frozen=True)
class LanguageSpec:
    """One language.

    Attributes:
        config: names, file extension, run command, time-out multiplier.
        restrictions: what is not allowed by default.
        dangers: the dangerous patterns that are looked for.
        grammar: module of the tree-sitter grammar.
        checker: finds the places where restrictions and dangers are.
        embedded: finds code of other languages, such as that of `python3 -c`.
        syntax: a syntax check that is better than the grammar's own error nodes, if there is one.
        visible: the code with blanks in place of what its parsers do not know, each byte where it was.
    """

    config: LanguageConfig
    restrictions: tuple[Restriction, ...]
    dangers: tuple[Restriction, ...]
    grammar: str
    checker: Checker
    syntax: SyntaxChecker | None = None
    embedded: Callable[[Source], Iterable[Embedded]] | None = None
    visible: Callable[[str], str] | None = None

    @property
    def name(self) -> str:
        """The language's own name."""
        return self.config.name

    @property
    def tree_sitter(self) -> Grammar:
        """The grammar, as tree-sitter has it."""
        return _grammar(self.grammar)

    def parse(self, code: str) -> Tree:
        """The syntax tree. What does not fit the grammar is an ERROR node in the tree.

        Raises:
            ValidationFailed: the text is one that its parser does not get through with bounded work.
        """
        text = Source.encode(code if self.visible is None else self.visible(code))
        if not is_bearable(self.grammar, text):
            raise ValidationFailed(
                f"{self.name} code that cannot be read: its parser takes too long, or too much memory.",
                remediation="Write it in shorter statements, or in several pieces.",
            )
        return _parser(self.grammar).parse(text)

    def source(self, code: str) -> Source:
        """The code with its syntax tree and its positions."""
        return Source(code, self.parse(code))

    def syntax_findings(self, code: str) -> list[Finding]:
        """Where the code is not valid in this language (rule `syntax`); empty if it is."""
        source = self.source(code)
        return self.syntax(source) if self.syntax is not None else generic_syntax_findings(source)

    @property
    def rules(self) -> tuple[Restriction, ...]:
        """Restrictions and dangers."""
        return self.restrictions + self.dangers

    def hits(self, source: Source) -> list[Hit]:
        """All places where a rule applies, in order of position; those of code of other languages in it as well."""
        found = list(self.checker(source))
        if self.embedded is not None:
            from emberbox.languages import LANGUAGES

            for inner in self.embedded(source):
                other = LANGUAGES[inner.language]
                hits = other.hits(other.source(inner.code))
                where = f"in {inner.language} code"
                found += [hit._replace(start=inner.start, end=inner.end, what=where) for hit in hits]
        return sorted(found, key=lambda hit: (hit.start, hit.rule))

    def check(self, code: str, disabled: Collection[str] = ()) -> list[Finding]:
        """Which rules the code violates, in order of position, in the strict profile.

        Args:
            code: source text; it need not be free of syntax errors.
            disabled: ids of rules to leave out. Ids of other languages are ignored.
        """
        from emberbox.languages import RULES

        rules = {name: rule for name, rule in RULES.items() if name not in disabled}
        source = self.source(code)
        return findings_of(source, self.hits(source), rules)


def findings_of(source: Source, hits: Iterable[Hit], rules: Mapping[str, Restriction]) -> list[Finding]:
    """Hits as findings, one for each rule and line: that is enough to act on. Rules that are not given are not looked
    at."""
    seen: set[tuple[str, int]] = set()
    findings: list[Finding] = []
    for hit in hits:
        rule = rules.get(hit.rule)
        if rule is None:
            continue
        line, column = source.position(hit.start)
        if (hit.rule, line) in seen:
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
                why=rule.why,
                remediation=rule.remediation,
            )
        )
    return findings
