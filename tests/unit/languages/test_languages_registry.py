"""Names, aliases and configurations of the languages, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from emberbox.errors import UnsupportedLanguage
from emberbox.languages import LANGUAGES, get_language, resolve


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("python", "python"),
        ("py", "python"),
        ("Python3", "python"),
        (" JS ", "javascript"),
        ("node", "javascript"),
        ("nodejs", "javascript"),
        ("sh", "bash"),
        ("shell", "bash"),
        ("RS", "rust"),
    ],
)
def test_aliases_mean_their_language(name: str, language: str) -> None:
    assert resolve(name) == language
    assert get_language(name).config.name == language


@pytest.mark.parametrize("name", ["", "go", "pythonic", "c++", "\0"])
def test_an_unknown_language_is_named_with_those_known(name: str) -> None:
    assert resolve(name) is None
    with pytest.raises(UnsupportedLanguage) as caught:
        get_language(name)
    assert repr(name) in str(caught.value)
    assert "javascript" in str(caught.value)


def test_configurations_are_those_of_the_reference() -> None:
    told = {
        name: (spec.config.file_extension, spec.config.run_command[0], spec.config.timeout_multiplier)
        for name, spec in LANGUAGES.items()
    }
    assert told == {
        "python": (".py", "python3", 1.0),
        "javascript": (".js", "node", 1.0),
        "bash": (".sh", "bash", 1.0),
        "rust": (".rs", "rustc", 3.0),
        "typescript": (".ts", "node", 1.0),
    }


def test_every_restriction_says_what_why_and_how_to_allow_it() -> None:
    for spec in LANGUAGES.values():
        assert spec.config.restrictions == tuple(rule.id for rule in spec.restrictions)
        for rule in spec.restrictions:
            assert rule.id.startswith(f"{spec.name}.")
            assert rule.description
            assert rule.why
            assert rule.id in rule.remediation
            assert "vm_execution.policy.disabled" in rule.remediation


def test_importing_the_languages_loads_no_parser() -> None:
    code = "import sys, emberbox.code_extractor; print([m for m in ('tree_sitter', 'markdown_it') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
