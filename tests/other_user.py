"""An ordinary user of the host, without rights, groups or even a name, and what can be shared with one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def become(uid: int) -> list[str]:
    """The beginning of a command that is run by this user, who needs no entry in the passwd file."""
    return [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={uid}",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "env",  # by the first exec, setpriv still has its capabilities
    ]


def share(source: Path, target: Path) -> None:
    """Make a second tree of the same files, with folders that anyone may enter."""
    shutil.copytree(source, target, symlinks=True, copy_function=link_or_copy)
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir() and not path.is_symlink())):
        folder.chmod(0o755)


def link_or_copy(source: str, target: str) -> None:
    """Share one file."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
