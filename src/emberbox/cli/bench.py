"""`emberbox bench`: how fast it is here, beside plain alternatives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from emberbox.bench.results import Report
from emberbox.bench.rows import run_benchmark, select
from emberbox.cli.exits import Exit, run_async
from emberbox.cli.progress import build_progress
from emberbox.config import load_settings
from emberbox.engine import Engine
from emberbox.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What was asked for on the command line."""

    as_json: bool = False
    quick: bool = False
    only: Sequence[str] = ()
    output: Path | None = None
    template: str | None = None
    backend: str | None = None


def run_bench(options: BenchOptions) -> None:
    """The command; leaves the process. An aim that is not met is a result, not a failure."""
    run_async(lambda: _bench(options), as_json=options.as_json)


async def _bench(options: BenchOptions) -> int:
    wanted = select(options.only)
    _check_file(options.output)
    settings = load_settings() if options.backend is None else load_settings(backend=options.backend)
    console = Console(stderr=True)
    async with Engine(settings) as engine:
        await engine.list_sandboxes()  # chooses a back end, or says why there is none
        with build_progress("image", console) as progress:
            image = await engine.image(options.template, progress)
    with build_progress("bench", console) as progress:
        report = await run_benchmark(
            settings, image, wanted, template=options.template, quick=options.quick, on_progress=progress
        )
    _write(report, options)
    return int(Exit.SUCCESS)


def _check_file(path: Path | None) -> None:
    """Better before the measurement than after it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ConfigError(f"There is no folder for {path}.", remediation="Make it, or name another file.")


def _write(report: Report, options: BenchOptions) -> None:
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")
    if options.as_json:
        print(text)
        return
    from emberbox.bench.report import show

    show(report, Console(highlight=False))
