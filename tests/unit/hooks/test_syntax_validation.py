"""Code that cannot run is refused with its place, as a compiler says it."""

from __future__ import annotations

import pytest

from emberbox.hooks import Allow, Block, PreToolContext, SyntaxValidationHook
from emberbox.models import VmExecutionConfig

HOOK = SyntaxValidationHook(VmExecutionConfig(allowed_languages=["python", "bash", "javascript"], max_code_length=60))


@pytest.mark.parametrize(
    ("language", "code", "reason"),
    [
        ("python", "x = 1\nprint((1)\n", "code:2:6: '(' was never closed [syntax]\n  2 | print((1)\n    |      ^"),
        ("py", "if True\n    x", "code:1:8: expected ':' [syntax]\n  1 | if True\n    |        ^"),
        ("javascript", "let x = ;", "code:1:7: unexpected '=' [syntax]\n  1 | let x = ;\n    |       ^"),
        ("bash", "if true; then\nls\n", "code:1:1: 'if' was never closed"),
        ("python", "日本 = (", "code:1:6: '(' was never closed [syntax]\n  1 | 日本 = (\n    |        ^"),
        ("python", "if 1:\n\tx = (\n", "code:2:6: '(' was never closed [syntax]\n  2 | \tx = (\n    | \t    ^"),
        ("python", "  \n", "code:1:1: there is no code [empty]"),
        ("python", "x" * 61, "code:1:1: the code has 61 characters, 60 are allowed [length]"),
        ("rust", "fn main() {}", "language 'rust' is not allowed by the configuration"),
        ("cobol", "DISPLAY 'HI'.", "unknown language 'cobol'"),
    ],
)
async def test_says_what_is_wrong_and_where(language: str, code: str, reason: str) -> None:
    decision = await HOOK.pre_tool(PreToolContext(code=code, language=language))
    assert isinstance(decision, Block)
    assert decision.reason.startswith(reason)


@pytest.mark.parametrize(("language", "code"), [("python", "await x()"), ("bash", "ls | wc"), ("js", "await 1")])
async def test_lets_pass_what_parses(language: str, code: str) -> None:
    assert await HOOK.pre_tool(PreToolContext(code=code, language=language)) == Allow()


async def test_every_place_is_a_finding() -> None:
    decision = await HOOK.pre_tool(PreToolContext(code="let x = ;\nfoo(\n", language="js"))
    assert isinstance(decision, Block)
    assert [(finding.rule, finding.line) for finding in decision.findings] == [("syntax", 1), ("syntax", 2)]
