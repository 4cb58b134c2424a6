"""Rows and reports that nobody measured."""

from __future__ import annotations

from emberbox.bench.measure import summarise
from emberbox.bench.results import BWRAP, JUPYTER, OURS, PYTHON, Aim, Figure, Report, Row


def figure(name: str, *samples: float) -> Figure:
    return Figure(name, summarise(samples))


MISSING = Figure(BWRAP, missing="not installed", remedy="apt-get install bubblewrap")
FRESH = Row(
    "fresh",
    "fresh sandbox",
    "ms",
    figure(OURS, 5.0, 6.0, 7.0),
    Aim(most=8, below=PYTHON),
    [figure(PYTHON, 12.0), MISSING, figure(JUPYTER, 600.0)],
)
RATE = Row("rate", "sandboxes a second", "1/s", figure(OURS, 10.0), Aim(least=15), [figure(PYTHON, 50.0)])
MEMORY = Row("memory", "memory of a sandbox", "MiB", figure(OURS, 40.0), Aim(most=30), [figure(PYTHON, 10.0)])
GROWTH = Row("growth-memory", "growth: our memory", "MiB", figure(OURS, 0.5), Aim(most=4, words="flat"), note="a note")
BOOT = Row("cold-boot", "cold boot", "ms", figure(OURS, 450.0))


def report(*rows: Row) -> Report:
    return Report(
        date="2026-11-23T10:00:00+00:00",
        quick=True,
        seconds=12.34,
        machine={"cpu": "A Processor", "cores": 2, "memory_gib": 8.0, "kernel": "Linux 6"},
        versions={"emberbox": "0.1.0", "runsc": "1"},
        settings={"template": "default"},
        rows=rows or (FRESH, RATE, MEMORY, GROWTH, BOOT),
    )
