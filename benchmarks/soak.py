"""Runs sandboxes through their whole life again and again, and says whether anything of the engine grows.

    python benchmarks/soak.py --minutes 10

Each cycle creates a sandbox, runs code, takes a snapshot, changes files, takes them back, forks, rolls back and kills.
What the engine uses is looked at after each: resident memory and descriptors of this process, our processes on the
host, files below the run directory and their size. The first part of the time is for warming up; of the rest, the least
that was used in its first and in its last third are compared. Ends with 1 where something has grown by more than it
may: memory by what SQLite's cache of pages takes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import tempfile
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from emberbox import AsyncSandbox, Engine, load_settings
from emberbox.host.rundir import processes_of

_WARM_UP = 0.25
"""Of the time."""
_LEAST = 12
"""Cycles that are compared, however little time there is."""
_MAY_GROW = {"memory_kb": 4096, "descriptors": 0, "processes": 0, "files": 0, "disk_kb": 64}


@dataclass(frozen=True)
class Use:
    """What the engine uses at one moment."""

    memory_kb: int
    descriptors: int
    processes: int
    files: int
    disk_kb: int


def used(folder: Path) -> Use:
    """Look. `folder` is the run directory; the history, which is to grow, is elsewhere."""
    gc.collect()
    statm = Path("/proc/self/statm").read_text(encoding="utf-8").split()
    sizes = []
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.lstat(Path(parent, name)).st_blocks // 2)
            except OSError:
                continue  # gone meanwhile
    return Use(
        memory_kb=int(statm[1]) * os.sysconf("SC_PAGE_SIZE") // 1024,
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        processes=len(processes_of(f"{folder}/")),
        files=len(sizes),
        disk_kb=sum(sizes),
    )


async def cycle(engine: Engine, number: int) -> None:
    """One life."""
    async with await AsyncSandbox.create("minimal", engine=engine) as sandbox:
        await sandbox.run_code(f"x = {number}; open('f', 'w').write('old')")
        point = await sandbox.snapshot()
        await sandbox.run_code("open('f', 'w').write('new'); print('y' * 100_000)")
        await sandbox.rollback(point, paths=["f"])
        (child,) = await sandbox.fork(1)
        await child.kill()
        await sandbox.rollback(point)
        found = await sandbox.files.read("f"), (await sandbox.run_code("x")).text
        if found != ("old", str(number)):
            raise SystemExit(f"cycle {number} was taken back to {found}")


async def soak(minutes: float, folder: Path) -> list[Use]:
    """Go through lives for so long; what was used after each, once it was warm."""
    settings = load_settings(run_dir=folder / "run", state_dir=folder / "state", vm_execution={"enabled": True})
    found: list[Use] = []
    begin = time.monotonic()
    end = begin + minutes * 60
    async with Engine(settings) as engine:
        number = 0
        while time.monotonic() < end or len(found) < _LEAST:
            number += 1
            await cycle(engine, number)
            now = used(folder / "run")
            if time.monotonic() > begin + (end - begin) * _WARM_UP:
                found.append(now)
            print(f"{number:6} {time.monotonic() - begin:8.1f} s ", *(f"{v:10,}" for v in astuple(now)), flush=True)
    return found


def grown(found: list[Use]) -> dict[str, int]:
    """By how much each has grown: the least of the last third less that of the first. What is used now and then, by
    what is still on its way out, is in neither."""
    third = max(1, len(found) // 3)
    first, last = found[:third], found[-third:]
    return {
        field.name: min(getattr(use, field.name) for use in last) - min(getattr(use, field.name) for use in first)
        for field in fields(Use)
    }


def main() -> int:
    """Soak, and say how flat it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    minutes = parser.parse_args().minutes
    print("cycle       time  ", *(f"{field.name:>10}" for field in fields(Use)))
    with tempfile.TemporaryDirectory(prefix="ebsoak-", dir="/tmp") as folder:
        found = asyncio.run(soak(minutes, Path(folder)))
    growth = grown(found)
    for name, number in growth.items():
        print(f"{name:12} grew by {number:,} (may: {_MAY_GROW[name]:,})")
    return any(number > _MAY_GROW[name] for name, number in growth.items())


if __name__ == "__main__":
    sys.exit(main())
