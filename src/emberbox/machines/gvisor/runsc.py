"""Where runsc is: a setting, the PATH, or our private folder. `install` (same room) puts it into the latter."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from emberbox.config import Settings

PINNED_VERSION = "0.0~20240729.0"
"""The version that the figures and the tests are from (Debian bookworm-backports, trixie). Later ones may work, and
`emberbox doctor` names the difference; earlier ones lack what is needed (bookworm's own has no systrap platform)."""


@dataclass(frozen=True, slots=True)
class Runsc:
    """A runsc program that answered `--version`."""

    program: Path
    version: str
    origin: str

    @property
    def pinned(self) -> bool:
        return self.date == _release_date(PINNED_VERSION)

    @property
    def date(self) -> int:
        return _release_date(self.version)


def _release_date(version: str) -> int:
    """20240729 of Debian's `0.0~20240729.0` and of the official `release-20240729.0`; 0 where there is none."""
    match = re.search(r"20\d{6}", version)
    return int(match[0]) if match else 0


def private_runsc(settings: Settings) -> Path:
    """The place of a runsc that Emberbox itself installed."""
    return settings.cache_dir / "bin" / "runsc"


def candidates(settings: Settings) -> list[tuple[Path, str]]:
    """Places to look, best first, each with a word on where it comes from."""
    if settings.runsc is not None:
        return [(settings.runsc, "settings")]
    found = shutil.which("runsc")
    on_path = [(Path(found), "PATH")] if found else []
    return [*on_path, (private_runsc(settings), "private folder")]


def find_runsc(settings: Settings) -> tuple[Runsc | None, list[str]]:
    """The first runsc that works, and why the ones before it (or all) do not."""
    problems: list[str] = []
    for program, origin in candidates(settings):
        if not program.is_file():
            problems.append(f"{program}: not there")
            continue
        if not os.access(program, os.X_OK):
            problems.append(f"{program}: not executable")
            continue
        try:
            answer = subprocess.run(
                [program, "--version"], capture_output=True, timeout=20, check=True, env={"PATH": "/usr/bin"}
            )
        except (OSError, subprocess.SubprocessError) as exc:
            problems.append(f"{program}: {exc}")
            continue
        version = answer.stdout.decode("utf-8", "replace").split("\n", 1)[0].removeprefix("runsc version").strip()
        runsc = Runsc(program, version, origin)
        if runsc.date >= _release_date(PINNED_VERSION):
            return runsc, problems
        problems.append(f"{program}: version {version or 'unknown'} is older than {PINNED_VERSION}")
    return None, problems
