"""The table of docs/performance.md, made of a JSON document: `python -m emberbox.bench.markdown FILE.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emberbox.bench.measure import Summary
from emberbox.bench.report import aim_text, comparison, number, with_unit
from emberbox.bench.results import FORMAT, Aim, Figure, Row
from emberbox.errors import ValidationFailed

_HEAD = "| What | Median | Quartiles | p95 | n | Aim | Met | Beside it |\n|---|---|---|---|---|---|---|---|"
_MET = {True: "yes", False: "**no**", None: ""}


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    """The rows of a document; raises ValidationFailed if it is not one of ours."""
    try:
        if document["format"] != FORMAT:
            raise ValidationFailed(f"Format {document['format']!r:.20} is not known.", remediation="Measure again.")
        return [_row(row) for row in document["rows"]]
    except (KeyError, TypeError) as exc:
        raise ValidationFailed(f"This is no document of `emberbox bench`: {exc!r}.") from exc


def _row(row: Mapping[str, Any]) -> Row:
    aim = Aim(**row["aim"]) if row["aim"] else None
    others = [_figure(other) for other in row["alternatives"]]
    return Row(row["key"], row["title"], row["unit"], _figure(row["emberbox"]), aim, others, row["note"], row["facts"])


def _figure(figure: Mapping[str, Any]) -> Figure:
    if "median" not in figure:
        return Figure(figure["name"], missing=figure["missing"], remedy=figure["remedy"])
    names = ("n", "median", "p25", "p75", "p95", "min", "max")
    return Figure(figure["name"], Summary(*(figure[name] for name in names)))


def table(document: Mapping[str, Any]) -> str:
    """The Markdown table, ours and the alternatives in one line each row."""
    lines = [_HEAD]
    for row in rows_of(document):
        s = row.ours.summary
        if s is None:
            continue
        one = s.n == 1
        cells = [
            row.title,
            with_unit(s.median, row.unit),
            "" if one else f"{number(s.p25)} - {number(s.p75)}",
            "" if one else number(s.p95),
            "" if one else str(s.n),
            aim_text(row.aim, row.unit),
            _MET[row.met],
            "<br>".join(_beside(row, other) for other in row.others),
        ]
        lines.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    return "\n".join(lines)


def _beside(row: Row, other: Figure) -> str:
    if other.summary is None:
        return f"{other.name}: {other.missing}"
    words = comparison(row.better(other), row.unit).plain
    return f"{other.name} {with_unit(other.summary.median, row.unit)}" + (f" ({words})" if words else "")


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
