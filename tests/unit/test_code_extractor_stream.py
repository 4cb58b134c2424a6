"""Blocks of a text that is still being written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberbox._extraction import evidence
from emberbox._extraction.blocks import MAX_BLOCKS
from emberbox.code_extractor import CodeBlockExtractor
from emberbox.models import CodeBlock, Language


def test_a_block_is_given_as_soon_as_its_fence_closes() -> None:
    extractor = CodeBlockExtractor()
    assert extractor.feed("Run this:\n\n```python\nprint(1)\n") == []
    assert extractor.feed("``") == []
    assert extractor.feed("`") == []  # it might go on as "```python"
    (block,) = extractor.feed("\n")
    assert (block.language, block.code, block.execution_confidence >= 0.7) == ("python", "print(1)\n", True)
    assert extractor.feed("That was it.\n") == []
    assert extractor.finish() == []


def test_finish_gives_what_was_never_closed_and_starts_anew() -> None:
    extractor = CodeBlockExtractor()
    assert extractor.feed("```js\nlet x = 1;") == []
    (block,) = extractor.finish()
    assert (block.code, block.metadata["closed"]) == ("let x = 1;", False)
    assert extractor.finish() == []
    extractor.feed("```bash\nls\n```\n")
    assert extractor.finish() == []


def test_a_prohibition_before_all_blocks_holds_for_the_late_ones() -> None:
    extractor = CodeBlockExtractor()
    blocks = extractor.feed("Do not run any of these:\n\n```python\nprint(1)\n```\n")
    for number in range(30):
        blocks += extractor.feed(f"\nNumber {number}{' and so on' * 40}:\n\n```python\nprint({number})\n```\n")
    assert [block.execution_confidence for block in blocks] == [0.2] * 31


def test_reasoning_that_is_not_over_counts_as_reasoning() -> None:
    extractor = CodeBlockExtractor()
    (draft,) = extractor.feed("<think>\nMaybe run this:\n\n```python\nprint(1)\n```\n")
    (late,) = extractor.feed("x" * 8_000 + "\nRun this:\n\n```python\nprint(2)\n```\n")
    (answer,) = extractor.feed("\n</think>\n\nRun this:\n\n```python\nprint(3)\n```\n")
    assert [draft.execution_confidence, late.execution_confidence] == [0.4, 0.4]
    assert answer.execution_confidence >= 0.7


def test_tags_are_given_when_they_close() -> None:
    extractor = CodeBlockExtractor()
    assert extractor.feed("Let me see.\n<execute_bash>\nls -l\n") == []
    (block,) = extractor.feed("</execute_bash>\n")
    assert (block.language, block.code) == ("bash", "ls -l\n")


def test_a_markdown_file_in_a_fence_closes_with_its_own_fence() -> None:
    extractor = CodeBlockExtractor()
    text = "```markdown\n# Title\n\n```python\nprint(1)\n```\n"
    assert extractor.feed(text) == []
    (block,) = extractor.feed("```\n")
    assert block.language == "markdown"


LINES = st.sampled_from(
    [
        "```python\n",
        "```\n",
        "~~~\n",
        "````\n",
        "print(1)\n",
        "Run this:\n",
        "\n",
        "- item\n",
        "  ```bash\n",
        "  ls\n",
        "> q\n",
        "  ```\n",
        "    code\n",
        "<code>\n",
        "</code>\n",
        "```<end>\n",
        "text ```js\n",
        "x```\n",
        "<think>\n",
        "</think>\n",
        "é\r\n",
        '{"name": "python", "arguments": {"code": "1"}}\n',
        "<tool_call>\n",
        "</tool_call>\n",
        "```md\n",
        "1. one\n",
        "```bash\n",
        "cat <<'E'\n",
        "E\n",
        'x = """\n',
        '<invoke name="bash">\n',
        "</invoke>\n",
        "\t\n",
    ]
)


def test_what_was_given_out_is_not_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    structure = evidence.structure

    def counted(language: Language, code: str) -> evidence.Structure:
        looked.append(code)
        return structure(language, code)

    monkeypatch.setattr(evidence, "structure", counted)
    extractor = CodeBlockExtractor()
    texts = [f"```python\nprint({number})\n```\n" for number in range(300)]
    given = [block.code for text in texts for block in extractor.feed(text)] + extractor.finish()
    assert looked == given == [f"print({number})\n" for number in range(300)]


def test_a_stream_ends_at_the_same_block_as_the_whole() -> None:
    text = "```\nx\n```\n" * (MAX_BLOCKS + 500)
    extractor = CodeBlockExtractor()
    fed = [block for at in range(0, len(text), 50_000) for block in extractor.feed(text[at : at + 50_000])]
    fed += extractor.finish()
    whole = sorted(CodeBlockExtractor().extract_code_blocks(text), key=lambda block: block.start_pos)
    assert len(whole) == MAX_BLOCKS
    assert places(fed) == places(whole)


def places(blocks: list[CodeBlock]) -> list[tuple[int, int, str, str]]:
    return [(block.start_pos, block.end_pos, block.language, block.code) for block in blocks]


@given(st.lists(LINES, max_size=25), st.integers(1, 40))
def test_the_cuts_between_the_pieces_do_not_matter(lines: list[str], size: int) -> None:
    text = "".join(lines)
    by_line, by_size = CodeBlockExtractor(), CodeBlockExtractor()
    first = [block for line in lines for block in by_line.feed(line)] + by_line.finish()
    second = [block for at in range(0, len(text), size) for block in by_size.feed(text[at : at + size])]
    assert places(second + by_size.finish()) == places(first)


@given(st.lists(LINES, max_size=25))
def test_blocks_come_in_order_and_never_twice(lines: list[str]) -> None:
    extractor = CodeBlockExtractor()
    blocks = [block for line in lines for block in extractor.feed(line)] + extractor.finish()
    assert [block.start_pos for block in blocks] == sorted({block.start_pos for block in blocks})
    text = "".join(lines)
    for block in blocks:
        if "code_start" in block.metadata:
            assert text[block.metadata["code_start"] : block.metadata["code_end"]] == block.code
