"""`emberbox extract`: what is found in an answer, and why it would run or not."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from emberbox.cli.exits import Exit, fail
from emberbox.cli.inputs import read_input
from emberbox.cli.printing import printable
from emberbox.code_extractor import CodeBlockExtractor
from emberbox.config import load_settings
from emberbox.errors import VmExecutionError
from emberbox.languages import resolve
from emberbox.models import CodeBlock, ExecutionIntent, Finding

_ACTIONS = {"block": "red", "ask": "yellow"}


def extract(file: str, *, as_json: bool, threshold: float | None) -> None:
    """The command; leaves the process."""
    try:
        settings = load_settings()
        least = settings.auto_execute_threshold if threshold is None else threshold
        extractor = CodeBlockExtractor(least, settings.vm_execution)
        text = read_input(file, settings)
        found, intent = extractor.read(text)
        blocks = sorted(found, key=lambda block: block.start_pos)
        findings = [_findings(extractor, block) for block in blocks]
    except VmExecutionError as error:
        fail(error, as_json=as_json)
    if as_json:
        rows = [_row(block, found) for block, found in zip(blocks, findings, strict=True)]
        print(json.dumps({"intent": intent.model_dump(), "threshold": least, "blocks": rows}, indent=2))
    else:
        _show(Console(highlight=False), file, blocks, findings, intent, least)
    sys.exit(int(Exit.SUCCESS))


def _findings(extractor: CodeBlockExtractor, block: CodeBlock) -> list[Finding]:
    language = resolve(block.language)
    if language is None or len(block.code) > extractor.config.max_code_length:
        return []
    return extractor.policy.check(block.code, language)


def _row(block: CodeBlock, findings: list[Finding]) -> dict[str, Any]:
    return {**block.model_dump(), "findings": [finding.model_dump() for finding in findings]}


def _show(
    console: Console,
    file: str,
    blocks: list[CodeBlock],
    findings: list[list[Finding]],
    intent: ExecutionIntent,
    threshold: float,
) -> None:
    plural = "s" * (len(blocks) != 1)
    console.print(f"[bold]{escape(file)}[/]: {len(blocks)} block{plural}")
    words = ", ".join(intent.trigger_keywords) or "no words of execution"
    console.print(f"intent [bold]{intent.suggested_action}[/] ({intent.confidence:.2f}): {escape(printable(words))}")
    for number, (block, found) in enumerate(zip(blocks, findings, strict=True), 1):
        runs = block.execution_confidence >= threshold
        verdict = "[green]run[/]" if runs else "[dim]leave[/]"
        kind, line = block.metadata["kind"], block.metadata["line"]
        title = f"block {number} · {escape(printable(block.language))} · line {line} · {kind}"
        console.print(Rule(f"[bold]{title}[/]", style="cyan" if runs else "dim", align="left"))
        console.print(f"confidence [bold]{block.execution_confidence:.2f}[/] → {verdict}")
        console.print(_why(block))
        for finding in found:
            place = f"line {finding.line}, column {finding.column}"
            colour = _ACTIONS[finding.action]
            console.print(
                f"[{colour}]{finding.action}[/] {place}: {escape(printable(finding.message))}", soft_wrap=True
            )


def _why(block: CodeBlock) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_column()
    for entry in block.metadata["why"]:
        cap = f" (at most {entry['cap']:.2f})" if "cap" in entry else ""
        detail = f": {printable(entry['detail'])}" if entry.get("detail") else ""
        weight = entry["weight"]
        colour = "green" if weight > 0 else "red" if weight < 0 else "dim"
        table.add_row(
            Text(f"{weight:+.2f}", style=colour), Text(entry["rule"]), Text(f"{entry['reason']}{detail}{cap}")
        )
    return table
