"""The end of what Firecracker and the guest's kernel write: the only place where they explain a failed start."""

from __future__ import annotations

import asyncio
import contextlib
import os

from emberbox.guest.vm_init import READY

_KEPT = 16_384
_SHOWN = 1500


class SerialLog:
    """Reads the pipe on which Firecracker's log and the guest's console come, and keeps its end, whatever the guest
    writes."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._tail = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._readable)
        self.ready = asyncio.Event()
        """The guest's first process has said that it listens."""

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._fd, 65_536)
            if not data:
                self.close()
            self._tail = (self._tail + data)[-_KEPT:]
            if not self.ready.is_set() and READY.strip() in self._tail:
                self.ready.set()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def abandon(self) -> None:
        """Close without the loop, which is closed itself."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """-1 when the pipe has ended."""
        return self._fd

    def text(self) -> str:
        """The last lines, for a message; control characters of the guest are left out."""
        if self._fd >= 0:
            self._readable()
        text = self._tail[-_SHOWN:].decode("utf-8", "replace")
        lines = ("".join(c for c in line if c.isprintable()).strip() for line in text.splitlines())
        return " / ".join(line for line in lines if line)
