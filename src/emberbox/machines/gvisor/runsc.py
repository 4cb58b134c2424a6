"""Where runsc is: a setting, what `emberbox setup --runsc` chose, the PATH, or our private folder. `install` (same
room) puts it there."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from emberbox.config import Settings
from emberbox.errors import VmNotAvailable
from emberbox.host.programs import version_text

PINNED_VERSION = "0.0~20240729.0"
"""Debian's (bookworm-backports, trixie): the oldest that is supported. Earlier ones lack what is needed (bookworm's
own has no systrap platform)."""
_TESTED = (20240729, 20260905)
"""Days of the releases that the tests run with: Debian's, and the one that `build` makes."""
_OLD_DAYS = 365


@dataclass(frozen=True, slots=True)
class Runsc:
    """A runsc program that answered `--version`."""

    program: Path
    version: str
    origin: str

    @property
    def date(self) -> int:
        """The day of the release, as 20240729; 0 where the version names none."""
        return _release_date(self.version)

    def remarks(self, today: dt.date | None = None) -> list[str]:
        """What an operator should know of this version."""
        found = []
        if self.date not in _TESTED:
            known = " and ".join(map(str, _TESTED))
            found.append(f"Emberbox is tested with runsc of {known}; this is {self.version}")
        days = _age_days(self.date, today or dt.datetime.now(dt.UTC).date())
        if days > _OLD_DAYS:
            found.append(
                f"runsc {self.version} is {days // 30} months old: `emberbox setup --runsc newest` gets a newer one"
            )
        return found


def _age_days(day: int, today: dt.date) -> int:
    try:
        return (today - dt.date(day // 10000, day // 100 % 100, day % 100)).days
    except ValueError:
        return 0


def _release_date(version: str) -> int:
    """20240729 of Debian's `0.0~20240729.0` and of the official `release-20240729.0`; 0 where there is none."""
    match = re.search(r"20\d{6}", version)
    return int(match[0]) if match else 0


def private_runsc(settings: Settings) -> Path:
    """The place of a runsc that Emberbox itself installed."""
    return settings.cache_dir / "bin" / "runsc"


def digest_of(program: Path) -> str:
    """SHA-256 of a program, in hex."""
    with program.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def chosen_runsc(settings: Settings) -> Path:
    """The place of the runsc that `emberbox setup --runsc` chose, where it did."""
    return settings.cache_dir / "bin" / "runsc-chosen"


def candidates(settings: Settings) -> list[tuple[Path, str]]:
    """Places to look, best first, each with a word on where it comes from."""
    if settings.runsc is not None:
        return [(settings.runsc, "settings")]
    found = shutil.which("runsc")
    on_path = [(Path(found), "PATH")] if found else []
    chosen = chosen_runsc(settings)
    first = [(chosen, "emberbox setup --runsc")] if chosen.is_symlink() else []
    return [*first, *on_path, (private_runsc(settings), "private folder")]


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
            return ask(program, origin), problems
        except VmNotAvailable as exc:
            problems.append(exc.message)
    return None, problems


def ask(program: Path, origin: str) -> Runsc:
    """Ask a program for its version; links to it are followed once, so that another choice changes nothing of a running
    engine. Raises VmNotAvailable: it does not answer, or is too old."""
    try:
        answer = version_text(program)
    except OSError as exc:
        raise VmNotAvailable(f"{program}: {exc.strerror or exc}") from exc
    except subprocess.SubprocessError as exc:
        raise VmNotAvailable(f"{program}: {exc}") from exc
    version = answer.split("\n", 1)[0].removeprefix("runsc version").strip()
    runsc = Runsc(program.resolve(), version, origin)
    if runsc.date == 0:
        raise VmNotAvailable(f"{program}: version {version or 'unknown'} names no release of gVisor")
    if runsc.date < _release_date(PINNED_VERSION):
        raise VmNotAvailable(f"{program}: version {version} is older than {PINNED_VERSION}")
    return runsc
