"""Rules from the settings: places where code uses names that somebody wants to know of, or that fit a query."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Sequence

from emberbox.errors import ConfigError
from emberbox.languages import LANGUAGES, _javascript_names, _python_names
from emberbox.languages._bash_words import Words, commands
from emberbox.languages._tree import Source
from emberbox.languages.rust import used_paths
from emberbox.languages.spec import Hit, Restriction
from emberbox.models import Language, RuleConfig

Finder = Callable[[Source], Iterator[Hit]]


def restriction_of(config: RuleConfig) -> Restriction:
    """The rule that a configuration describes."""
    return Restriction(config.id, config.message, config.why, group="own")


def finder_of(config: RuleConfig) -> Finder:
    """What finds the places of a rule.

    Raises:
        ConfigError: its query is not one for the language.
    """
    if config.query is not None:
        return _query(config, config.query)
    return lambda source: _FINDERS[config.language](source, config.id, tuple(config.uses))


def _query(config: RuleConfig, text: str) -> Finder:
    from tree_sitter import Query, QueryCursor, QueryError

    try:
        query = Query(LANGUAGES[config.language].tree_sitter, text)
    except QueryError as exc:
        raise ConfigError(
            f"policy.rules: {config.id}: the query is not one for {config.language}: {exc}.",
            remediation="docs/policy.md has examples.",
        ) from exc

    def find(source: Source) -> Iterator[Hit]:
        for _, captures in QueryCursor(query).matches(source.root):
            nodes = captures.get("hit") or next(iter(captures.values()), [])
            for node in nodes[:1]:
                yield Hit(config.id, node.start_byte, node.end_byte)

    return find


def _begins(path: str, wanted: Sequence[str], separator: str) -> str | None:
    return next((one for one in wanted if path == one or path.startswith(one + separator)), None)


def _python(source: Source, rule: str, uses: Sequence[str]) -> Iterator[Hit]:
    wanted = [f"builtins.{one}" if hasattr(builtins, one.partition(".")[0]) else one for one in uses]

    def matters(path: str) -> bool:
        return _begins(path, wanted, ".") is not None

    scope = _python_names.Scope(source, matters)
    for node, path in [*scope.imports, *scope.references()]:
        if matters(path):
            yield Hit(rule, node.start_byte, node.end_byte, f"`{path.removeprefix('builtins.')}`")


def _javascript(source: Source, rule: str, uses: Sequence[str]) -> Iterator[Hit]:
    heads = frozenset(one.partition(".")[0] for one in uses)
    scope = _javascript_names.Scope(source, roots=heads)
    for node, module in scope.modules:
        if _begins(module.removeprefix("node:"), uses, "/"):
            yield Hit(rule, node.start_byte, node.end_byte, f"`{module}`")
    for node, path in scope.references():
        if _begins(path.removeprefix("module:"), uses, "."):
            yield Hit(rule, node.start_byte, node.end_byte, f"`{path.removeprefix('module:')}`")


def _bash(source: Source, rule: str, uses: Sequence[str]) -> Iterator[Hit]:
    for command in commands(source, Words(source)):
        line = " ".join([command.name, *command.known()])
        if _begins(line, uses, " "):
            yield Hit(rule, command.node.start_byte, command.node.end_byte, f"`{line[:80]}`")


def _rust(source: Source, rule: str, uses: Sequence[str]) -> Iterator[Hit]:
    for node, path in used_paths(source, lambda path: _begins("::".join(path), uses, "::") is not None):
        if _begins(path, uses, "::"):
            yield Hit(rule, node.start_byte, node.end_byte, f"`{path}`")


_FINDERS: dict[Language, Callable[[Source, str, Sequence[str]], Iterator[Hit]]] = {
    "python": _python,
    "javascript": _javascript,
    "bash": _bash,
    "rust": _rust,
    "typescript": _javascript,
}
