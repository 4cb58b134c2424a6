"""Aims, ratios and the JSON document."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from emberbox.bench.results import BWRAP, OURS, PYTHON, Aim, Figure
from emberbox.bench.rows import ROW_KEYS, select
from emberbox.errors import ValidationFailed

from .made_up import BOOT, FRESH, MEMORY, MISSING, RATE, figure, report


def test_aims_are_met_at_their_bound() -> None:
    assert Aim(most=8).met(8.0, {})
    assert not Aim(most=8).met(8.01, {})
    assert Aim(least=15).met(15.0, {})
    assert not Aim(least=15).met(14.9, {})


def test_an_aim_below_another_figure_counts_only_if_that_was_measured() -> None:
    aim = Aim(most=8, below=PYTHON)
    assert aim.met(6.0, {PYTHON: 12.0})
    assert not aim.met(6.0, {PYTHON: 5.0})
    assert not aim.met(6.0, {PYTHON: 6.0})
    assert aim.met(6.0, {})
    assert not aim.met(9.0, {PYTHON: 12.0})


def test_a_row_without_aim_or_figure_is_neither_met_nor_not() -> None:
    assert (FRESH.met, RATE.met, BOOT.met) == (True, False, None)
    assert replace(FRESH, ours=Figure(OURS, missing="no")).met is None


@pytest.mark.parametrize(
    ("row", "expected"), [(FRESH, 2.0), (RATE, 0.2), (MEMORY, 0.25)], ids=["faster", "fewer", "larger"]
)
def test_the_ratio_says_how_many_times_better_we_are(row: object, expected: float) -> None:
    assert isinstance(row, type(FRESH))
    assert row.better(row.others[0]) == pytest.approx(expected)


def test_there_is_no_ratio_to_what_is_missing_or_to_nothing() -> None:
    assert FRESH.better(MISSING) is None
    assert replace(FRESH, ours=figure(OURS, 0.0)).better(FRESH.others[0]) is None


def test_the_document_has_what_a_script_needs() -> None:
    document = json.loads(json.dumps(report().to_dict()))
    assert set(document) == {"format", "date", "quick", "seconds", "machine", "versions", "settings", "rows"}
    fresh, rate, _, growth, boot = document["rows"]
    assert fresh["emberbox"] == {
        "name": OURS, "n": 3, "median": 6.0, "p25": 5.5, "p75": 6.5, "p95": 6.9, "min": 5.0, "max": 7.0,
    }  # fmt: skip
    assert fresh["aim"] == {"most": 8, "least": None, "below": PYTHON, "words": ""}
    assert (fresh["met"], rate["met"], boot["met"], boot["aim"]) == (True, False, None, None)
    python, missing, _ = fresh["alternatives"]
    assert (python["name"], python["median"], python["times_better"]) == (PYTHON, 12.0, 2.0)
    assert missing == {
        "name": BWRAP, "missing": "not installed", "remedy": "apt-get install bubblewrap", "times_better": None,
    }  # fmt: skip
    assert growth["note"] == "a note"


def test_rows_are_chosen_by_key_by_the_begin_of_keys_and_by_commas() -> None:
    assert select([]) == frozenset(ROW_KEYS)
    assert select(["fresh, live", "rate"]) == {"fresh", "live", "rate"}
    assert select(["growth"]) == {key for key in ROW_KEYS if key.startswith("growth-")}
    assert select(["overhead"]) == {"overhead"}
    assert select(["fork"]) == {"fork"}
    with pytest.raises(ValidationFailed, match="no row 'nonsense'") as caught:
        select(["fresh", "nonsense"])
    assert "on-demand" in caught.value.remediation
