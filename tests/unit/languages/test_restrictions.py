"""What the restrictions and the syntax checks of each language catch, and what they leave alone."""

from __future__ import annotations

from types import ModuleType

import corpus_bash
import corpus_javascript
import corpus_python
import corpus_rust
import pytest

from emberbox.languages import get_language
from emberbox.languages.spec import LanguageSpec

CORPORA = {"python": corpus_python, "javascript": corpus_javascript, "bash": corpus_bash, "rust": corpus_rust}
each = pytest.mark.parametrize(
    ("spec", "corpus"), [pytest.param(get_language(name), corpus, id=name) for name, corpus in CORPORA.items()]
)


@each
def test_catches(spec: LanguageSpec, corpus: ModuleType) -> None:
    found = [(code, sorted({finding.rule for finding in spec.check(code)})) for code, _ in corpus.CAUGHT]
    assert found == corpus.CAUGHT


@each
def test_leaves_alone(spec: LanguageSpec, corpus: ModuleType) -> None:
    assert {code: found for code in corpus.LEFT_ALONE if (found := spec.check(code))} == {}


@each
def test_accepts_valid_code(spec: LanguageSpec, corpus: ModuleType) -> None:
    assert {code: found for code in corpus.VALID if (found := spec.syntax_findings(code))} == {}


@each
def test_says_where_the_syntax_is_wrong(spec: LanguageSpec, corpus: ModuleType) -> None:
    wrong = {}
    for code, line, column, message in corpus.BROKEN:
        found = spec.syntax_findings(code)
        first = found[0] if found else None
        told = first is not None and (first.rule, first.line, first.column) == ("syntax", line, column)
        if first is None or not told or message not in first.message:
            wrong[code] = found
    assert wrong == {}
