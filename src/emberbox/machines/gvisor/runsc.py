"""Where runsc is: a setting, the PATH, or our private folder. `install` (same room) puts it into the latter."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from emberbox.config import Settings

PINNED_VERSION = "0.0~20240729.0"
"""The version that the figures and the tests are from (Debian bookworm-backports, trixie). Others work; `emberbox
doctor` names the difference."""


@dataclass(frozen=True, slots=True)
class Runsc:
    """A runsc program that answered `--version`."""

    program: Path
    version: str
    origin: str

    @property
    def pinned(self) -> bool:
        # Debian writes 0.0~20240729.0, the official release release-20240729.0
        return PINNED_VERSION.removeprefix("0.0~") in self.version


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
                [program, "--version"], capture_output=True, text=True, timeout=20, check=True, env={"PATH": "/usr/bin"}
            )
        except (OSError, subprocess.SubprocessError) as exc:
            problems.append(f"{program}: {exc}")
            continue
        version = answer.stdout.split("\n", 1)[0].removeprefix("runsc version").strip()
        return Runsc(program, version, origin), problems
    return None, problems
