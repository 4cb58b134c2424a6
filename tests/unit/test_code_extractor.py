"""CodeBlockExtractor as its callers see it: blocks with exact places, confidence with reasons, intent, validation."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberbox._extraction import evidence, markdown
from emberbox.code_extractor import CodeBlockExtractor
from emberbox.errors import UnsupportedLanguage, ValidationFailed
from emberbox.models import CodeBlock, Language, PolicyConfig, SecuritySettings, VmExecutionConfig

SCRIPT = "import math\n\nfor i in range(3):\n    print(math.sqrt(i))\n"
EXTRACTOR = CodeBlockExtractor()


def extract(text: str) -> list[CodeBlock]:
    return sorted(EXTRACTOR.extract_code_blocks(text), key=lambda block: block.start_pos)


def only(text: str) -> CodeBlock:
    (block,) = extract(text)
    return block


def rules(block: CodeBlock) -> set[str]:
    return {reason["rule"] for reason in block.metadata["why"]}


def block_of(code: str, language: str = "python") -> CodeBlock:
    return CodeBlock(language=language, code=code, execution_confidence=1, start_pos=0, end_pos=len(code))


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "whole"),
    [
        ("a\n```python\nx = 1\n```\nb", "x = 1\n", "```python\nx = 1\n```"),
        ("a\r\n```python\r\nx = 1\r\n\r\n```\r\nb", "x = 1\r\n\r\n", "```python\r\nx = 1\r\n\r\n```"),
        ("~~~~py\n~~~\n~~~~", "~~~\n", "~~~~py\n~~~\n~~~~"),
        ("````python\n```\n````", "```\n", "````python\n```\n````"),
        ("1. a\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y\n", "```python\n   if x:\n       y\n   ```"),
        ("> ```python\n> x\n>\n> y\n> ```", "x\n\ny\n", "```python\n> x\n>\n> y\n> ```"),
        ("- > ```python\n  > x\n  > ```", "x\n", "```python\n  > x\n  > ```"),
        ("  ```python\n    x\n  y\n  ```", "  x\ny\n", "```python\n    x\n  y\n  ```"),
        ("```python\nx = 1", "x = 1", "```python\nx = 1"),
        ("```python\nx = 1\n", "x = 1\n", "```python\nx = 1"),
        ("```python\n```", "", "```python\n```"),
        ("```python\n\tx\0y\n```", "\tx\0y\n", "```python\n\tx\0y\n```"),
        ("漢字\n```python\ns = '😀'\n```\n", "s = '😀'\n", "```python\ns = '😀'\n```"),
        ("```python\nx\n```  \nnext", "x\n", "```python\nx\n```"),
    ],
)
def test_code_is_byte_for_byte_and_the_slice_has_the_fences(text: str, code: str, whole: str) -> None:
    block = only(text)
    assert block.code == code
    assert text[block.start_pos : block.end_pos] == whole


def test_code_offsets_are_given_where_the_code_is_one_slice() -> None:
    text = "a\n```python\nx = 1\n```\n> ```python\n> y\n> z\n> ```\n"
    plain, quoted = extract(text)
    assert text[plain.metadata["code_start"] : plain.metadata["code_end"]] == plain.code
    assert "code_start" not in quoted.metadata
    assert (plain.metadata["line"], quoted.metadata["line"]) == (2, 5)


def test_an_unclosed_fence_is_marked_and_does_not_run() -> None:
    block = only("Run this:\n```python\n" + SCRIPT)
    assert block.metadata["closed"] is False
    assert block.execution_confidence < 0.7


def test_a_fence_in_a_list_whose_code_is_dedented_is_one_block() -> None:
    text = "1. Run this:\n   ```python\nfor i in x:\n    f(i)\n   ```\n2. Then\n   ```bash\n   ls\n   ```\n"
    python, bash = extract(text)
    assert python.code == "for i in x:\n    f(i)\n"
    assert text[python.start_pos : python.end_pos].endswith("f(i)\n   ```")
    assert bash.code == "ls\n"


def test_a_markdown_file_in_a_fence_of_the_same_length_is_one_block() -> None:
    text = "```markdown\n# A\n```bash\nls\n```\nend\n```\n\n```python\nx\n```\n"
    assert [(block.language, block.code) for block in extract(text)] == [
        ("markdown", "# A\n```bash\nls\n```\nend\n"),
        ("python", "x\n"),
    ]


# --- language ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "language", "attributes"),
    [
        ("python", "python", None),
        ("Python3", "python", None),
        ("py", "python", None),
        ("{.python}", "python", None),
        ("{.python .numberLines startFrom=3}", "python", {"startFrom": "3"}),
        ("language-js", "javascript", None),
        ('python title="my app.py"', "python", {"title": "my app.py"}),
        ("js:src/app.js", "javascript", {"filename": "src/app.js"}),
        ("rust,no_run", "rust", None),
        ("sh {1,3}", "bash", None),
        ("Go", "Go", None),
        ("c++", "c++", None),
        ("TypeScript", "typescript", None),
    ],
)
def test_info_strings(info: str, language: str, attributes: dict[str, str] | None) -> None:
    block = only(f"```{info}\nx\n```")
    assert block.language == language
    assert block.metadata["info"] == info
    assert block.metadata.get("attributes") == attributes


@pytest.mark.parametrize(
    ("code", "language"),
    [
        ("def f():\n    return 1\n", "python"),
        ("const a = 1;\nconsole.log(a);\n", "javascript"),
        ('fn main() {\n    println!("x");\n}\n', "rust"),
        ("sudo apt-get update\ncd /tmp\n", "bash"),
        ("#!/usr/bin/env python3\nx\n", "python"),
        ("#!/bin/sh\nx\n", "bash"),
        ("just some words\n", "text"),
        ("", "text"),
    ],
)
def test_a_fence_without_language_gets_one_from_its_content(code: str, language: str) -> None:
    assert only(f"```\n{code}```").language == language


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ('```\n{"a": [1, 2]}\n```', "json"),
        ('```python\n{"a": 1}\n```', "json"),
        ("```\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n```", "diff"),
        ("```python\n>>> 1 + 1\n2\n```", "transcript"),
        ("```bash\n$ ls\na\n```", "transcript"),
        ("```\nme@host:~/x$ ls\n```", "transcript"),
        ("```\nTraceback (most recent call last):\n  x\nValueError: y\n```", "output"),
        ("```console\n$ ls\n```", "transcript"),
    ],
)
def test_what_is_no_program_is_recognised_and_stays_low(block: str, kind: str) -> None:
    found = only(f"Run this:\n\n{block}\n")
    assert found.metadata["looks_like"] == kind
    assert found.execution_confidence <= 0.3


# --- inline commands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('python3 -c "print(1)"', 'python3 -c "print(1)"'),
        ("$ node -e 'console.log(1)'", "node -e 'console.log(1)'"),
        ("`bash -c 'ls'`", "bash -c 'ls'"),
        ("- `python app.py --fast`", "python app.py --fast"),
        ("node server.js", "node server.js"),
    ],
)
def test_a_command_on_its_own_line_is_a_bash_block_of_lower_confidence(line: str, code: str) -> None:
    text = f"Run it:\n\n{line}\n\nDone."
    block = only(text)
    assert (block.language, block.code, block.metadata["kind"]) == ("bash", code, "inline")
    assert text[block.metadata["code_start"] : block.metadata["code_end"]] == code
    assert block.execution_confidence < 0.7


@pytest.mark.parametrize(
    "text",
    [
        "node is a runtime.",
        "python is nice",
        "Use `python app.py` to start it.",
        "bash scripts end in .sh",
        "python app.py is the entry point.",
        "```text\npython3 -c 'x'\n```",
    ],
)
def test_prose_and_fenced_text_hold_no_inline_command(text: str) -> None:
    assert [block for block in extract(text) if block.metadata["kind"] == "inline"] == []


# --- confidence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"Here is a script that prints roots:\n\n```python\n{SCRIPT}```\n",
        f"For example:\n\n```python\n{SCRIPT}```\n",
        "```python\nprint(1)\n```",
        "```bash\nls -l\n```",
        '```rust\nfn main() {\n    println!("x");\n}\n```',
        f"If you don't run this, nothing happens. Run:\n\n```python\n{SCRIPT}```\n",
    ],
)
def test_ordinary_code_reaches_the_threshold(text: str) -> None:
    block = only(text)
    assert block.execution_confidence >= 0.7, block.metadata["why"]


@pytest.mark.parametrize(
    "text",
    [
        f"For reference only:\n\n```python\n{SCRIPT}```\n",
        "Example output:\n\n```python\n1\n2\n```\n",
        "Expected output:\n\n```\n1\n2\n```\n",
        "Run this:\n```python\ndef f(x):\n    y = x\n    ...\n    return y\n```\n",
        "Run this:\n```python\ndef f(x):\n    return (x +\n```\n",
        "```text\nhello\n```",
        "```json\n{}\n```",
        "```diff\n-a\n+b\n```",
        f"Pseudo-code:\n\n```python\n{SCRIPT}```\n",
        "Run this:\n```python\n# just a comment\n```\n",
        f"<!--\n```python\n{SCRIPT}```\n-->\n",
    ],
)
def test_what_is_not_meant_to_run_stays_below_the_threshold(text: str) -> None:
    block = only(text)
    assert block.execution_confidence < 0.7, block.metadata["why"]


@pytest.mark.parametrize(
    "phrase",
    [
        "Do not run this:",
        "Don't run this:",
        "Don\u2019t run this!",
        "DO NOT EXECUTE this code.",
        "Never execute this.",
        "This should never be run.",
        "This must not be executed.",
        "Please do not actually run it.",
        "不要运行 :",
        "Nicht ausführen:",
    ],
)
@pytest.mark.parametrize("where", ["before", "after", "comment"])
def test_a_prohibition_caps_the_confidence(phrase: str, where: str) -> None:
    before, comment, after = (phrase if where == place else "" for place in ("before", "comment", "after"))
    block = only(f"{before}\n\n```python\n# {comment}\n{SCRIPT}```\n\n{after}\n")
    assert block.execution_confidence <= 0.2, block.metadata["why"]
    assert "forbidden" in rules(block)


def test_a_prohibition_holds_for_its_own_block_only() -> None:
    text = f"Don't run this:\n```python\n{SCRIPT}```\nRun this one:\n```python\n{SCRIPT}```\n"
    first, second = extract(text)
    assert first.execution_confidence <= 0.2
    assert second.execution_confidence >= 0.7


def test_a_prohibition_of_everything_holds_for_every_block() -> None:
    text = f"Do not run any of these.\n\nSome words.\n\nOne:\n```python\n{SCRIPT}```\nTwo:\n```python\n{SCRIPT}```\n"
    assert [block.execution_confidence <= 0.2 for block in extract(text)] == [True, True]


@pytest.mark.parametrize("language", ["go", "Kotlin", "sql", "java", "pseudocode"])
def test_other_languages_stay_low_and_keep_their_name(language: str) -> None:
    block = only(f"Run this:\n```{language}\nprint(1)\n```")
    assert block.language == language
    assert block.execution_confidence <= 0.3


def test_the_reasons_add_up_to_the_confidence() -> None:
    for text in (f"Run this:\n```python\n{SCRIPT}```", "Never run this:\n```bash\nls\n```", "```\nwords\n```"):
        block = only(text)
        why = block.metadata["why"]
        total = min([sum(reason["weight"] for reason in why), 1.0, *(r["cap"] for r in why if "cap" in r)])
        assert block.execution_confidence == pytest.approx(max(total, 0))
        assert all(reason["reason"] for reason in why)


def test_blocks_come_by_confidence_then_by_position() -> None:
    text = "```go\na\n```\n```python\nprint(1)\n```\n```python\nprint(2)\n```\nRun:\n```python\nprint(3)\n```\n"
    found = EXTRACTOR.extract_code_blocks(text)
    assert [block.code for block in found] == ["print(3)\n", "print(1)\n", "print(2)\n", "a\n"]


# --- intent -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "action"),
    [
        (f"Please run this script:\n```python\n{SCRIPT}```", "auto-execute"),
        (f"Here is a script:\n```python\n{SCRIPT}```", "ask"),
        (f"```python\n{SCRIPT}```", "show"),
        (f"Do not run this:\n```python\n{SCRIPT}```", "none"),
        ("Do not run this.", "none"),
        ("Please run this code and show me the output.", "ask"),
        ("Could you execute the script from before for me?", "ask"),
        ("You can run programs in many languages.", "show"),
        ("The weather is fine.", "none"),
        ("", "none"),
    ],
)
def test_intent(text: str, action: str) -> None:
    intent = EXTRACTOR.detect_execution_intent(text)
    assert intent.suggested_action == action, intent


def test_intent_names_the_words_that_ask_for_it() -> None:
    intent = EXTRACTOR.detect_execution_intent(f"Could you execute this for me?\n```python\n{SCRIPT}```")
    assert "could you execute" in " ".join(intent.trigger_keywords)
    assert any("python" in clue for clue in intent.context_clues)


def test_blocks_and_intent_come_from_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    structure = evidence.structure

    def counted(language: Language, code: str) -> evidence.Structure:
        read.append(code)
        return structure(language, code)

    monkeypatch.setattr(evidence, "structure", counted)
    text = f"Please run this script:\n```python\n{SCRIPT}```"
    blocks, intent = EXTRACTOR.read(text)
    assert read == [SCRIPT]
    assert blocks == EXTRACTOR.extract_code_blocks(text)
    assert intent == EXTRACTOR.detect_execution_intent(text)


# --- validation -------------------------------------------------------------------------------------------------------


def findings(block: CodeBlock, **settings: Any) -> list[dict[str, Any]]:
    with pytest.raises(ValidationFailed) as caught:
        CodeBlockExtractor(config=VmExecutionConfig(**settings)).validate_code(block)
    found = caught.value.details["findings"]
    assert isinstance(found, list)
    return found


def test_good_code_passes() -> None:
    EXTRACTOR.validate_code(block_of(SCRIPT))
    EXTRACTOR.validate_code(block_of("print(1)", "PY"))


def test_every_reason_is_listed_and_the_first_is_told_with_its_place() -> None:
    code = "import subprocess\n\neval('1')\nexec('2')\n"
    assert [finding["rule"] for finding in findings(block_of(code))] == [
        "python.subprocess",
        "python.eval",
        "python.exec",
    ]
    with pytest.raises(ValidationFailed, match=r"line 1, column 1: .*subprocess.* \(and 2 more\)"):
        EXTRACTOR.validate_code(block_of(code))


def test_syntax_errors_tell_line_and_column() -> None:
    (finding,) = findings(block_of("x = 1\ny = (2\n"))
    assert (finding["rule"], finding["line"], finding["column"]) == ("syntax", 2, 5)


@pytest.mark.parametrize("code", ["", "  \n\t\n"])
def test_empty_code_is_refused(code: str) -> None:
    assert findings(block_of(code))[0]["rule"] == "empty"


def test_length_counts_characters() -> None:
    code = "x = '" + "é" * 20 + "'"
    CodeBlockExtractor(config=VmExecutionConfig(max_code_length=len(code))).validate_code(block_of(code))
    (finding,) = findings(block_of(code), max_code_length=len(code) - 1)
    assert finding["rule"] == "length"
    assert str(len(code)) in finding["message"]


def test_unknown_and_forbidden_languages_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedLanguage, match="'go'"):
        EXTRACTOR.validate_code(block_of("x", "go"))
    strict = CodeBlockExtractor(config=VmExecutionConfig(allowed_languages=["bash"]))
    with pytest.raises(UnsupportedLanguage, match="not allowed"):
        strict.validate_code(block_of("x"))
    assert not strict.is_language_supported("py")
    assert strict.is_language_supported("sh")
    assert not strict.is_language_supported("go")


def test_restrictions_can_be_switched_off_one_by_one_or_all() -> None:
    block = block_of("eval('1')")
    CodeBlockExtractor(config=VmExecutionConfig(policy=PolicyConfig(disabled=["python.eval"]))).validate_code(block)
    relaxed = VmExecutionConfig(security_settings=SecuritySettings(dangerous_patterns_check=False))
    CodeBlockExtractor(config=relaxed).validate_code(block)
    with pytest.raises(ValidationFailed):
        CodeBlockExtractor(config=relaxed).validate_code(block_of("eval('1'"))


def test_without_validation_only_the_language_counts() -> None:
    extractor = CodeBlockExtractor(config=VmExecutionConfig(code_validation=False, max_code_length=1))
    extractor.validate_code(block_of("eval('1'"))
    with pytest.raises(UnsupportedLanguage):
        extractor.validate_code(block_of("x", "go"))


def test_language_configs_are_found_by_alias() -> None:
    assert EXTRACTOR.get_language_config("rs").timeout_multiplier == 3.0


# --- any text ---------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *(
            "```",
            "~~~",
            "````",
            "python",
            "\n",
            "\r\n",
            "\r",
            "\n\n",
            "> ",
            "- ",
            "1. ",
            "    ",
            "  ",
            "\t",
            "`",
            "<!--",
            "-->",
        ),
        *(
            "x = 1",
            "$ ls",
            ">>> ",
            "{",
            "}",
            '"a"',
            "don't run this",
            "Run:",
            "\0",
            "\ud800",
            "漢",
            "\u202e",
            "...",
            "bash",
        ),
        *("python3 -c 'x'", "```python\n", "\n```\n", "```markdown\n", "a", "# ", "---\n", "[x]: y", "<div>", "|"),
    ]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join))
LINE_END = re.compile(r"\r\n?|\n")


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_any_text_gives_blocks_with_right_places(text: str) -> None:
    end = 0
    for block in extract(text):
        assert end <= block.start_pos <= block.end_pos <= len(text)
        end = block.end_pos
        piece = text[block.start_pos : block.end_pos]
        if block.metadata["kind"] == "fence":
            assert piece.startswith(("```", "~~~"))
        if "code_start" in block.metadata:
            assert text[block.metadata["code_start"] : block.metadata["code_end"]] == block.code
        for line in LINE_END.split(block.code):
            assert line.strip() in piece
    EXTRACTOR.detect_execution_intent(text)


CODE_LINES = st.lists(st.text(st.characters(exclude_characters="\r\n`~"), max_size=30), max_size=8)


@settings(max_examples=80, deadline=None)
@given(CODE_LINES, st.sampled_from(["\n", "\r\n"]), st.sampled_from(["```", "~~~", "`````"]))
def test_code_of_an_unindented_fence_is_its_slice(lines: list[str], end: str, fence: str) -> None:
    code = "".join(line + end for line in lines)
    text = f"before{end}{end}{fence}python{end}{code}{fence}{end}after"
    block = only(text)
    assert block.code == code
    assert text[block.metadata["code_start"] : block.metadata["code_end"]] == code
    assert text[block.start_pos : block.end_pos] == f"{fence}python{end}{code}{fence}"


@pytest.mark.parametrize("unit", ["- a\n", "> b\n", "```\n```\n"])
def test_beyond_the_parsers_budget_fences_are_still_found(unit: str) -> None:
    text = (
        unit * 16_000
        + f"\n\n1. Run:\n   ```python\n   x = 1\n   ```\n\n> ~~~bash\n> ls\n> ~~~\n\n```python\n{SCRIPT}```\n"
    )
    found = [block for block in extract(text) if block.language != "text"]
    assert [(block.language, block.code) for block in found] == [
        ("python", "x = 1\n"),
        ("bash", "ls\n"),
        ("python", SCRIPT),
    ]
    assert all(text[block.start_pos :].startswith(("```", "~~~")) for block in found)


def test_texts_of_very_many_markers_do_not_reach_the_markdown_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(markdown, "_parser", refuse)
    assert [block.code for block in extract("- a\n" * 20_000 + "\n```python\nx = 1\n```\n")] == ["x = 1\n"]
    with pytest.raises(AssertionError, match="parsed"):
        extract("- a\n")


def test_beyond_the_parsers_budget_a_fence_ends_with_its_quote() -> None:
    text = "- a\n" * 20_000 + "\n> ```python\n> x = 1\nprose\n\n```bash\nls\n```\n"
    assert [(block.language, block.code) for block in extract(text)] == [("python", "x = 1\n"), ("bash", "ls\n")]


def test_repairs_do_not_parse_a_long_text_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = 0
    parser = markdown._parser()

    class Counting:
        def parse(self, text: str) -> Any:
            nonlocal parsed
            parsed += len(text)
            return parser.parse(text)

    monkeypatch.setattr(markdown, "_parser", Counting)
    text = "1. a\n   ```python\nx = 1\n   ```\n" * 4_000
    extract(text)
    assert parsed < 2 * len(text) + 300_000


@pytest.mark.parametrize(
    ("text", "language", "code"),
    [
        ("Thought: look\nAction: terminal\nAction Input: pwd && ls\nObservation: /", "bash", "pwd && ls"),
        ("Action: Python_REPL\nAction Input: print(6 * 7)\n", "python", "print(6 * 7)"),
        ('[TOOL_CALLS][{"name": "python", "arguments": {"code": "print(1)"}}]', "python", "print(1)"),
        ("<|python_tag|>print(1)<|eom_id|>", "python", "print(1)"),
        ('{"name": "bash", "input": {"command": "ls"}}', "bash", "ls"),
    ],
)
def test_calls_of_other_templates(text: str, language: str, code: str) -> None:
    block = only(text)
    assert (block.language, block.code, block.metadata["kind"]) == (language, code, "tool-call")
    assert block.execution_confidence >= 0.7


@pytest.mark.parametrize(
    "text", ["Action: search\nAction Input: weather in Rome\n", '{"name": "x", "input": 1}', "Action: none"]
)
def test_calls_of_other_tools_are_no_code(text: str) -> None:
    assert extract(text) == []


LARGE = 1 << 19


@pytest.mark.parametrize(
    "unit",
    [
        "```\nx\n```\n",
        "<code>\n",
        "- > ",
        '{"arguments":\n',
        "```py\nx```\n",
        "don't run ",
        "a ```python\n",
        "<think>",
        "> ",
        "<execute>\nprint(1)\n</execute>\n",
        "<function=bash><parameter=code>",
        "Action: bash\nAction Input: ls\n",
        "```bash\ncurl x | sh\n",
        "```python\nx = 1\ny = 2\nz = 3\n```\n",
        "```js\n/*\n/*\n/*\n\n```\n",
        "```js\n" + "/*" * 3_000 + "\n```\n",
        "```python\nx = 1\n" + '\\"' * 3_000 + "\n```\n",
        "```ts\n" + "interface a {\ntype b = {\n" * 1_000 + "```\n",
        "```bash\ncat a b c\nhead d\n```\n",
        "```python\nimport nowhere\nx = nowhere.f()\n```\n",
        "pip install a/b.py ",
        "here is an example snippet you can use ",
        "```python\nx = f(a)  # Error\n```\n",
    ],
)
def test_half_a_megabyte_of_anything_is_read_to_its_end(unit: str) -> None:
    """What takes more than linear time runs into the time-out of the test; `emberbox bench` measures it."""
    text = unit * (LARGE // len(unit))
    blocks = EXTRACTOR.extract_code_blocks(text)
    assert all(0 <= block.start_pos <= block.end_pos <= len(text) for block in blocks)
    assert EXTRACTOR.detect_execution_intent(text).confidence >= 0


def test_a_sandbox_that_was_used_before_may_have_what_a_text_does_not_make() -> None:
    text = "Run this:\n\n```python\nprint(open('f').read(), x + 1)\n```\n"
    (alone,), _ = EXTRACTOR.read(text)
    (later,), intent = EXTRACTOR.read(text, continues=True)
    assert alone.execution_confidence < EXTRACTOR.threshold <= later.execution_confidence
    assert intent.suggested_action == "auto-execute"


def test_who_says_i_run_this_asks_and_who_says_i_ran_this_reports() -> None:
    def confidence(words: str) -> float:
        return EXTRACTOR.extract_code_blocks(f"{words}\n\n```python\nprint(6 * 7)\n```\n")[0].execution_confidence

    assert confidence("I run this:") >= 0.9
    assert confidence("I ran this:") <= 0.5
    assert confidence("I have run this:") <= 0.5
