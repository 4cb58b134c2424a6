"""Texts that would take tree-sitter minutes, or all memory of the host."""

from __future__ import annotations

import pytest

from emberbox import CodeBlockExtractor
from emberbox.errors import ValidationFailed
from emberbox.languages import LANGUAGES
from emberbox.languages.destructive import is_destructive
from emberbox.languages.policy import Policy
from emberbox.models import Language

PIPES = "a|" * 50_000
CONTINUED = "\\\n" * 50_000


@pytest.mark.parametrize(("language", "code"), [("bash", PIPES), ("python", CONTINUED)])
def test_what_cannot_be_read_is_refused_in_words(language: Language, code: str) -> None:
    with pytest.raises(ValidationFailed, match=f"{language} code that cannot be read"):
        Policy().check(code, language)
    with pytest.raises(ValidationFailed, match="cannot be read"):
        LANGUAGES[language].syntax_findings(code)
    assert is_destructive(language, code), "nobody knows what it does"


def test_an_answer_with_such_a_block_is_read_and_the_block_held_back() -> None:
    answer = f"Run this:\n\n```bash\necho 1\n```\n\nand\n\n```bash\n{PIPES[:40_000]}\n```\n"
    found = sorted(CodeBlockExtractor().extract_code_blocks(answer), key=lambda block: block.start_pos)
    assert [block.execution_confidence >= 0.7 for block in found] == [True, False]
    assert "not-examined" in {entry["rule"] for entry in found[1].metadata["why"]}


@pytest.mark.parametrize("language", ["python", "javascript", "bash", "rust"])
def test_long_ordinary_code_is_read(language: Language) -> None:
    line = {"python": "x = 1\n", "javascript": "f(1);\n", "bash": "echo 1\n", "rust": "fn f() {}\n"}[language]
    assert LANGUAGES[language].syntax_findings(line * (90_000 // len(line))) == []
