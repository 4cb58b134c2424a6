"""Uids of machines: no two engines of this host draw the same one at the same moment.

Whoever draws a uid takes a name among the abstract Unix sockets (unix(7)): that needs no folder which a service may
write to, and the kernel lets go of it when its holder dies. A machine that outlives its engine is seen among the host's
processes.
"""

from __future__ import annotations

import socket

_NAME = "\0emberbox-uid-{}"


class UidLocks:
    """Those that this engine holds."""

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}

    def take(self, uid: int) -> bool:
        """Lock one; False where somebody has it, this engine as well."""
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            holder.bind(_NAME.format(uid))
        except OSError:
            holder.close()
            return False
        self._held[uid] = holder
        return True

    def let_go(self, uid: int) -> None:
        """Harmless for one that is not held."""
        if (holder := self._held.pop(uid, None)) is not None:
            holder.close()

    def close(self) -> None:
        """Let go of all."""
        for uid in list(self._held):
            self.let_go(uid)
