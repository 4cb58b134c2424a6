"""The picture of docs/performance.md, made of a JSON document: our bars beside those of the alternatives, aims marked.

    python benchmarks/bench_plot.py FILE.json PICTURE.png

Needs matplotlib, which `./ember` installs with the tools for tests."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench_document import read, report_of
from emberbox.bench.report import aim_text, with_unit
from emberbox.bench.results import Figure, Report, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS_COLOUR, OTHER_COLOUR, AIM_COLOUR = "#d9480f", "#c3c9d0", "#1b1f24"
_WIDTH = 10.0
_INCHES_PER_SLOT = 0.215
_AXIS_INCHES = 0.62
_DPI = 150
_TITLE_SLOT = 1.25
"""Height of a row's title, in bars."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Rows that share an axis. Values are drawn in `unit`; `factors` takes those of other units there."""

    title: str
    unit: str
    factors: dict[str, float]
    logarithmic: bool = False


PANELS = (
    Panel("Time (logarithmic)", "ms", {"ms": 1.0, "s": 1000.0}, logarithmic=True),
    Panel("Sandboxes a second (logarithmic)", "1/s", {"1/s": 1.0}, logarithmic=True),
    Panel("Memory", "MiB", {"MiB": 1.0}),
)


def panels(report: Report) -> list[tuple[Panel, list[Row]]]:
    """What is drawn: rows by axis. Growth and shares of a processor are left to the table."""
    found = []
    for panel in PANELS:
        rows = [
            row
            for row in report.rows
            if row.unit in panel.factors and row.ours.summary is not None and not row.key.startswith("growth-")
        ]
        if rows:
            found.append((panel, rows))
    return found


def draw(report: Report, path: Path) -> None:
    """Write the picture as PNG, whatever the name ends with; raises OSError."""
    from matplotlib.figure import Figure as Canvas

    chosen = panels(report)
    if not chosen:
        canvas = Canvas(figsize=(_WIDTH, 1.5))
        canvas.text(0.5, 0.5, "The rows that were measured are shown in the table only.", ha="center")
        canvas.savefig(path, dpi=_DPI, format="png")
        return
    heights = [_slots(rows) * _INCHES_PER_SLOT for _, rows in chosen]
    total = sum(heights) + _AXIS_INCHES * len(chosen) + 0.8
    canvas = Canvas(figsize=(_WIDTH, total), facecolor="white")
    top = total - 0.75
    for (panel, rows), height in zip(chosen, heights, strict=True):
        bottom = top - height
        axes = canvas.add_axes((0.17, bottom / total, 0.80, height / total))
        _panel(axes, panel, rows)
        top = bottom - _AXIS_INCHES
    machine = report.machine
    canvas.text(0.02, 1 - 0.30 / total, "emberbox bench", fontsize=15, fontweight="bold", va="center")
    where = f"{report.date[:10]}, {machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('kernel')}"
    few = " · few samples (--quick)" if report.quick else ""
    canvas.text(0.98, 1 - 0.24 / total, where, fontsize=8, color="#57606a", ha="right", va="center")
    legend = f"medians, whiskers: quartiles · ┃ aim{few}"
    canvas.text(0.98, 1 - 0.42 / total, legend, fontsize=8, color="#57606a", ha="right", va="center")
    canvas.savefig(path, dpi=_DPI, format="png")


def _drawn(row: Row) -> list[Figure]:
    return [row.ours, *(other for other in row.others if other.summary is not None)]


def _slots(rows: Sequence[Row]) -> float:
    return sum(_TITLE_SLOT + len(_drawn(row)) + 0.35 for row in rows)


def _panel(axes: Axes, panel: Panel, rows: Sequence[Row]) -> None:
    y, ticks, names = 0.0, [], []
    low, high = _limits(panel, rows)
    axes.set_xlim(low, high)
    if panel.logarithmic:
        axes.set_xscale("log")
    for row in rows:
        axes.text(
            0.0, y + _TITLE_SLOT / 2 + 0.1, row.title, fontsize=9.5, fontweight="bold", va="center",
            transform=axes.get_yaxis_transform(), color=AIM_COLOUR, zorder=4,
        )  # fmt: skip
        y += _TITLE_SLOT
        for figure in _drawn(row):
            _bar(axes, panel, row, figure, y + 0.5, (low, high))
            ticks.append(y + 0.5)
            names.append(figure.name)
            y += 1
        y += 0.35
    axes.set_ylim(y, 0)
    axes.set_yticks(ticks, names, fontsize=8.5)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        ours = name == rows[0].ours.name
        label.set_color(OURS_COLOUR if ours else "#57606a")
        label.set_fontweight("bold" if ours else "normal")
    _dress(axes, panel)


def _bar(axes: Axes, panel: Panel, row: Row, figure: Figure, y: float, limits: tuple[float, float]) -> None:
    s = figure.summary
    if s is None:
        return
    factor, is_ours = panel.factors[row.unit], figure is row.ours
    value, low, high = s.median * factor, s.p25 * factor, s.p75 * factor
    axes.barh(
        y, value - limits[0], left=limits[0], height=0.78, color=OURS_COLOUR if is_ours else OTHER_COLOUR, zorder=2
    )
    axes.plot([low, high], [y, y], color="#3d444d", linewidth=1.1, solid_capstyle="butt", zorder=3)
    words, end = with_unit(s.median, row.unit), max(value, high)
    if is_ours and row.aim is not None:
        bound = row.aim.most if row.aim.most is not None else row.aim.least
        if bound:
            axes.plot([bound * factor] * 2, [y - 0.55, y + 0.55], color=AIM_COLOUR, linewidth=2.4, zorder=5)
            words += f"   (aim {aim_text(row.aim, row.unit)}: {'met' if row.met else 'not met'})"
            end = max(end, bound * factor)
    axes.annotate(
        words, (end, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8,
        color=AIM_COLOUR if is_ours else "#57606a", fontweight="bold" if is_ours else "normal",
    )  # fmt: skip


def _limits(panel: Panel, rows: Sequence[Row]) -> tuple[float, float]:
    values = []
    for row in rows:
        factor = panel.factors[row.unit]
        values += [figure.summary.median * factor for figure in _drawn(row) if figure.summary]
        if row.aim is not None:
            values += [bound * factor for bound in (row.aim.most, row.aim.least) if bound]
    most = max(values)
    if not panel.logarithmic:
        return 0.0, most * 1.5
    least = min(value for value in [*values, most] if value > 0)
    room = (most / least) ** 0.32 * 1.6  # for the words behind the longest bar
    return least / 2, most * room


def _dress(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: axis_label(value, panel.unit)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8, colors="#57606a")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c3c9d0")
    axes.set_xlabel(panel.title, fontsize=8.5, color="#57606a")


def axis_label(value: float, unit: str) -> str:
    """`100 ms`, `10 s`, `40 MiB`, `15 /s`."""
    if unit == "ms" and value >= 1000:
        return f"{value / 1000:g} s"
    return f"{value:g} {'/s' if unit == '1/s' else unit}"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/bench_plot.py FILE.json PICTURE.png")
    draw(report_of(read(sys.argv[1])), Path(sys.argv[2]))
