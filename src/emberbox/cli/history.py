"""`emberbox history …`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.table import Table
from rich.text import Text

from emberbox.cli.exits import Exit, run_async
from emberbox.cli.printing import printable
from emberbox.cli.remote import ServerHistory, connected
from emberbox.cli.target import Target
from emberbox.config import load_settings
from emberbox.errors import HistoryError, ValidationFailed
from emberbox.history.recorder import HistoryRecorder
from emberbox.models import CommandHistoryEntry, DecisionRecord, FileChange, HistoryQueryRequest, HistoryVerification

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SIGNS = {"created": "+", "changed": "~", "deleted": "-"}
_MOST_FILES = 20
_COLOURS = {"started": "cyan", "finished": "red", "refused": "yellow", "unknown": "magenta"}


@asynccontextmanager
async def _history(target: Target) -> AsyncIterator[HistoryRecorder | ServerHistory]:
    """The history of a server, if one is named; else of this machine."""
    if target.named:
        async with connected(target) as server:
            yield ServerHistory(server)
        return
    settings = load_settings()
    config = settings.vm_execution.history
    if not (config.enabled and config.persist_history):
        raise HistoryError(
            "The history is switched off, or kept in memory only.",
            remediation="Set vm_execution.history.enabled and persist_history to true.",
        )
    history = HistoryRecorder(config, settings.history_url, settings.state_dir)
    try:
        yield history
    finally:
        await history.close()


def list_entries(
    target: Target,
    *,
    limit: int,
    failures: bool,
    sandbox: str | None,
    agent: str | None,
    since: str | None,
    until: str | None,
    as_json: bool,
) -> None:
    """Entries, newest first; leaves the process."""

    async def work() -> int:
        wanted = HistoryQueryRequest(
            vm_id=sandbox,
            agent_id=agent,
            limit=limit,
            failures_only=failures,
            start_date=_moment(since),
            end_date=_moment(until),
        )
        async with _history(target) as history:
            found = await history.query(wanted)
        if as_json:
            print(found.model_dump_json(indent=2))
            return int(Exit.SUCCESS)
        console = Console(highlight=False)
        if not found.history:
            console.print("Nothing is recorded" + (" that matches." if found.total == 0 else "."))
            return int(Exit.SUCCESS)
        console.print(_table(found.history))
        if found.total > len(found.history):
            console.print(f"[dim]{len(found.history)} of {found.total}; --limit shows more[/]")
        return int(Exit.SUCCESS)

    run_async(work, as_json=as_json)


def _table(entries: list[CommandHistoryEntry]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    for column in ("execution", "when", "sandbox", "language"):
        table.add_column(column, no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True, overflow="ellipsis", max_width=28)
    table.add_column("begins with", no_wrap=True, overflow="ellipsis", ratio=1)
    for entry in entries:
        table.add_row(
            Text(printable(entry.execution_id)),
            f"{entry.executed_at.astimezone():%m-%d %H:%M:%S}",
            Text(printable(entry.vm_id or "")),
            Text(printable(entry.language)),
            "" if entry.duration_ms is None else f"{entry.duration_ms:,.0f}",
            Text(printable(_outcome(entry)), style="green" if entry.success else _COLOURS[entry.state]),
            Text(printable(_first_line(entry.command)), style="dim"),
        )
    return table


def _outcome(entry: CommandHistoryEntry) -> str:
    if entry.state == "refused":
        return f"refused: {entry.blocked_by}"
    if entry.state != "finished":
        return entry.state
    reason = entry.termination_reason.value if entry.termination_reason else ""
    words = [f"exit {entry.exit_code}"] if entry.exit_code is not None else ["failed"]
    return ", ".join(words + ([reason] if reason not in ("", "completed") else []))


def _first_line(code: str) -> str:
    return next((line.strip() for line in code.splitlines() if line.strip()), "")[:200]


def show_entry(target: Target, execution_id: str, *, as_json: bool) -> None:
    """One entry in full; leaves the process."""

    async def work() -> int:
        async with _history(target) as history:
            entry = await history.get(execution_id)
        if entry is None:
            raise ValidationFailed(
                f"The history has no execution {execution_id!r:.80}.",
                remediation="`emberbox history list` shows what there is; the oldest of each sandbox are dropped.",
            )
        if as_json:
            print(entry.model_dump_json(indent=2))
        else:
            _show(entry, Console(highlight=False))
        return int(Exit.SUCCESS)

    run_async(work, as_json=as_json)


def _show(entry: CommandHistoryEntry, console: Console) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    peak = None if entry.memory_peak_mb is None else f"{entry.memory_peak_mb:g} MiB"
    cut = [name for name in ("stdout", "stderr") if getattr(entry, f"{name}_truncated")]
    rows = {
        "execution": entry.execution_id,
        "after": entry.parent_id,
        "sandbox": entry.vm_id,
        "agent": entry.agent_id,
        "language": entry.language,
        "began": f"{entry.executed_at.astimezone():%Y-%m-%d %H:%M:%S %z}",
        "took": None if entry.duration_ms is None else f"{entry.duration_ms:,.1f} ms",
        "outcome": _outcome(entry),
        "error": entry.error,
        "memory": peak,
        "back end": entry.backend,
        "before": entry.snapshot_before_id,
        "snapshot": entry.snapshot_id,
        "went back to": entry.rolled_back_to,
        "files": _files(entry.changed_files),
        "cut short": ", ".join(cut) or None,
        "decisions": _decisions(entry.decisions),
    }
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, Text(printable(value)))
    console.print(table)
    for name, text in (("code", entry.command), ("stdout", entry.stdout), ("stderr", entry.stderr)):
        if text:
            console.rule(name, style="dim", align="left")
            console.print(Text(printable(text.rstrip("\n"))), soft_wrap=True)


def _decisions(records: list[DecisionRecord]) -> str | None:
    """Who decided what, one a line."""
    lines = []
    for record in records:
        words = record.decision.replace("_", " ")
        if record.decision == "ask_user":
            said = "nobody answered" if record.approved is None else "approved" if record.approved else "refused"
            who = f" by {record.approved_by}" if record.approved_by else ""
            words = f"asked: {said}{who}{', edited' if record.edited else ''}"
        reason = f" ({_first_line(record.reason)})" if record.reason else ""
        lines.append(f"{record.stage} {record.hook}: {words}{reason}")
    return "\n".join(lines) or None


def _files(changes: list[FileChange] | None) -> str | None:
    """`+` created, `~` changed, `-` deleted; one a line."""
    if not changes:
        return None if changes is None else "none changed"
    lines = [f"{_SIGNS[change.change]} {change.path}" for change in changes[:_MOST_FILES]]
    if len(changes) > _MOST_FILES:
        lines.append(f"… and {len(changes) - _MOST_FILES} more (--json has them)")
    return "\n".join(lines)


def verify_chain(target: Target, *, noted: str | None, as_json: bool) -> None:
    """Check the audit chain: exit code 0 if it is intact, 1 if not; leaves the process."""

    async def work() -> int:
        async with _history(target) as history:
            found = await history.verify(noted)
        if as_json:
            print(found.model_dump_json(indent=2))
        else:
            _say(found, Console(highlight=False, soft_wrap=True))
        return int(Exit.SUCCESS if found.intact else Exit.FAILED)

    run_async(work, as_json=as_json)


def _say(found: HistoryVerification, console: Console) -> None:
    counts = f"{found.links} links, {found.entries} entries"
    if found.first_bad is None:
        console.print(f"[bold green]✓ The history is intact[/]: {counts}.")
        console.print(f"[dim]head[/] {found.head}")
        return
    bad = found.first_bad
    place = "" if bad.sequence is None else f" at link {bad.sequence}"
    whose = "" if bad.execution_id is None else f" (execution {printable(bad.execution_id)})"
    console.print(Text(f"✗ The history is broken{place}{whose}: {bad.why}.", style="bold red"))
    console.print(f"  {counts} were read.")


def _moment(text: str | None) -> datetime | None:
    """`2h` ago, or a date and time in ISO 8601."""
    if text is None:
        return None
    ago = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    try:
        if ago:
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as exc:
        raise ValidationFailed(
            f"{text!r:.80} is no time.", remediation="Write 30m, 2h, 7d, or 2026-12-31, or 2026-12-31T23:59:59+01:00."
        ) from exc
