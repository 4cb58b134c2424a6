"""The JSON document of `emberbox bench` as what it was made of."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emberbox.bench.measure import Summary
from emberbox.bench.results import FORMAT, Aim, Figure, Report, Row
from emberbox.errors import ValidationFailed

_NUMBERS = ("n", "median", "p25", "p75", "p95", "min", "max")


def report_of(document: Mapping[str, Any]) -> Report:
    """The report of a document; raises ValidationFailed if it is not one of ours."""
    try:
        if document["format"] != FORMAT:
            raise ValidationFailed(f"Format {document['format']!r:.20} is not known.", remediation="Measure again.")
        about = {name: document[name] for name in ("date", "quick", "seconds", "machine", "versions", "settings")}
        return Report(**about, rows=[_row(row) for row in document["rows"]])
    except (KeyError, TypeError) as exc:
        raise ValidationFailed(
            f"This is no document of `emberbox bench`: {exc!r}.", remediation="Make one with --output FILE."
        ) from exc


def read(path: str) -> dict[str, Any]:
    """The document in a file; ends the program where there is none."""
    try:
        document: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        sys.exit(f"{path}: {exc}. `emberbox bench --output FILE` makes one.")
    return document


def _row(row: Mapping[str, Any]) -> Row:
    aim = Aim(**row["aim"]) if row["aim"] else None
    others = [_figure(other) for other in row["alternatives"]]
    return Row(row["key"], row["title"], row["unit"], _figure(row["emberbox"]), aim, others, row["note"], row["facts"])


def _figure(figure: Mapping[str, Any]) -> Figure:
    if "median" not in figure:
        return Figure(figure["name"], missing=figure["missing"], remedy=figure["remedy"])
    return Figure(figure["name"], Summary(*(figure[name] for name in _NUMBERS)))
