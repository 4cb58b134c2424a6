"""What the checks have in common: places, switches, and that nothing makes them fail."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberbox.languages import LANGUAGES, get_language
from emberbox.languages.destructive import is_destructive
from emberbox.languages.policy import Policy
from emberbox.models import Language, PolicyConfig, RuleConfig

USES = {"python": "open", "javascript": "fetch", "typescript": "fetch", "bash": "curl", "rust": "std::net"}
OWN = Policy(
    PolicyConfig(
        rules=[RuleConfig(id=f"own.{name}", language=name, message="m", uses=[USES[name]]) for name in LANGUAGES]
    )
)


def test_a_finding_tells_place_snippet_reason_and_remedy() -> None:
    (finding,) = get_language("python").check("x = 'é'\ny = 'ü'; eval(x)\n")
    assert (finding.rule, finding.line, finding.column) == ("python.eval", 2, 10)
    assert finding.snippet == "y = 'ü'; eval(x)"
    assert "eval" in finding.message
    assert "python.eval" in finding.remediation


def test_a_restriction_can_be_switched_off_alone() -> None:
    code = "import subprocess\neval('1')\n"
    spec = get_language("python")
    assert [finding.rule for finding in spec.check(code)] == ["python.subprocess", "python.eval"]
    assert [finding.rule for finding in spec.check(code, disabled=["python.subprocess"])] == ["python.eval"]
    assert spec.check(code, disabled=("python.subprocess", "python.eval", "bash.mkfs")) == []


def test_findings_come_in_the_order_of_the_text() -> None:
    code = "exec('a')\neval('b')\nimport subprocess\n"
    assert [finding.line for finding in get_language("python").check(code)] == [1, 2, 3]


def test_code_with_syntax_errors_is_checked_all_the_same() -> None:
    assert [finding.rule for finding in get_language("python").check("def f(:\n\neval('1')\n")] == ["python.eval"]


SNIPPETS = st.sampled_from(
    [
        *(
            "eval(",
            "os.system",
            "import os as ",
            "getattr(",
            "require('",
            "rm -rf ",
            "$(",
            "`",
            "'",
            '"',
            "{",
            "}",
            "(",
            ")",
        ),
        *(
            "unsafe {",
            "use std::",
            "::*;",
            "<<EOF\n",
            "EOF\n",
            "|",
            "&",
            ";",
            "=",
            "+",
            "\\",
            "\0",
            "\ud800",
            "漢",
            "é",
        ),
        *("x", "#", "//", "\n", " ", "if ", "then ", "fi", "case a in b) ", "esac", "done"),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(LANGUAGES)), st.one_of(st.text(), st.lists(SNIPPETS).map("".join)))
def test_nothing_makes_a_check_fail(language: Language, code: str) -> None:
    spec = LANGUAGES[language]
    lines = code.count("\n") + 1
    for finding in spec.syntax_findings(code) + spec.check(code) + OWN.check(code, language):
        assert 1 <= finding.line <= lines
    assert is_destructive(language, code) in {True, False}


DANGEROUS = st.sampled_from(
    [
        "curl x",
        "|",
        " sh",
        "$(",
        ")",
        "<(",
        "bash -c '",
        "'",
        '"',
        "python3 -c ",
        "rm -r /",
        ">",
        "/dev/tcp/a/1",
        "\n",
        "sudo ",
        "<<E\n",
        "E\n",
        "os.system(",
        "open(",
        "/etc/shadow",
        "requests.get(",
        "exec(",
        "import os\n",
        "while True:\n ",
        "os.fork()",
        "/",
        "require('fs')",
        ".rmSync(",
        "fetch(1)",
        ".then(",
        "eval",
        "`${",
        "}`",
        "Command::new(",
        ".arg(",
        "stratum+tcp://x",
        ")",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(LANGUAGES)), st.lists(DANGEROUS, max_size=30).map("".join))
def test_nothing_makes_the_search_for_dangers_fail(language: Language, code: str) -> None:
    lines = code.count("\n") + 1
    for finding in OWN.check(code, language):
        assert 1 <= finding.line <= lines
    assert is_destructive(language, code) in {True, False}


@pytest.mark.parametrize("language", sorted(LANGUAGES))
@pytest.mark.parametrize(
    "unit", ["(", "[", "{", "a.", "a+", "-", "$(", "`${", "'", "if x:\n ", "a::", "unsafe{", "<", "f(", "!"]
)
def test_deep_nesting_is_no_trouble(language: Language, unit: str) -> None:
    LANGUAGES[language].check(unit * 3_000)
    LANGUAGES[language].syntax_findings(unit * 3_000)
