"""The table of the documentation, and that it is the one of the kept document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench_document import report_of
from bench_table import table
from emberbox.errors import ValidationFailed

from .made_up import report

ROOT = Path(__file__).parents[3]


def test_rows_survive_the_document() -> None:
    document = json.loads(json.dumps(report().to_dict()))
    again = report_of(document).rows
    assert [(row.key, row.title, row.aim, row.met) for row in again] == [
        (row.key, row.title, row.aim, row.met) for row in report().rows
    ]
    assert again[0].others[1].missing == "not installed"


def test_a_line_has_ours_and_the_alternatives() -> None:
    lines = table(report().to_dict()).splitlines()
    assert lines[2] == (
        "| fresh sandbox | 6.00 ms | 5.50 - 6.50 | 6.90 | 3 | ≤ 8 ms | yes | python3 on the host 12.0 ms (2.0x faster)"
        "<br>bubblewrap: not installed<br>Jupyter kernel 600 ms (100x faster) |"
    )
    assert "| **no** |" in lines[3]


@pytest.mark.parametrize("document", [{}, {"format": 0, "rows": []}, {"format": 1, "rows": [{"key": "x"}]}])
def test_what_is_no_document_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ValidationFailed):
        report_of(document)


def test_the_documentation_quotes_the_kept_document() -> None:
    document = json.loads((ROOT / "benchmarks/latest.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert table(document) in page
    assert document["date"][:10] in page
    assert document["machine"]["cpu"] in page
