"""`emberbox policy …`: the rules in force, and what they say of a file."""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from emberbox.cli.exits import Exit, fail
from emberbox.cli.inputs import language_of, read_input
from emberbox.cli.printing import printable
from emberbox.config import load_settings
from emberbox.errors import VmExecutionError
from emberbox.languages import get_language
from emberbox.languages.policy import Policy, RuleInForce
from emberbox.languages.validation import render
from emberbox.models import Finding

_COLOURS = {"block": "red", "ask": "yellow", "off": "dim"}


def list_rules(*, language: str | None, agent: str | None, role: str | None, as_json: bool) -> None:
    """All rules and what they do; leaves the process."""
    try:
        wanted = None if language is None else get_language(language).name
        policy = Policy(load_settings().vm_execution.policy)
    except VmExecutionError as error:
        fail(error, as_json=as_json)
    rules = [rule for rule in policy.rules(agent, role) if wanted in (None, rule.language)]
    if as_json:
        print(json.dumps([_as_json(rule) for rule in rules], indent=2))
    else:
        console = Console(highlight=False)
        console.print(_table(rules))
        console.print("[dim]vm_execution.policy.disabled and .ask switch them; docs/policy.md shows how[/]")
    sys.exit(int(Exit.SUCCESS))


def _as_json(one: RuleInForce) -> dict[str, str]:
    rule = one.rule
    return {
        "id": rule.id,
        "language": one.language,
        "group": rule.group,
        "action": one.action,
        "description": rule.description,
        "why": rule.why,
    }


def _table(rules: list[RuleInForce]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("rule", "does", "group"):
        table.add_column(column, no_wrap=True)
    table.add_column("refuses code that …", overflow="fold")
    for one in rules:
        rule = one.rule
        table.add_row(
            Text(rule.id), Text(one.action, style=_COLOURS[one.action]), rule.group, f"{rule.description} ({rule.why})"
        )
    return table


def check_file(file: str, *, language: str | None, agent: str | None, role: str | None, as_json: bool) -> None:
    """What the syntax check and the rules say of a source file: exit code 0 if nothing, 3 if something; leaves the
    process."""
    try:
        settings = load_settings()
        spec = get_language(language or language_of(file))
        code = read_input(file, settings)
        syntax = spec.syntax_findings(code)
        found = Policy(settings.vm_execution.policy).check(code, spec.config.name, agent_id=agent, role=role)
    except VmExecutionError as error:
        fail(error, as_json=as_json)
    if as_json:
        rows = [finding.model_dump() for finding in [*syntax, *found]]
        print(json.dumps({"language": spec.name, "findings": rows}, indent=2))
    else:
        _show(Console(highlight=False, soft_wrap=True), file, syntax, found)
    sys.exit(int(Exit.BLOCKED if found else Exit.USAGE if syntax else Exit.SUCCESS))


def _show(console: Console, file: str, syntax: list[Finding], found: list[Finding]) -> None:
    for finding in [*syntax, *found]:
        colour = "red" if finding in syntax else _COLOURS[finding.action]
        console.print(Text(printable(render(finding, file)), style=colour))
        if finding.remediation:
            console.print(f"  [cyan]→[/] {finding.remediation}")
    if not syntax and not found:
        console.print("[green]✓[/] nothing to object to")
