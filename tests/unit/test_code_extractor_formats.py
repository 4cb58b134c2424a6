"""How models and agents hand over code: tool calls of many templates, tags, fences within texts of the code."""

from __future__ import annotations

import pytest

from emberbox.code_extractor import CodeBlockExtractor
from emberbox.models import CodeBlock

EXTRACTOR = CodeBlockExtractor()


def in_order(text: str) -> list[CodeBlock]:
    return sorted(EXTRACTOR.extract_code_blocks(text), key=lambda block: block.start_pos)


SEP, BEGIN, END = (
    "<\uff5ctool\u2581sep\uff5c>",
    "<\uff5ctool\u2581call\u2581begin\uff5c>",
    "<\uff5ctool\u2581call\u2581end\uff5c>",
)
CALLS, CALLS_END = "<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581calls\u2581end\uff5c>"
HARMONY = "<|start|>assistant<|channel|>commentary"
INVOKE = '<invoke name="bash">\n<parameter name="command">ls -l</parameter>\n</invoke>'

HANDED_OVER = [
    ("Thought: I look.\n\n```mswea_bash_command\nls -l\n```\n", "bash", "ls -l\n"),
    ("```bash_command\nls -l\n```\n", "bash", "ls -l\n"),
    ("```execute_python\nprint(1)\n```\n", "python", "print(1)\n"),
    ("<|channel|>analysis to=python code<|message|>print(1)<|call|>", "python", "print(1)"),
    (
        f'{HARMONY} to=functions.python <|constrain|>json<|message|>{{"code": "print(1)"}}<|call|>',
        "python",
        "print(1)",
    ),
    (
        '<|start|>assistant to=functions.bash<|channel|>commentary json<|message|>{"command": "ls -l"}<|call|>',
        "bash",
        "ls -l",
    ),
    (f"I look.\n\n{INVOKE}\n", "bash", "ls -l"),
    (f"<function_calls>\n{INVOKE}\n</function_calls>\n", "bash", "ls -l"),
    (INVOKE.replace("invoke", "antml:invoke").replace("parameter", "antml:parameter"), "bash", "ls -l"),
    ('[TOOL_CALLS]python{"code": "print(1)"}', "python", "print(1)"),
    ('I look.[TOOL_CALLS][{"name": "run_shell", "arguments": {"command": "ls -l"}}]', "bash", "ls -l"),
    (
        "I look.\n<tool_call>run_shell\n<arg_key>command</arg_key>\n<arg_value>ls -l</arg_value>\n</tool_call>",
        "bash",
        "ls -l",
    ),
    (
        "<execute_command>\n<command>ls -l &amp;&amp; pwd</command>\n<timeout>9</timeout>\n</execute_command>",
        "bash",
        "ls -l && pwd",
    ),
    (
        'Thought: I count.\n\nAction:\n```json\n{"action": "python_interpreter", "action_input": "print(1)"}\n```\n',
        "python",
        "print(1)",
    ),
    ('[TOOL_CALLS]python[ARGS]{"code": "print(1)"}\n\nI wait.', "python", "print(1)"),
    ('[TOOL_CALLS]run_bash[CALL_ID]a1b2c3[ARGS]{"command": "ls -l"}</s>', "bash", "ls -l"),
    (
        f'{CALLS}{BEGIN}function{SEP}python\n```json\n{{"code": "print(1)"}}\n```{END}{CALLS_END}',
        "python",
        "print(1)",
    ),
    (f'I look.{CALLS}{BEGIN}bash{SEP}{{"command": "ls -l"}}{END}{CALLS_END}', "bash", "ls -l"),
    ('<|python_tag|>{"name": "python", "parameters": {"code": "print(1)"}}<|eom_id|>', "python", "print(1)"),
    ("<|python_tag|>print(1)<|eom_id|>", "python", "print(1)"),
    ('I compute it.\n\n{"language": "python", "code": "print(1)"}\n', "python", "print(1)"),
    ('{"code": "console.log(1)", "language": "js"}', "javascript", "console.log(1)"),
    ("<execute> print(1) </execute>\n", "python", "print(1)"),
    ("I should check it. <execute> print(1) </execute>\n", "python", "print(1)"),
    ("<execute> import math\nprint(math.pi)\n</execute>\n", "python", "import math\nprint(math.pi)\n"),
    ("I look at the folder.\n<execute_bash>\nls -l\n", "bash", "ls -l\n"),
    ("I look.\n<execute_ipython>\nprint(1)", "python", "print(1)"),
    ('<tool_call>\n{"name": "python", "arguments": {"code": "print(1)"}}\n', "python", "print(1)"),
    ("<function=execute_bash>\n<parameter=command>ls -l</parameter>\n", "bash", "ls -l"),
    ("<function=execute_bash>\n<parameter=command>ls -l\n", "bash", "ls -l"),
    ('<invoke name="python">\n<parameter name="code">print(1)\n', "python", "print(1)"),
    (
        '<think>\nI need the value.\n<tool_call>\n{"name": "python", "arguments": {"code": "print(1)"}}\n</tool_call>',
        "python",
        "print(1)",
    ),
    ("<think>\nLet me look.\n<execute_bash>\nls -l\n</execute_bash>\n", "bash", "ls -l\n"),
]


