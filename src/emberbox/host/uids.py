"""Uids of machines: no two engines of this host draw the same one at the same moment.

Whoever draws a uid locks a file of its number. The kernel lets go of the lock when its holder dies; a machine that
outlives it is seen among the processes of the host.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

PLACE = Path("/run/emberbox-uids")


class UidLocks:
    """Those that this engine holds. Where there is no such folder to be had, nothing is locked.

    Args:
        place: the folder; the same for all engines of a host.
    """

    def __init__(self, place: Path = PLACE) -> None:
        self._place = place
        self._held: dict[int, int] = {}

    def __contains__(self, uid: int) -> bool:
        return uid in self._held

    def take(self, uid: int) -> bool:
        """Lock one; False where somebody has it."""
        if uid in self._held:
            return False
        try:
            self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._place / str(uid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:  # no root, or nothing may be written there
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._is_at(fd, uid):
                raise OSError(f"the file of {uid} was removed")  # noqa: TRY301 (as one that is locked)
        except OSError:
            os.close(fd)
            return False
        self._held[uid] = fd
        return True

    def _is_at(self, fd: int, uid: int) -> bool:
        """The file was not removed by one who let go of it between our opening and locking it; raises OSError."""
        there, ours = (self._place / str(uid)).stat(), os.fstat(fd)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def let_go(self, uid: int) -> None:
        """Harmless for one that is not held."""
        fd = self._held.pop(uid, -1)
        if fd >= 0:
            with contextlib.suppress(OSError):
                if self._is_at(fd, uid):
                    (self._place / str(uid)).unlink()
            os.close(fd)

    def close(self) -> None:
        """Let go of all."""
        for uid in list(self._held):
            self.let_go(uid)
