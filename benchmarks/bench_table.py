"""The table of docs/performance.md, made of a JSON document: `python benchmarks/bench_table.py FILE.json`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from bench_document import read, report_of
from emberbox.bench.report import aim_text, comparison, number, with_unit
from emberbox.bench.results import Figure, Row

_HEAD = "| What | Median | Quartiles | p95 | n | Aim | Met | Beside it |\n|---|---|---|---|---|---|---|---|"
_MET = {True: "yes", False: "**no**", None: ""}


def table(document: Mapping[str, Any]) -> str:
    """The Markdown table, ours and the alternatives in one line each row."""
    lines = [_HEAD]
    for row in report_of(document).rows:
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
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/bench_table.py FILE.json")
    print(table(read(sys.argv[1])))
