"""What a snapshot of a QEMU machine consists of: `state` (of QEMU's devices), `base` (the memory that the machine was
started with, memory.py), `pages` (what it has changed in it) and `machine.json`, which says what else it depends on.
QEMU trusts these files, and so do we: their folder is private."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

from emberbox.machines.microvm.fingerprint import MicroVmFingerprint

STATE, PAGES, BASE = "state", "pages", "base"
LAYOUT = 1
"""Of the machine: which devices it has, and how they are connected (command.py)."""

Method = Literal["devices", "stream"]
"""What `state` is: that of the devices alone, or with the whole memory, where QEMU does not give the former."""


class Fingerprint(MicroVmFingerprint):
    """What a snapshot depends on, besides its files."""

    words: ClassVar[Mapping[str, str]] = {
        "layout": "was taken by another version of Emberbox",
        "qemu": "was taken by QEMU {theirs}, this is {ours}",
        "accel": "was taken of a machine by {theirs}, these run by {ours}",
        "processor": "was taken on another processor ({theirs}), this is {ours}",
        "disk": "was taken of another root disk than the one of its image",
        "kernel": "was taken of a machine with another kernel",
    }
    layout: int = LAYOUT
    qemu: str
    """Version: the format of the state is its own."""
    accel: str
    processor: str
    """Vendor and model: a guest must not find itself on another one, and an emulated one counts the host's ticks."""
    disk: str
    """SHA-256 of the root disk, of which the guest's kernel remembers a part."""
    kernel: str
    """SHA-256 of the kernel and its initramfs: QEMU keeps them in memory of its own."""
    args: str
    """The kernel's command line."""
    method: Method = "devices"
    base: str = ""
    """SHA-256 of the file `base`."""


@lru_cache(maxsize=8)
def _digest_of(path: Path, size: int, changed: int) -> str:
    del size, changed  # of the key
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(*paths: Path | None) -> str:
    """One for these files, read once for each of their versions; raises OSError."""
    whole = hashlib.sha256()
    for path in paths:
        if path is not None:
            info = path.stat()
            whole.update(_digest_of(path, info.st_size, info.st_mtime_ns).encode())
    return whole.hexdigest()
