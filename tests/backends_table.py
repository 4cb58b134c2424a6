"""Prints which back end each contract test was really run on, at the end of a run.

A test says its back end by `ran_on`; what it says travels with its report, also from another process of the run.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest
    from _pytest.reports import TestReport
    from _pytest.terminal import TerminalReporter

COLUMNS = {
    "local": "gVisor",
    "remote": "gVisor, server",
    "newest": "gVisor, newest",
    "qemu": "QEMU",
    "firecracker": "Firecracker",
}
_PROPERTY = "backend"
_MARKS = {"passed": "yes", "failed": "FAILED", "error": "FAILED", "skipped": "skipped"}
_WORST = ["FAILED", "skipped", "yes"]


def ran_on(node: pytest.Item, backend: str) -> None:
    """Note the back end of a test: a key of `COLUMNS`."""
    node.user_properties.append((_PROPERTY, backend))


def table_of(reports: dict[str, list[TestReport]]) -> list[str]:
    """The lines of the table: a row for every test, a column for every back end; empty without such tests."""
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for outcome, mark in _MARKS.items():
        for report in reports.get(outcome, []):
            properties = getattr(report, "user_properties", ())  # a file that cannot be collected has none
            backend = next((str(value) for name, value in properties if name == _PROPERTY), None)
            if backend is None:
                continue
            cells = rows[report.nodeid.partition("[")[0].rpartition("/")[2].replace(".py::", " ")]
            cells[backend] = min(mark, cells.get(backend, mark), key=_WORST.index)
    if not rows:
        return []
    width = max(map(len, rows))
    lines = [f"{'':{width}}  " + "  ".join(COLUMNS.values())]
    for name in sorted(rows):
        marks = (f"{rows[name].get(key, '-'):{len(title)}}" for key, title in COLUMNS.items())
        lines.append(f"{name:{width}}  " + "  ".join(marks).rstrip())
    return lines


def write_table(terminalreporter: TerminalReporter) -> None:
    """Print it, where there were such tests."""
    lines = table_of(terminalreporter.stats)
    if lines:
        terminalreporter.section("contract tests, and where they ran (-: not a test of this back end)")
        for line in lines:
            terminalreporter.write_line(line)
