"""The documentation is true: its Python blocks run, its links and its table of rules are right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from emberbox import CodeBlockExtractor
from emberbox.languages import LANGUAGES

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/sdk.md", "docs/limits.md", "docs/history.md", "docs/durable.md", "docs/undo.md"]


def python_blocks() -> list[ParameterSet]:
    """Every Python block of the pages, found by our own extractor."""
    found: list[ParameterSet] = []
    for page in PAGES:
        blocks = CodeBlockExtractor().extract_code_blocks((ROOT / page).read_text())
        found += [
            pytest.param(block.code, id=f"{page}:{block.metadata['line']}")
            for block in sorted(blocks, key=lambda b: b.start_pos)
            if block.language == "python"
        ]
    return found


@pytest.mark.e2e
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("code", python_blocks())
def test_python_blocks_run(code: str) -> None:
    argv = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


ALL_PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", ALL_PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{page} links to {target}"


def test_the_table_of_rules_is_complete() -> None:
    text = (ROOT / "docs/sdk.md").read_text()
    for spec in LANGUAGES.values():
        for restriction in spec.restrictions:
            assert f"`{restriction.id}`" in text
