"""Counts of the adversarial tests, by category: what `./ember test adversarial` ends with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from _pytest.terminal import TerminalReporter

_FOLDER = "tests/adversarial/test_"


def counts_by_category(stats: Mapping[str, Sequence[Any]]) -> dict[str, Counter[str]]:
    """For each file of adversarial tests how many passed, failed (or could not be set up) and were skipped."""
    found: dict[str, Counter[str]] = {}
    for outcome, reports in stats.items():
        if outcome not in {"passed", "failed", "error", "skipped"}:
            continue
        for report in reports:
            file = getattr(report, "nodeid", "").partition("::")[0]
            if file.startswith(_FOLDER):
                category = file.removeprefix(_FOLDER).removesuffix(".py").replace("_", " ")
                found.setdefault(category, Counter())["failed" if outcome == "error" else outcome] += 1
    return dict(sorted(found.items()))


def write_categories(terminalreporter: TerminalReporter) -> None:
    """Print them, where there were any."""
    found = counts_by_category(terminalreporter.stats)
    if not found:
        return
    terminalreporter.section("adversarial tests, by category")
    width = max(map(len, found))
    terminalreporter.write_line(f"{'':{width}}  passed  failed  skipped")
    for category, counts in found.items():
        line = f"{category:{width}}  {counts['passed']:6}  {counts['failed']:6}  {counts['skipped']:7}"
        terminalreporter.write_line(line, red=counts["failed"] > 0)
