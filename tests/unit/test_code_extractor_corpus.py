"""Realistic answers (tests/corpus) with what a reader would run: precision and recall of the default threshold."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from emberbox.code_extractor import CodeBlockExtractor
from emberbox.models import CodeBlock

CORPUS = Path(__file__).parents[1] / "corpus"
EXPECTED: dict[str, dict[str, Any]] = tomllib.loads((CORPUS / "expected.toml").read_text(encoding="utf-8"))
THRESHOLD = 0.7


def _read(name: str) -> str:
    return (CORPUS / f"{name}.md").read_bytes().decode("utf-8")


def _blocks(name: str) -> list[CodeBlock]:
    return sorted(CodeBlockExtractor().extract_code_blocks(_read(name)), key=lambda block: block.start_pos)


def test_every_answer_has_expectations() -> None:
    assert {path.stem for path in CORPUS.glob("*.md")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_finds_the_blocks_of_the_answer(name: str) -> None:
    assert [block.language for block in _blocks(name)] == [want["language"] for want in EXPECTED[name]["blocks"]]


@pytest.mark.parametrize("name", [name for name, want in EXPECTED.items() if "intent" in want])
def test_reads_the_intent_of_the_answer(name: str) -> None:
    intent = CodeBlockExtractor().detect_execution_intent(_read(name))
    assert intent.suggested_action == EXPECTED[name]["intent"], intent


def test_precision_and_recall_of_what_would_run() -> None:
    right, needless, missed = 0, [], []
    for name, want in EXPECTED.items():
        for block, expected in zip(_blocks(name), want["blocks"], strict=True):
            runs = block.execution_confidence >= THRESHOLD
            right += runs and expected["run"]
            if runs and not expected["run"]:
                needless.append((name, block.execution_confidence, block.metadata["why"]))
            if not runs and expected["run"]:
                missed.append((name, block.execution_confidence, block.metadata["why"]))
    precision, recall = right / (right + len(needless)), right / (right + len(missed))
    print(f"precision {precision:.3f}, recall {recall:.3f} of {right + len(missed)} blocks to run")
    assert precision >= 0.98, needless
    assert recall >= 0.97, missed
