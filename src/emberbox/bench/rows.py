"""Every row of the benchmark, in the order of the table, and one run of them."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from emberbox import __version__
from emberbox.bench import commands, cost, facts, judging, live, serving, starts
from emberbox.bench.alternatives import host_python
from emberbox.bench.lab import POOL, WORKERS, Lab, folders
from emberbox.bench.measure import Clock
from emberbox.bench.results import Report, Row
from emberbox.config import Settings
from emberbox.errors import ValidationFailed
from emberbox.images.store import Image
from emberbox.machines.gvisor.runsc import find_runsc

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What gives some rows. `weight`: seconds that a whole one takes, roughly, for the progress."""

    title: str
    keys: tuple[str, ...]
    measure: Callable[[Lab], Awaitable[Sequence[Row]]]
    weight: float


_GROWTH = tuple(f"growth-{what}" for what in ("memory", "descriptors", "processes", "disk", "sandbox"))
MEASUREMENTS = (
    Measurement("fresh sandboxes", ("lease", "fresh", "on-demand"), starts.fresh, 40),
    Measurement("cold boots", ("cold-boot",), starts.cold_boot, 10),
    Measurement("sustained load", ("rate",), starts.rate, 35),
    Measurement("commands", ("exec", "import", "import-client"), commands.commands, 30),
    Measurement("small executions", ("live",), live.execution, 8),
    Measurement("engine overhead", ("overhead", "overhead-no-history"), live.overhead, 8),
    Measurement("snapshot, rollback, fork", ("snapshot", "rollback", "fork"), live.checkpoints, 20),
    Measurement("many forks", ("forks",), live.forks, 45),
    Measurement("idle memory", ("memory",), cost.memory, 15),
    Measurement("idle CPU", ("cpu", "cpu-open", "cpu-pooled"), cost.cpu, 35),
    Measurement("extraction", ("extract", "extract-hostile"), judging.extraction, 8),
    Measurement("policy", ("policy",), judging.policy, 2),
    Measurement("redaction", ("redact",), judging.redaction, 5),
    Measurement("server", ("http", "http-rate", "stream"), serving.serving, 40),
    Measurement("growth", _GROWTH, cost.growth, 50),
)
ROW_KEYS = tuple(key for measurement in MEASUREMENTS for key in measurement.keys)


def select(words: Sequence[str]) -> frozenset[str]:
    """The keys that these words name: `fresh`, `growth` (all that begin with it), `lease,live`; all without any.

    Raises:
        ValidationFailed: a word names no row.
    """
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    if not names:
        return frozenset(ROW_KEYS)
    found: set[str] = set()
    for name in names:
        keys = {key for key in ROW_KEYS if key == name} or {key for key in ROW_KEYS if key.startswith(f"{name}-")}
        if not keys:
            raise ValidationFailed(
                f"There is no row {name!r:.80}.", remediation=f"The rows are: {', '.join(ROW_KEYS)}; or `growth`."
            )
        found |= keys
    return frozenset(found)


async def run_benchmark(
    settings: Settings,
    image: Image,
    wanted: frozenset[str],
    *,
    template: str | None = None,
    quick: bool = False,
    on_progress: OnProgress = lambda _, __: None,
) -> Report:
    """Measure these rows, one measurement after the other.

    Args:
        settings: those in force; the user's history and pool are left alone.
        image: the image of `template`.
        wanted: keys of rows.
        template: its name or path; None: the default.
        quick: few samples.
        on_progress: hears what is being measured and which part of all is done.

    Raises:
        VmNotAvailable: no back end is usable.
        ExecutionFailed: a sandbox gave a wrong answer.
    """
    clock, rows, began = Clock(), [], datetime.now(UTC)
    machine = facts.machine()
    chosen = [each for each in MEASUREMENTS if not wanted.isdisjoint(each.keys)]
    total, done = sum(each.weight for each in chosen), 0.0
    with folders(settings) as (work, short):
        lab = Lab(settings, image, quick, work, short, wanted, template=template)
        for measurement in chosen:

            def tick(part: float, at: float = done, one: Measurement = measurement) -> None:
                on_progress(one.title, (at + part * one.weight) / total)

            lab.tick = tick
            tick(0)
            lab.clear()
            rows += [row for row in await measurement.measure(lab) if row.key in wanted]
            done += measurement.weight
    return Report(
        date=began.isoformat(timespec="seconds"),
        quick=quick,
        seconds=clock.ms() / 1000,
        machine=machine,
        versions=_versions(settings, image),
        settings=_settings(lab),
        rows=rows,
    )


def _settings(lab: Lab) -> dict[str, Any]:
    return {
        "template": lab.image.name,
        "image": lab.image.key,
        "limits": lab.image.limits.model_dump(),
        "pool_size": POOL,
        "workers": WORKERS,
        "counts": dict(lab.counts),
    }


def _versions(settings: Settings, image: Image) -> dict[str, str]:
    runsc, _ = find_runsc(settings)
    found = {
        "emberbox": __version__,
        "back end": "" if settings.backend == "auto" else settings.backend,
        "python": platform.python_version(),
        "python in the sandbox": image.manifest.python_version,
        "runsc": runsc.version if runsc else "",
        "python3 on the host": _said([host_python(), "--version"]),
        "bubblewrap": _said(["bwrap", "--version"]),
    }
    for package in ("ipykernel", "jupyter_client"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return {name: version for name, version in found.items() if version}


def _said(argv: Sequence[str]) -> str:
    """The version that a program prints; empty without the program."""
    if shutil.which(argv[0]) is None:
        return ""
    done = subprocess.run(argv, capture_output=True, timeout=10, check=False)
    return done.stdout.decode("utf-8", "replace").strip().rpartition(" ")[2]
