"""Rows about what is done before and after code runs: extraction, policy, redaction. They need no sandbox."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from emberbox.bench.lab import Lab, ours
from emberbox.bench.measure import Clock, Contender, in_thread, interleave, summarise
from emberbox.bench.results import COMPILER, MARKDOWN, OURS, Aim, Figure, Row
from emberbox.code_extractor import CodeBlockExtractor
from emberbox.hooks import OutputSanitizerHook
from emberbox.hooks.contract import PreToolContext
from emberbox.languages.policy import Policy

_MIB = 1 << 20
_BLOCK = """\
Step {number}: run this to sum up the values of part {number}:

```python
import json

def total(path):
    with open(path) as file:
        return sum(row["value"] for row in json.load(file))

print(total("part-{number}.json"))
```

You should see one number.
"""
_LOG = "2026-01-02 03:04:05,678 INFO worker-3 handled request 48151623 in 42.0 ms, 1,234 rows, status ok\n"
_HOSTILE = ("```\nx\n```\n", "<code>\n", "- > ", '{"arguments":\n', "```py\nx```\n", "don't run ")


async def extraction(lab: Lab) -> list[Row]:
    """Rows `extract` and `extract-hostile`: an answer of 5 KB with ten blocks; 1 MB that is made to be slow."""
    answer = "".join(_BLOCK.format(number=number) for number in range(10))
    extractor = CodeBlockExtractor()
    parser = importlib.import_module("markdown_it").MarkdownIt("commonmark")
    contenders = [
        Contender(OURS, partial(_timed, lambda: extractor.extract_code_blocks(answer))),
        Contender(MARKDOWN, partial(_timed, lambda: parser.parse(answer))),
    ]
    samples = await interleave(contenders, lab.count("extractions", 50, 10), tick=lambda part: lab.tick(part / 2))
    rows = [_row("extract", "find and judge the blocks of an answer (5 KB)", samples, MARKDOWN)]
    slowest = 0.0
    for number, unit in enumerate(_HOSTILE):
        text = unit * (_MIB // len(unit))
        slowest = max(slowest, await _timed(partial(extractor.extract_code_blocks, text)))
        lab.tick(0.5 + (number + 1) / len(_HOSTILE) / 2)
    title = "the same of 1 MB that is made to be slow, the slowest of six"
    return [*rows, Row("extract-hostile", title, "ms", ours([slowest]), Aim(most=1000))]


async def policy(lab: Lab) -> list[Row]:
    """Row `policy`: all rules on 100 lines of Python, beside the compiler's own parser."""
    code = "".join(
        f"def step_{number}(x):\n    y = x.attr[{number}] + 1\n    print(y)\n    return y\n" for number in range(25)
    )
    rules = Policy()
    contenders = [
        Contender(OURS, partial(_timed, lambda: rules.check(code, "python"))),
        Contender(COMPILER, partial(_timed, lambda: ast.parse(code))),
    ]
    samples = await interleave(contenders, lab.count("checks", 50, 10), tick=lab.tick)
    return [_row("policy", "all rules on 100 lines of Python", samples, COMPILER)]


async def redaction(lab: Lab) -> list[Row]:
    """Row `redact`: clean output through the sanitizer in pieces."""
    text = _LOG * (4 * _MIB // len(_LOG))
    hook = OutputSanitizerHook()

    def stream() -> None:
        chain = hook.output_filter(PreToolContext(code="", language="python"))
        shown = 0
        for start in range(0, len(text), 1 << 16):
            shown += len(chain.feed("stdout", text[start : start + (1 << 16)])) if chain else 0
        shown += len(chain.finish("stdout")) if chain else 0
        if shown != len(text):
            raise AssertionError("clean text was changed")

    rounds = lab.count("redactions", 10, 3)
    samples = await interleave([Contender(OURS, partial(_speed, stream, len(text)))], rounds, tick=lab.tick)
    return [Row("redact", "redaction of clean output", "MB/s", ours(samples[OURS]), Aim(least=50))]


def _row(key: str, title: str, samples: dict[str, list[float]], other: str) -> Row:
    return Row(key, title, "ms", ours(samples[OURS]), None, [Figure(other, summarise(samples[other]))])


async def _timed(work: Callable[[], Any]) -> float:
    """Milliseconds that it took."""

    def once() -> float:
        clock = Clock()
        work()
        return clock.ms()

    return await in_thread(once)


async def _speed(work: Callable[[], None], size: int) -> float:
    """Megabytes a second."""
    return size / 1e6 / (await _timed(work) / 1000)
