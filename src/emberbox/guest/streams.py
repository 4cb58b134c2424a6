"""Output of user programs: read without blocking, capped, and cut between characters."""

from __future__ import annotations

import os

from .loop import READ
from .protocol import CHUNK_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .loop import Loop

READ_SIZE = 1 << 16
DRAIN_LIMIT = 1 << 20
"""No pipe of an unprivileged user holds more; a drain ends there, however fast somebody goes on writing."""
TAIL_SIZE = 8192


def incomplete_suffix(data: bytes) -> int:
    """How many bytes at the end of `data` are the beginning of a UTF-8 sequence that is not complete yet."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        need = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4 if byte & 0xF8 == 0xF0 else 1
        return back if need > back else 0
    return 0


class Capture:
    """Passes on the first `limit` bytes of a stream and remembers its last words."""

    def __init__(self, limit: int, emit: Callable[[bytes], None]) -> None:
        self._emit = emit
        self._left = limit
        self._held = b""
        self.truncated = False
        self.tail = b""

    def feed(self, data: bytes) -> None:
        """More output."""
        self.tail = (self.tail + data)[-TAIL_SIZE:]
        if self.truncated:
            return
        if self._held:
            data = self._held + data
            self._held = b""
        if len(data) > self._left:
            self.truncated = True
            data = data[: self._left]
            data = data[: len(data) - incomplete_suffix(data)]
        else:
            cut = incomplete_suffix(data)
            if cut:
                data, self._held = data[:-cut], data[-cut:]
        self._left -= len(data)
        if data:
            self._emit(data)

    def finish(self) -> None:
        """No more output: what was held back as half a character is all there is."""
        if self._held:
            self._emit(self._held)
            self._held = b""


class Pipe:
    """The reading end of the stdout or stderr of a program or kernel; whoever runs in it just now is the `capture`."""

    def __init__(self, loop: Loop, fd: int, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._on_end = on_end
        self.capture: Capture | None = None
        self.closed = False
        os.set_blocking(fd, False)
        loop.watch(fd, READ, self._on_ready)

    def hold(self, *, reading: bool) -> None:
        """Stop or resume reading, while the host is slow to take what was read."""
        if self.closed:
            return
        if reading:
            self._loop.watch(self._fd, READ, self._on_ready)
        else:
            self._loop.pause(self._fd)

    def drain(self) -> None:
        """Read what was written until now."""
        if self._loop.empty(self._fd):
            return
        self.drain_all()

    def drain_all(self) -> None:
        """Read what was written until this very moment, after this round began as well."""
        total = 0
        while not self.closed and total < DRAIN_LIMIT:
            size = self._read()
            if size < 0:
                return
            total += size

    def close(self) -> None:
        """Stop listening to this program."""
        if not self.closed:
            self.closed = True
            self._loop.pause(self._fd)
            os.close(self._fd)

    def _on_ready(self, _events: int) -> None:
        self._read()

    def _read(self) -> int:
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return -1
        if not data:
            self.close()
            self._on_end()
            return -1
        if self.capture is not None:
            self.capture.feed(data)
        return len(data)


assert READ_SIZE <= CHUNK_SIZE  # noqa: S101 - what is read at once is sent as one frame
