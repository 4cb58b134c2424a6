"""Checks that the files of a snapshot are what was written, each time before a machine goes on from them.

Reading them all takes about a second per GB. So a file that has not been touched since this process wrote it, or
checked it, is not read again: whoever writes to a file, replaces it or sets its times changes its inode's own time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from emberbox.errors import VmNotAvailable
from emberbox.machines.contract import FileState, Snapshot

_VERIFIED_KEPT = 256
"""Files."""


def state_of(path: Path) -> FileState:
    """Raises OSError."""
    info = path.stat()
    return FileState(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def states_of(directory: Path, skipped: Iterable[str] = ()) -> dict[str, FileState]:
    """Of every file in a directory; raises OSError."""
    return {path.name: state_of(path) for path in directory.iterdir() if path.name not in skipped}


def _check_digest(path: Path, digest: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    if found != digest:
        raise VmNotAvailable(
            f"{path.name} of snapshot {path.parent} is damaged.", remediation="Take a new one.", retryable=False
        )


def _unreadable(path: Path, exc: OSError) -> VmNotAvailable:
    return VmNotAvailable(f"Cannot read {path.name} of snapshot {path.parent}: {exc.strerror}.", retryable=False)


def verify_digests(snapshot: Snapshot) -> None:
    """Raises VmNotAvailable if a file is not what was written."""
    for name, digest in (snapshot.digests or {}).items():
        _check_digest(snapshot.directory / name, digest)


class Verifier:
    """Checks snapshots before they are used.

    A file that is as this process wrote it, or as it was when its digest was last found right, is good. Otherwise it is
    read, if there is a digest; if there is none, it was changed by somebody else, and nobody can tell how.

    Args:
        linked: the back end makes hard links to the files, which changes the time of the inode. It is left out, and a
            change that sets back the time of the last write is not found by it.
    """

    def __init__(self, *, linked: bool = False) -> None:
        self._linked = linked
        self._verified: dict[tuple[Path, str], FileState] = {}

    def verify(self, snapshot: Snapshot) -> None:
        """Blocks where files are read.

        Raises:
            VmNotAvailable: a file is not what was written, or is missing.
        """
        digests, written = snapshot.digests or {}, snapshot.written or {}
        for name in digests.keys() | written.keys():
            path = snapshot.directory / name
            try:
                state = self._known(state_of(path))
            except OSError as exc:
                raise _unreadable(path, exc) from exc
            if name in written and state == self._known(written[name]):
                continue
            digest = digests.get(name)
            if digest is None:
                raise VmNotAvailable(
                    f"{name} of snapshot {snapshot.directory} was changed after it had been written.",
                    remediation="Take a new one; nothing but Emberbox may touch these files.",
                    retryable=False,
                )
            if self._verified.get((path, digest)) != state:
                _check_digest(path, digest)
                if len(self._verified) >= _VERIFIED_KEPT:
                    self._verified.clear()
                self._verified[path, digest] = state  # of before it was read: who wrote meanwhile has changed it

    def _known(self, state: FileState) -> FileState:
        return state._replace(changed_ns=0) if self._linked else state
