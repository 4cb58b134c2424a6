"""What a run of the benchmark found: rows, figures, aims. Pure; `report` shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from emberbox.bench.measure import Summary

FORMAT = 1
"""Of the JSON document; a change of meaning is a new number."""

OURS = "Emberbox"
PYTHON = "python3 on the host"
RUNSC = "runsc run, cold"
RUNSC_SNAPSHOT = "runsc checkpoint"
RUNSC_RESTORE = "runsc restore"
BWRAP = "bubblewrap"
JUPYTER = "Jupyter kernel"
IN_PROCESS = "the same in process"
MARKDOWN = "markdown-it alone"
COMPILER = "ast.parse alone"
VERSION = "emberbox --version"
BARE = "python3 that does nothing"

_MORE_IS_BETTER = frozenset({"1/s", "MB/s"})


@dataclass(frozen=True, slots=True)
class Aim:
    """What a median must reach: at most, at least, or below that of another figure of the row."""

    most: float | None = None
    least: float | None = None
    below: str | None = None
    words: str = ""
    """Instead of the numbers, where they are not what the aim says."""

    def met(self, ours: float, others: Mapping[str, float]) -> bool:
        """Whether `ours` reaches it; what it is to be below of counts only if it was measured."""
        return (
            (self.most is None or ours <= self.most)
            and (self.least is None or ours >= self.least)
            and (self.below is None or ours < others.get(self.below, ours + 1))
        )


@dataclass(frozen=True, slots=True)
class Figure:
    """The figure of one contender: a summary of its samples, or why there is none."""

    name: str
    summary: Summary | None = None
    missing: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `unit`: ms, s, 1/s, MB/s, MiB, %, or empty for a count."""

    key: str
    title: str
    unit: str
    ours: Figure
    aim: Aim | None = None
    others: Sequence[Figure] = ()
    note: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)
    """More numbers behind the figure, for the JSON document; the names carry the units."""

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None where there is no aim or no figure."""
        if self.aim is None or self.ours.summary is None:
            return None
        others = {figure.name: figure.summary.median for figure in self.others if figure.summary}
        return self.aim.met(self.ours.summary.median, others)

    def better(self, other: Figure) -> float | None:
        """How many times better our median is than that of `other`; below 1 it is worse. None: not to be said."""
        if self.ours.summary is None or other.summary is None:
            return None
        ours, theirs = self.ours.summary.median, other.summary.median
        if self.unit in _MORE_IS_BETTER:
            ours, theirs = theirs, ours
        return theirs / ours if ours > 0 else None


@dataclass(frozen=True, slots=True)
class Report:
    """One run on one machine."""

    date: str
    quick: bool
    seconds: float
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    rows: Sequence[Row]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "format": FORMAT,
            "date": self.date,
            "quick": self.quick,
            "seconds": round(self.seconds, 1),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "settings": dict(self.settings),
            "rows": [_row(row) for row in self.rows],
        }


def _row(row: Row) -> dict[str, Any]:
    return {
        "key": row.key,
        "title": row.title,
        "unit": row.unit,
        "aim": row.aim and asdict(row.aim),
        "met": row.met,
        "emberbox": _figure(row.ours),
        "alternatives": [{**_figure(other), "times_better": _rounded(row.better(other))} for other in row.others],
        "facts": {name: _rounded(value) for name, value in row.facts.items()},
        "note": row.note,
    }


def _figure(figure: Figure) -> dict[str, Any]:
    if figure.summary is None:
        return {"name": figure.name, "missing": figure.missing, "remedy": figure.remedy}
    s = figure.summary
    numbers = {"median": s.median, "p25": s.p25, "p75": s.p75, "p95": s.p95, "min": s.least, "max": s.most}
    return {"name": figure.name, "n": s.n, **{name: _rounded(value) for name, value in numbers.items()}}


def _rounded(value: float | None) -> float | None:
    """Five digits: more would be noise."""
    return None if value is None else float(f"{value:.5g}")
