"""The end of what a machine's programs write: the only place where they explain a failed start."""

from __future__ import annotations

import asyncio
import contextlib
import os

_KEPT = 8192


class OutputTail:
    """Reads a pipe, and keeps its end, whatever is written to it. Made on the running loop; owns the descriptor."""

    def __init__(self, fd: int, kept: int = _KEPT) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._kept = kept
        self._tail = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._readable)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._fd, 65_536)
            if not data:
                self.close()
            self._tail = (self._tail + data)[-self._kept :]

    @property
    def open(self) -> bool:
        """There may be more."""
        return self._fd >= 0

    def fileno(self) -> int:
        """-1 when the pipe has ended."""
        return self._fd

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

    def text(self) -> str:
        """What came so far, for a message."""
        if self._fd >= 0:
            self._readable()
        return self._tail.decode("utf-8", "replace").strip()