@pytest.mark.parametrize(("text", "language", "code"), HANDED_OVER)
def test_what_an_agent_hands_over_runs(text: str, language: str, code: str) -> None:
    (block,) = in_order(text)
    assert (block.language, block.code) == (language, code)
    assert block.execution_confidence >= 0.7, block.metadata["why"]


@pytest.mark.parametrize(("text", "language", "code"), HANDED_OVER)
def test_a_stream_gives_the_same(text: str, language: str, code: str) -> None:
    extractor = CodeBlockExtractor()
    (block,) = [block for letter in text for block in extractor.feed(letter)] + extractor.finish()
    assert (block.language, block.code) == (language, code)


def test_several_invocations_in_one_frame_are_several_blocks() -> None:
    text = f"<function_calls>\n{INVOKE}\n{INVOKE.replace('ls -l', 'pwd')}\n</function_calls>\n"
    assert [block.code for block in in_order(text)] == ["ls -l", "pwd"]


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nMaybe:\n\n<execute_bash>\nls -l\n</execute_bash>\n</think>\n\nNo, I ask first.\n",
        "Use `<execute> print(1) </execute>` for that.\n",
        "The tags are <execute> print(1) </execute> and others.\n",
        '```json\n{"language": "python", "code": "print(1)"}\n```\n',
        "<execute_bash>\nrm -rf build/\n",
        '[TOOL_CALLS]web_search{"query": "x"}',
        '<|python_tag|>brave_search.call(query="x")<|eom_id|>',
        "<tool_call>web_search\n<arg_key>query</arg_key>\n<arg_value>x</arg_value>\n</tool_call>",
        '[TOOL_CALLS]python{"code": "print(1)',
        '{"language": "klingon", "code": "print(1)"}',
    ],
)
def test_what_is_not_handed_over_does_not_run(text: str) -> None:
    assert [block for block in in_order(text) if block.execution_confidence >= 0.7] == []


# --- fences within texts of the code ----------------------------------------------------------------------------------

README = "# Demo\n\nInstall it:\n\n```bash\npip install demo\n```\n\nLicence: MIT\n"
HEREDOC = f"cat > README.md <<'DOC'\n{README}DOC\nwc -l < README.md && tail -1 README.md\n"
TRIPLE = f'TEXT = """\n{README}"""\nprint(len(TEXT))\n'


@pytest.mark.parametrize("fence", ["```", "````", "~~~"])
@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("bash", HEREDOC),
        ("sh", HEREDOC.replace("'DOC'", "DOC")),
        ("bash", HEREDOC.replace("<<'DOC'", '<<"DOC"')),
        ("mswea_bash_command", HEREDOC),
        ("bash", "cat <<-A >a; cat <<B >b\n```\n\tA\n```\nB\necho done\n"),
        ("python", TRIPLE),
        ("python", TRIPLE.replace('"""', "'''")),
        (
            "python",
            "def f():\n    '''Use it so:\n\n    ```python\n    f()\n    ```\n    '''\nprint(f.__doc__)\n",
        ),
    ],
)
def test_a_fence_within_a_text_of_the_code_does_not_end_the_block(fence: str, language: str, code: str) -> None:
    text = f"I'll create it:\n\n{fence}{language}\n{code}{fence}\n\nThen:\n\n```python\nprint(2)\n```\n"
    first, second = in_order(text)
    assert first.code == code
    assert second.code == "print(2)\n"
    assert min(first.execution_confidence, second.execution_confidence) >= 0.7, first.metadata["why"]
    extractor = CodeBlockExtractor()
    fed = [block for letter in text for block in extractor.feed(letter)] + extractor.finish()
    assert [block.code for block in fed] == [code, "print(2)\n"]


@pytest.mark.parametrize(
    "code",
    [
        HEREDOC.replace("\nDOC\n", "\n"),
        TRIPLE.replace('"""\nprint', "\nprint"),
        HEREDOC.replace("&& tail", "&& ( tail"),
    ],
)
def test_what_cannot_be_told_apart_is_never_run_cut_short(code: str) -> None:
    language = "python" if "TEXT" in code else "bash"
    blocks = in_order(f"Run this:\n\n```{language}\n{code}```\n")
    assert blocks[0].execution_confidence < 0.7, blocks[0].code


@pytest.mark.parametrize(
    "code",
    [
        "echo $((1 << 3))\n",
        "# cat <<EOF\necho hi\n",
        "cat <<< word\n",
        'x = \'"""\'\nprint(x)\n',
        '# it\'s """ here\nprint(1)\n',
        "print('''a''', \"b\")\n",
    ],
)
def test_what_only_looks_like_such_a_text_ends_with_its_fence(code: str) -> None:
    language = "python" if "print" in code else "bash"
    first, second = in_order(f"```{language}\n{code}```\n\ntext\n\n```bash\nls\n```\n")
    assert (first.code, second.code) == (code, "ls\n")


def test_marks_of_an_edit_and_trees_are_no_programs() -> None:
    edit = "<<<<<<< SEARCH\nx = 1\n=======\nx = 2\n>>>>>>> REPLACE\n"
    tree = "shop/\n\u251c\u2500\u2500 a.py\n\u2514\u2500\u2500 b.py\n"
    for language, code, kind in [
        ("python", edit, "edit"),
        ("", edit, "edit"),
        ("bash", tree, "tree"),
        ("", tree, "tree"),
    ]:
        (block,) = in_order(f"Here:\n\n```{language}\n{code}```\n")
        assert block.metadata["looks_like"] == kind
        assert block.execution_confidence < 0.5
