"""The table and the picture, of figures that are made up."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from rich.console import Console

from bench_plot import draw, panels
from emberbox.bench.report import aim_text, comparison, number, show, with_unit
from emberbox.bench.results import Aim

from .made_up import BOOT, FRESH, GROWTH, MEMORY, RATE, report


def shown(width: int = 100) -> list[str]:
    out = io.StringIO()
    show(report(), Console(file=out, width=width))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def line_with(lines: list[str], words: str) -> str:
    (line,) = [line for line in lines if words in line]
    return " ".join(line.split())


def test_the_table_has_ours_with_spread_aim_and_mark_and_the_alternatives_below() -> None:
    lines = shown()
    assert line_with(lines, "fresh sandbox") == "✓ fresh sandbox 6.00 ms 5.50 - 6.50 6.90 3 ≤ 8 ms"
    assert line_with(lines, "Jupyter kernel") == "Jupyter kernel 600 ms 1 100x faster"
    assert line_with(lines, "sandboxes a second").startswith("✗ sandboxes a second 10.0 /s")
    assert line_with(lines, "cold boot") == "· cold boot 450 ms 1"
    assert all(len(line) <= 100 for line in lines)


def test_a_missing_alternative_says_what_to_install() -> None:
    text = " ".join(" ".join(shown()).split())
    assert "bubblewrap: not installed → apt-get install bubblewrap" in text


def test_below_the_table_stand_the_aims_the_machine_and_the_notes() -> None:
    text = "\n".join(shown(200))
    assert "2 of 4 aims met" in text
    assert "few samples (--quick)" in text
    assert "A Processor, 2 cores, 8.0 GiB, Linux 6" in text
    assert "growth: our memory: a note" in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, "0"), (0.0004, "0"), (0.42, "0.42"), (9.994, "9.99"), (9.996, "10.0"), (99.96, "100"), (61.54, "61.5"),
     (612.3, "612"), (12345.6, "12,346"), (-3.5, "-3.50")],
)  # fmt: skip
def test_numbers_have_about_three_digits(value: float, expected: str) -> None:
    assert number(value) == expected


def test_units_and_aims_in_words() -> None:
    assert (with_unit(15.23, "1/s"), with_unit(3.0, ""), with_unit(8.1, "ms")) == ("15.2 /s", "3.00", "8.10 ms")
    assert aim_text(Aim(most=2), "ms") == "≤ 2 ms"
    assert aim_text(Aim(least=15), "1/s") == "≥ 15 /s"
    assert aim_text(Aim(most=4, words="flat"), "MiB") == "flat"
    assert aim_text(None, "ms") == ""


@pytest.mark.parametrize(
    ("better", "unit", "expected"),
    [(2.0, "ms", "2.0x faster"), (0.2, "1/s", "5.0x slower"), (0.25, "MiB", "4.0x larger"), (3.0, "%", "3.0x better"),
     (1200.0, "s", "1,200x faster"), (1.04, "ms", "about the same"), (0.96, "ms", "about the same"), (None, "ms", "")],
)  # fmt: skip
def test_comparisons_in_words_of_the_unit(better: float | None, unit: str, expected: str) -> None:
    assert comparison(better, unit).plain == expected


def test_the_picture_has_an_axis_for_each_kind_of_unit_and_leaves_growth_out() -> None:
    drawn = [(panel.unit, [row.key for row in rows]) for panel, rows in panels(report())]
    assert drawn == [("ms", [FRESH.key, BOOT.key]), ("1/s", [RATE.key]), ("MiB", [MEMORY.key])]


def size_of_png(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_the_picture_grows_with_what_it_shows(tmp_path: Path) -> None:
    draw(report(), tmp_path / "all.png")
    draw(report(RATE), tmp_path / "one.png")
    all_width, all_height = size_of_png(tmp_path / "all.png")
    one_width, one_height = size_of_png(tmp_path / "one.png")
    assert all_width == one_width == 1500
    assert all_height > one_height > 150


def test_a_report_with_nothing_to_draw_is_a_picture_that_says_so(tmp_path: Path) -> None:
    draw(report(GROWTH), tmp_path / "none.png")
    assert size_of_png(tmp_path / "none.png")[0] == 1500
