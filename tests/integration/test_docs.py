"""The documentation is true: its Python blocks run, its settings load, its links and tables are right, and the policy
catches what it says, no more and no less."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from emberbox import CodeBlockExtractor, load_settings
from emberbox._extraction.scoring import BLOCK_RULES, INTENT_RULES
from emberbox.hooks._secrets import KINDS
from emberbox.languages import RULES, resolve
from emberbox.languages.policy import Policy
from emberbox.models import CodeBlock
from served import Served

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md", "docs/sdk.md", "docs/limits.md", "docs/history.md", "docs/durable.md", "docs/undo.md",
    "docs/extraction.md", "docs/policy.md", "docs/hooks.md", "docs/agent.md", "docs/guide.md",
]  # fmt: skip


SERVER = "127.0.0.1:8080"
"""Where the pages have a server; the tests have one elsewhere."""


def python_blocks() -> list[ParameterSet]:
    """Every Python block of the pages, found by our own extractor."""
    found: list[ParameterSet] = []
    for page in PAGES:
        blocks = CodeBlockExtractor().extract_code_blocks((ROOT / page).read_text())
        found += [
            pytest.param(block.code, id=f"{page}:{block.metadata['line']}")
            for block in sorted(blocks, key=lambda b: b.start_pos)
            if block.language == "python" and "caught" not in block.metadata.get("attributes", {})
        ]
    return found


@pytest.mark.e2e
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("code", python_blocks())
def test_python_blocks_run(code: str, request: pytest.FixtureRequest) -> None:
    if SERVER in code and "VmExecuteRequest(language" not in code:
        served: Served = request.getfixturevalue("served")
        request.addfinalizer(served.end_machines)
        code = code.replace(SERVER, served.url.removeprefix("http://"))
    argv = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


ALL_PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", ALL_PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose):
        assert (path.parent / target).exists(), f"{page} links to {target}"


def blocks_of(page: str) -> list[CodeBlock]:
    found = CodeBlockExtractor().extract_code_blocks((ROOT / page).read_text(encoding="utf-8"))
    return sorted(found, key=lambda block: block.start_pos)


def examples_of_the_policy() -> list[ParameterSet]:
    return [
        pytest.param(block, id=f"{block.language}:{block.metadata['line']}")
        for block in blocks_of("docs/policy.md")
        if "caught" in block.metadata.get("attributes", {})
    ]


@pytest.mark.parametrize("block", examples_of_the_policy())
def test_the_policy_catches_what_the_page_says(block: CodeBlock) -> None:
    language = resolve(block.language)
    assert language is not None
    found = {finding.rule for finding in Policy().check(block.code, language)}
    assert found == set(block.metadata["attributes"]["caught"].split())


def settings_on_the_pages() -> list[ParameterSet]:
    return [
        pytest.param(block.code, id=f"{page}:{block.metadata['line']}")
        for page in ("docs/policy.md", "docs/hooks.md", "docs/guide.md")
        for block in blocks_of(page)
        if block.language == "toml"
    ]


@pytest.mark.parametrize("text", settings_on_the_pages())
def test_settings_on_the_pages_load(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "emberbox.toml"
    path.write_text(text)
    monkeypatch.setenv("EMBERBOX_CONFIG", str(path))
    Policy(load_settings().vm_execution.policy)


def test_the_tables_of_rules_are_complete() -> None:
    text = (ROOT / "docs/policy.md").read_text()
    for rule in RULES:
        assert f"`{rule}`" in text or f"`*.{rule.partition('.')[2]}`" in text, rule


def test_the_list_of_kinds_is_complete() -> None:
    text = (ROOT / "docs/hooks.md").read_text().partition("Kinds: ")[2].partition("\n\n")[0]
    assert re.findall(r"`([\w-]+)`", text) == sorted(KINDS)


def test_the_tables_of_weights_are_those_of_the_code() -> None:
    text = (ROOT / "docs/extraction.md").read_text()
    told = re.findall(r"^\| `([\w-]+)` \| ([+-][\d.]+) \| ([\d.]*) ?\|", text, re.MULTILINE)
    rules = [(name, rule) for table in (BLOCK_RULES, INTENT_RULES) for name, rule in table.items()]
    assert told == [(name, f"{rule.weight:+.2f}", "" if rule.cap == 1 else f"{rule.cap:.2f}") for name, rule in rules]
