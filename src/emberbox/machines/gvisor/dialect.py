"""What a runsc takes: methods and fields of its control socket, flags. They change with releases, and nothing lists
them: they are constants of the program, so its file is searched for them.

Read from the sources of both ends of what is supported (runsc/boot/controller.go, runsc/boot/network.go and
pkg/sentry/control/state.go): Debian's 20240729 and the 20260905 of `build`.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_NETWORK = ("containerManager.SetNetworkArgs", "Network.CreateLinksAndRoutes")
"""Give a sandbox that is restored its loopback device: the newer name first."""
_NEEDED = ("containerManager.Checkpoint", "containerManager.Restore", "have_pages_file")
_BACKGROUND = "containerManager.WaitRestore"
_OPTIONAL = {
    _BACKGROUND: "restore in the background",
    "containerManager.FSSave": "file system checkpoints",
    "allow-connected-on-save": "connections kept over a checkpoint",
}


_FLAGS = {"gofer-network-namespace": "--gofer-network-namespace=new"}
"""Flags that only some releases have. Without this one the first gofer of each `--root` binds its network namespace to
a file there, a mount on the host that nobody removes (runsc/container/null_netns.go)."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One runsc."""

    network: str | None = None
    """The method that describes the network of a restored sandbox; None: the socket cannot be used."""
    background: bool = False
    """A restored sandbox runs before all of its memory is loaded."""
    flags: tuple[str, ...] = ()
    """Flags that it needs beside those that every release takes."""
    has: tuple[str, ...] = ()
    """What it can do that not every release can, in words."""
    lacks: tuple[str, ...] = ()


def dialect_of(program: Path) -> Dialect:
    """Search a runsc program (some 30 ms, once for each file). One that cannot be read has no control socket."""
    try:
        at = program.stat()
        return _searched(program, at.st_mtime_ns, at.st_size)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return Dialect(lacks=tuple(_OPTIONAL.values()))


@lru_cache(maxsize=16)
def _searched(program: Path, _mtime: int, _size: int) -> Dialect:
    with program.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        found = {name for name in (*_NETWORK, *_NEEDED, *_OPTIONAL, *_FLAGS) if text.find(name.encode()) >= 0}
    network = next((name for name in _NETWORK if name in found), None)
    if not found.issuperset(_NEEDED):
        network = None
    has = tuple(words for name, words in _OPTIONAL.items() if name in found)
    lacks = tuple(words for name, words in _OPTIONAL.items() if name not in found)
    flags = tuple(flag for name, flag in _FLAGS.items() if name in found)
    return Dialect(network, _BACKGROUND in found, flags, has, lacks)
