"""The languages: how each is named, run, parsed, and what its code may not do by default.

Importing this package is cheap: the tree-sitter parsers are loaded when the first piece of code is parsed.
"""

from __future__ import annotations

from emberbox.errors import UnsupportedLanguage
from emberbox.languages import bash, javascript, python, rust, typescript
from emberbox.languages.spec import LanguageSpec, Restriction
from emberbox.models import Language

__all__ = ["LANGUAGES", "RULES", "LanguageSpec", "Restriction", "get_language", "resolve"]

LANGUAGES: dict[Language, LanguageSpec] = {
    spec.config.name: spec for spec in (python.SPEC, javascript.SPEC, bash.SPEC, rust.SPEC, typescript.SPEC)
}

RULES: dict[str, Restriction] = {rule.id: rule for spec in LANGUAGES.values() for rule in spec.rules}
"""Every rule that comes with Emberbox, by its id."""

_NAMES: dict[str, Language] = {
    name: spec.config.name for spec in LANGUAGES.values() for name in (spec.config.name, *spec.config.aliases)
}


def resolve(name: str) -> Language | None:
    """The language that `name` means (a name or an alias, in any case), or None."""
    return _NAMES.get(name.strip().lower())


def get_language(name: str) -> LanguageSpec:
    """The specification of a language by name or alias.

    Raises:
        UnsupportedLanguage: the name is none of those known.
    """
    language = resolve(name)
    if language is None:
        known = ", ".join(
            f"{spec.config.name} ({', '.join(spec.config.aliases)})" if spec.config.aliases else spec.config.name
            for spec in LANGUAGES.values()
        )
        raise UnsupportedLanguage(
            f"unknown language {name!r}; known are {known}",
            details={"language": name, "known": sorted(_NAMES)},
        )
    return LANGUAGES[language]
