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
END_LIMIT = 1 << 20
"""So much of the end of a stream is kept, at most; of shorter limits a quarter."""
MARK_ROOM = 128
"""Where there is not more room than this, there is neither mark nor end."""
LATE_LIMIT = 4096
"""So much of what is written between executions is kept."""


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
    """Passes on a stream of which at most `limit` bytes are kept, and remembers its last words.

    What is longer keeps its beginning, which is passed on at once, and its end, which comes with `finish`, behind a
    mark that says how much is missing.
    """

    def __init__(self, limit: int, emit: Callable[[bytes], None]) -> None:
        self._emit = emit
        room = min(limit // 4, END_LIMIT)
        self._room = room if room > MARK_ROOM else 0
        """For the mark and the end."""
        self._left = limit - self._room
        self._held = b""
        self._end = bytearray()
        self._over = 0
        """How many bytes are neither passed on nor half a character."""
        self._begun = True
        """The beginning is not complete yet."""
        self.truncated = False
        self.tail = b""

    def feed(self, data: bytes) -> None:
        """More output."""
        self.tail = (self.tail + data)[-TAIL_SIZE:]
        if not self._begun:
            self._keep(data)
            return
        if self._held:
            data = self._held + data
            self._held = b""
        if len(data) > self._left:
            self._begun = False
            beginning = data[: self._left]
            beginning = beginning[: len(beginning) - incomplete_suffix(beginning)]
            self._room += self._left - len(beginning) if self._room else 0
            self._keep(data[len(beginning) :])
            data = beginning
        else:
            cut = incomplete_suffix(data)
            if cut:
                data, self._held = data[:-cut], data[-cut:]
        self._left -= len(data)
        if data:
            self._emit(data)

    def _keep(self, data: bytes) -> None:
        self._over += len(data)
        self.truncated = self._over > self._room
        self._end += data
        if len(self._end) > 2 * self._room + READ_SIZE:
            del self._end[: len(self._end) - self._room]

    def finish(self) -> None:
        """No more output: what was held back is all there is."""
        if self._held:
            self._emit(self._held)
            self._held = b""
        if self._over:
            rest = self._last() if self.truncated else bytes(self._end)
            for start in range(0, len(rest), READ_SIZE):
                self._emit(rest[start : start + READ_SIZE])
            self._over = 0
            self._end.clear()

    def _last(self) -> bytes:
        """The mark and the end."""
        if not self._room:
            return b""
        size = self._room - len(_mark(self._over - self._room))
        end = bytes(self._end[-size:])
        end = end[next((n for n in range(min(4, len(end))) if end[n] & 0xC0 != 0x80), 0) :]
        return _mark(self._over - len(end)) + end


def _mark(missing: int) -> bytes:
    return f"\n[... {missing:,} bytes left out ...]\n".encode()


class Pipe:
    """The reading end of the stdout or stderr of a program or kernel; whoever runs in it just now is the `capture`."""

    def __init__(self, loop: Loop, fd: int, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._on_end = on_end
        self.capture: Capture | None = None
        self.late: bytearray | None = None
        """What is written while there is no capture, where somebody wants to know."""
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

    def take_late(self) -> bytes:
        """What was written since the last capture, and begin anew."""
        late, self.late = self.late, bytearray()
        return bytes(late or b"")

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
        elif self.late is not None and len(self.late) < LATE_LIMIT:
            self.late += data[: LATE_LIMIT - len(self.late)]
        return len(data)


assert READ_SIZE <= CHUNK_SIZE  # noqa: S101 - what is read at once is sent as one frame
