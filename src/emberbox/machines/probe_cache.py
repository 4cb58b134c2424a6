"""Which back ends have been seen to work on this host.

A back end is usable when a copy of its template answered, not when a file exists. Virtual machines
take long to start for the first time, so this is not tried on every start: `emberbox setup --backend NAME` does, and
notes here what it was tried with. `auto` takes a virtual machine only where that is still what is there.
"""

from __future__ import annotations

from pathlib import Path

from emberbox._files import write_whole
from emberbox.config import Settings
from emberbox.machines.contract import MachineFactory


def _file(settings: Settings, backend: str) -> Path:
    return Path(settings.cache_dir) / "proven" / backend


def record_probe(settings: Settings, factory: MachineFactory) -> None:
    """Note that a copy of a machine of this factory has answered; raises OSError."""
    path = _file(settings, factory.backend)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, factory.probed, mode=0o644)


def is_proven(settings: Settings, factory: MachineFactory) -> bool:
    """Whether that was noted for just this version, processor and whatever else makes the factory's `probed`."""
    return was_probed(settings, factory.backend) == factory.probed


def was_probed(settings: Settings, backend: str) -> str | None:
    """What this back end was last seen to work with; None: it never was."""
    try:
        return _file(settings, backend).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
