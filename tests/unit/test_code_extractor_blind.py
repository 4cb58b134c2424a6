"""Answers that were written and labelled by somebody who had seen neither rules nor code (tests/blind_answers).

A table, and floors that no change of the rules may fall below. The rules are not tuned on them; docs/extraction.md has
the figures.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from emberbox.code_extractor import CodeBlockExtractor
from emberbox.languages import LANGUAGES, resolve
from emberbox.models import CodeBlock

FOLDER = Path(__file__).parents[1] / "blind_answers"
FENCE = re.compile(
    r"^[ \t>]*(?P<fence>`{3,}|~{3,})(?P<info>[^\n`]*)\n(?P<code>.*?)(?:^[ \t>]*(?P=fence)`*[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
THRESHOLD = 0.7


@dataclass
class Counts:
    """Of pieces of code."""

    right: int = 0
    needless: int = 0
    missed: int = 0
    left: int = 0

    def add(self, *, runs: bool, meant: bool) -> None:
        self.right += runs and meant
        self.needless += runs and not meant
        self.missed += meant and not runs
        self.left += not runs and not meant

    @property
    def precision(self) -> float:
        return self.right / (self.right + self.needless)

    @property
    def recall(self) -> float:
        return self.right / (self.right + self.missed)

    def line(self, name: str) -> str:
        counts = f"{self.right:>7}{self.needless:>10}{self.missed:>8}{self.left:>6}"
        return f"{name:<24}{counts}{self.precision:>11.2f}{self.recall:>8.2f}"


def _squeezed(code: str) -> str:
    return re.sub(r"\s+", "", code)


def _of_label(label: dict[str, Any], fence: re.Match[str] | None, blocks: list[CodeBlock]) -> CodeBlock | None:
    """The block that a label is of: by how its code begins, or by the fence that it stands in."""
    if "starts" in label:
        start = _squeezed(label["starts"])[:25]
        return next((block for block in blocks if _squeezed(block.code).startswith(start)), None)
    assert fence is not None
    return next((block for block in blocks if fence.start() <= block.start_pos < fence.end()), None)


def scored(kind: str) -> tuple[Counts, Counts]:
    """What the extractor makes of the answers, and what the rule "a runnable tag, and it parses" would."""
    ours, simple = Counts(), Counts()
    labels = tomllib.loads((FOLDER / kind / "labels.toml").read_text(encoding="utf-8"))
    assert {path.stem for path in (FOLDER / kind).glob("*.md")} == set(labels)
    for name, wanted in labels.items():
        text = (FOLDER / kind / f"{name}.md").read_text(encoding="utf-8")
        rest = CodeBlockExtractor(THRESHOLD).extract_code_blocks(text)
        fences: list[re.Match[str] | None] = [*FENCE.finditer(text)]
        fences += [None] * (len(wanted["blocks"]) - len(fences))
        for label, fence in zip(wanted["blocks"], fences, strict=False):
            block = _of_label(label, fence, rest)
            rest = [one for one in rest if one is not block]
            ours.add(runs=block is not None and block.execution_confidence >= THRESHOLD, meant=label["run"])
            simple.add(runs=_is_tagged_and_parses(fence), meant=label["run"])
        ours.needless += sum(block.execution_confidence >= THRESHOLD for block in rest)
    return ours, simple


def _is_tagged_and_parses(fence: re.Match[str] | None) -> bool:
    language = resolve(fence["info"].strip().partition(" ")[0]) if fence is not None else None
    return fence is not None and language is not None and not LANGUAGES[language].syntax_findings(fence["code"])


@pytest.mark.parametrize(("kind", "precision", "recall"), [("chat", 0.72, 0.95), ("agents", 0.97, 0.84)])
def test_unseen_answers(kind: str, precision: float, recall: float, capsys: pytest.CaptureFixture[str]) -> None:
    ours, simple = scored(kind)
    with capsys.disabled():
        print(
            f"\n{'blind answers':<24}{'right':>7}{'needless':>10}{'missed':>8}{'left':>6}{'precision':>11}{'recall':>8}"
        )
        print(ours.line(kind))
        print(simple.line(f"{kind}, tag and parses"))
    assert ours.precision >= precision
    assert ours.recall >= recall
