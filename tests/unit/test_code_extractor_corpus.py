"""Realistic answers (tests/corpus) with what a reader would run and what the policy must say of it: a table with
precision and recall, and the same answers as a stream."""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from emberbox.code_extractor import CodeBlockExtractor
from emberbox.languages import RULES, resolve
from emberbox.languages.policy import Policy
from emberbox.models import CodeBlock, PolicyConfig

CORPUS = Path(__file__).parents[1] / "corpus"
EXPECTED: dict[str, dict[str, Any]] = tomllib.loads((CORPUS / "expected.toml").read_text(encoding="utf-8"))
THRESHOLD = 0.7
EXTRACTOR = CodeBlockExtractor(THRESHOLD)
STRICT = Policy(PolicyConfig(profile="strict"))


def read(name: str) -> str:
    return (CORPUS / f"{name}.md").read_bytes().decode("utf-8")


def in_order(blocks: list[CodeBlock]) -> list[CodeBlock]:
    return sorted(blocks, key=lambda block: block.start_pos)


def test_every_answer_has_expectations() -> None:
    assert {path.stem for path in CORPUS.glob("*.md")} == set(EXPECTED)
    assert len(EXPECTED) >= 150


def test_finds_the_blocks_of_the_answers() -> None:
    found = {
        name: [block.language for block in in_order(EXTRACTOR.extract_code_blocks(read(name)))] for name in EXPECTED
    }
    assert found == {name: [block["language"] for block in want["blocks"]] for name, want in EXPECTED.items()}


def test_reads_the_intent_of_the_answers() -> None:
    wanted = {name: want["intent"] for name, want in EXPECTED.items() if "intent" in want}
    assert {name: EXTRACTOR.detect_execution_intent(read(name)).suggested_action for name in wanted} == wanted


def test_the_policy_finds_what_it_must_and_nothing_else() -> None:
    found, wanted = {}, {}
    for name, want in EXPECTED.items():
        for index, block in enumerate(in_order(EXTRACTOR.extract_code_blocks(read(name)))):
            if (language := resolve(block.language)) is not None:
                found[name, index] = sorted({finding.rule for finding in STRICT.check(block.code, language)})
                wanted[name, index] = sorted(want["blocks"][index].get("rules", []))
    assert found == wanted


def test_every_rule_is_met_somewhere() -> None:
    met = {rule for want in EXPECTED.values() for block in want["blocks"] for rule in block.get("rules", [])}
    assert met == set(RULES)


@dataclass
class Row:
    """Counts for one language."""

    right: int = 0
    left: int = 0
    needless: list[Any] = field(default_factory=list)
    missed: list[Any] = field(default_factory=list)

    def line(self, name: str) -> str:
        run, meant = self.right + len(self.needless), self.right + len(self.missed)
        precision = self.right / run if run else 1.0
        recall = self.right / meant if meant else 1.0
        return f"{name:<12}{run + self.left + len(self.missed):>7}{meant:>7}{run:>7}{precision:>11.3f}{recall:>8.3f}"


def test_precision_and_recall_of_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    rows: dict[str, Row] = {}
    for name, want in EXPECTED.items():
        blocks = in_order(EXTRACTOR.extract_code_blocks(read(name)))
        for block, expected in zip(blocks, want["blocks"], strict=True):
            language = resolve(block.language) or "other"
            runs = block.execution_confidence >= THRESHOLD
            case = (name, block.execution_confidence, [entry["rule"] for entry in block.metadata["why"]])
            for row in (rows.setdefault(language, Row()), rows.setdefault("all", Row())):
                row.right += runs and expected["run"]
                row.left += not runs and not expected["run"]
                if runs and not expected["run"]:
                    row.needless.append(case)
                if not runs and expected["run"]:
                    row.missed.append(case)
    with capsys.disabled():
        print(
            f"\n{len(EXPECTED)} answers\n"
            f"{'language':<12}{'blocks':>7}{'meant':>7}{'run':>7}{'precision':>11}{'recall':>8}"
        )
        for name in sorted(rows, key=lambda name: (name == "all", name)):
            print(rows[name].line(name))
    whole = rows["all"]
    assert whole.right / (whole.right + len(whole.needless)) >= 0.98, whole.needless
    assert whole.right / (whole.right + len(whole.missed)) >= 0.97, whole.missed


@pytest.mark.parametrize("cuts", [3, 60, 900])
def test_a_stream_gives_the_same_blocks_as_the_whole(cuts: int) -> None:
    assert [name for name in EXPECTED if not _streams_as_the_whole(name, cuts)] == []


def _streams_as_the_whole(name: str, cuts: int) -> bool:
    text, pick = read(name), random.Random(name)
    stream = CodeBlockExtractor(THRESHOLD)
    given: list[CodeBlock] = []
    position = 0
    while position < len(text):
        size = pick.randint(1, cuts)
        given += stream.feed(text[position : position + size])
        position += size
    given += stream.finish()
    whole = in_order(EXTRACTOR.extract_code_blocks(text))

    def places(block: CodeBlock) -> tuple[object, ...]:
        return (block.start_pos, block.end_pos, block.language, block.code, block.metadata["line"])

    return [places(block) for block in given] == [places(block) for block in whole]


def test_what_is_only_said_afterwards_is_all_that_a_stream_judges_otherwise() -> None:
    otherwise = set()
    for name in EXPECTED:
        stream = CodeBlockExtractor(THRESHOLD)
        given = [block for line in read(name).splitlines(keepends=True) for block in stream.feed(line)]
        given += stream.finish()
        whole = in_order(EXTRACTOR.extract_code_blocks(read(name)))
        runs = [[block.execution_confidence >= THRESHOLD for block in blocks] for blocks in (given, whole)]
        if runs[0] != runs[1]:
            otherwise.add(name)
    taken_back = {"never-execute-after", "ignore-the-first-script", "correction-at-the-end"}
    drafts = {"drafts-in-reasoning", "first-try-then-fixed", "gpt-thinks-aloud"}
    # What shows nothing may still be used by what follows, and of cases of one make the first are not yet several.
    silent = {"tuple-of-one-note", "walrus-and-matmul", "mixins-in-prose", "test-cases-as-data", "typescript-and-node"}
    made_alike = {"greetings-per-language"}
    assert otherwise == (taken_back | drafts | silent | made_alike) & EXPECTED.keys()
