"""Checks that the files of a snapshot are what was written."""

from __future__ import annotations

import contextlib
import hashlib

from emberbox.errors import VmNotAvailable
from emberbox.machines.base import Snapshot

_VERIFIED_KEPT = 64


def verify_digests(snapshot: Snapshot) -> None:
    """Raises VmNotAvailable if a file is not what was written."""
    for name, digest in (snapshot.digests or {}).items():
        try:
            with (snapshot.directory / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as exc:
            raise VmNotAvailable(
                f"Cannot read {name} of snapshot {snapshot.directory}: {exc.strerror}.", retryable=False
            ) from exc
        if found != digest:
            raise VmNotAvailable(
                f"{name} of snapshot {snapshot.directory} is damaged.", remediation="Take a new one.", retryable=False
            )


class Verifier:
    """Checks the digests of snapshots, once for files that did not change since.

    Args:
        linked: hard links to the files are made, which changes the time of the last change of the inode (ctime in
            stat(2)); it would say more than the time of the last write does, because nobody can set it back.
    """

    def __init__(self, *, linked: bool = False) -> None:
        self._linked = linked
        self._verified: set[tuple[object, ...]] = set()

    def verify(self, snapshot: Snapshot) -> None:
        """Raises VmNotAvailable: a file is not what was written."""
        if snapshot.digests and (state := self._state_of(snapshot)) not in self._verified:
            verify_digests(snapshot)
            if len(self._verified) >= _VERIFIED_KEPT:
                self._verified.clear()
            self._verified.add(state)

    def _state_of(self, snapshot: Snapshot) -> tuple[object, ...]:
        """What changes when somebody writes to the files of a snapshot."""
        found: list[object] = []
        for name, digest in (snapshot.digests or {}).items():
            with contextlib.suppress(OSError):  # `verify_digests` says what is wrong
                info = (snapshot.directory / name).stat()
                changed = 0 if self._linked else info.st_ctime_ns
                found.append((name, digest, info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, changed))
        return tuple(found)
