"""The table for people."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from emberbox.bench.results import Aim, Figure, Report, Row

_SAME = 1.05
"""A smaller difference is not worth a word."""
_MARKS = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[dim]·[/]"}
_WORDS = dict.fromkeys(("ms", "s", "1/s", "MB/s"), ("faster", "slower")) | {"MiB": ("smaller", "larger")}


def show(report: Report, console: Console) -> None:
    """Print the whole report."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("what", ratio=1)
    for column in ("median", "quartiles", "p95", "n", "aim"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("Emberbox is", no_wrap=True)
    for row in report.rows:
        _add(table, row)
    console.print(table)
    console.print()
    for line in _footer(report):
        console.print(f"[dim]{escape(line)}[/]")


def _add(table: Table, row: Row) -> None:
    table.add_row(
        _MARKS[row.met],
        Text(row.title, style="bold"),
        *_cells(row.ours, row.unit, style="bold"),
        aim_text(row.aim, row.unit),
        "",
    )
    for other in row.others:
        if other.summary is None:
            words = f"{other.name}: {other.missing}" + (f" → {other.remedy}" if other.remedy else "")
            table.add_row("", Text(f"  {words}", style="yellow"), "", "", "", "", "", "")
        else:
            table.add_row(
                "",
                Text(f"  {other.name}", style="dim"),
                *_cells(other, row.unit, style="dim"),
                "",
                comparison(row.better(other), row.unit),
            )


def _cells(figure: Figure, unit: str, style: str) -> list[Text]:
    s = figure.summary
    if s is None:
        return [Text("")] * 4
    one = s.n == 1
    spread = "" if one else f"{number(s.p25)} - {number(s.p75)}"
    cells = [with_unit(s.median, unit), spread, "" if one else number(s.p95), str(s.n)]
    return [Text(cells[0], style=style), *(Text(cell, style="dim") for cell in cells[1:])]


def number(value: float) -> str:
    """About three digits: 0.42, 8.13, 61.5, 612."""
    size = abs(value)
    if round(size, 3) == 0:
        return "0"
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{value:,.{digits}f}"


def with_unit(value: float, unit: str) -> str:
    """`8.13 ms`, `15.2 /s`, `0.3 %`, `12`."""
    return f"{number(value)} {'/s' if unit == '1/s' else unit}".strip()


def aim_text(aim: Aim | None, unit: str) -> str:
    """`≤ 2 ms`, `≥ 15 /s`; empty without an aim."""
    if aim is None:
        return ""
    if aim.words:
        return aim.words
    bound = aim.most if aim.most is not None else aim.least
    sign = "≤" if aim.most is not None else "≥"
    return "" if bound is None else f"{sign} {bound:g} {'/s' if unit == '1/s' else unit}".strip()


def comparison(better: float | None, unit: str) -> Text:
    """`2.1x faster`, `3.0x larger`: how we stand to the alternative, in the words of the unit."""
    if better is None or better <= 0:
        return Text("")
    if max(better, 1 / better) < _SAME:
        return Text("about the same", style="dim")
    good, bad = _WORDS.get(unit, ("better", "worse"))
    if better >= 1:
        return Text(f"{_times(better)} {good}", style="green")
    return Text(f"{_times(1 / better)} {bad}", style="red")


def _times(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio < 9.95 else f"{ratio:,.0f}x"


def _footer(report: Report) -> list[str]:
    judged = [row.met for row in report.rows if row.met is not None]
    machine, versions = report.machine, report.versions
    lines = [
        f"{sum(judged)} of {len(judged)} aims met; medians of one run of {report.seconds:.0f} s on one machine"
        + (", few samples (--quick)" if report.quick else "")
        + ".",
        f"{machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('memory_gib')} GiB, {machine.get('kernel')}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    lines += [f"{row.title}: {row.note}" for row in report.rows if row.note]
    return lines
