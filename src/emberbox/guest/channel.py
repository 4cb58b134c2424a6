"""A stream of frames to a peer (the host, or a language kernel) that never blocks the loop."""

from __future__ import annotations

import os
from collections import deque

from .loop import READ, WRITE
from .protocol import FrameDecoder, ProtocolError, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Deque

    from .loop import Loop
    from .protocol import Header

READ_SIZE = 1 << 16
"""What a pipe holds; a larger buffer would only have to be mapped and unmapped each time."""
LAZY_SECONDS = 0.01
LAZY_BYTES = 4096
WRITE_CHUNKS = 64
BACKLOG_LIMIT = 4 << 20
"""Unsent bytes to the host above which the agent stops reading the output of programs."""


class Channel:
    """Frames over a pair of descriptors (which may be one socket), owned and closed by this object."""

    def __init__(
        self,
        loop: Loop,
        fd_in: int,
        fd_out: int,
        on_frame: Callable[[Header, bytes], None],
        on_close: Callable[[], None],
        *,
        padded: bool = False,
    ) -> None:
        self._loop = loop
        self._in = fd_in
        self._out = fd_out
        self._on_frame = on_frame
        self._on_close = on_close
        self._decoder = FrameDecoder(padded=padded)
        self._chunks: Deque[bytes] = deque()
        self._waiting = False
        self._reading = True
        self._quiet = False
        self._kept: Deque[bytes] = deque()
        self._lazy: int | None = None
        """A timer: all that is queued may wait for it."""
        self.backlog = 0
        self.closed = False
        for fd in {fd_in, fd_out}:
            os.set_blocking(fd, False)
        self._watch()

    def send(self, header: Header, payload: bytes = b"") -> None:
        """Queue a frame; it leaves with the next `flush`."""
        self.send_raw(encode(header, payload))

    def send_lazily(self, header: Header, payload: bytes = b"") -> None:
        """Queue a frame that may wait for those after it, but not for long: each write wakes the host."""
        timer, alone = self._lazy, not self._chunks
        self._lazy = None
        self.send(header, payload)
        if len(payload) > LAZY_BYTES or not self._chunks:
            self._loop.cancel(timer)
        elif timer is not None:
            self._lazy = timer
        elif alone:
            self._lazy = self._loop.later(LAZY_SECONDS, self._hurry)

    def _hurry(self) -> None:
        self._loop.cancel(self._lazy)
        self._lazy = None

    def send_raw(self, data: bytes) -> None:
        """Queue bytes for a peer that does not read frames."""
        if not self.closed:
            if self._lazy is not None:
                self._hurry()
            (self._kept if self._quiet else self._chunks).append(data)
            self.backlog += len(data)

    def flush(self) -> None:
        """Write what the peer takes now; the rest follows as soon as it takes more."""
        chunks = self._chunks
        if not chunks or self.closed or self._waiting or self._lazy is not None:
            return
        try:
            while chunks:
                self._drop(os.writev(self._out, [chunks[index] for index in range(min(len(chunks), WRITE_CHUNKS))]))
        except BlockingIOError:
            self._waiting = True
            self._watch()
        except OSError:
            self._end()

    def read_all(self) -> None:
        """Take in everything that the peer has sent so far."""
        while not self.closed and self._read():
            pass

    def hold(self, *, reading: bool) -> None:
        """Stop or resume taking frames from the peer."""
        if reading != self._reading and not self.closed:
            self._reading = reading
            self._watch()

    def quiet(self, *, quiet: bool) -> None:
        """Keep what is sent from now on (what is queued already still leaves), or let it go."""
        self._quiet = quiet
        if not quiet:
            self._chunks.extend(self._kept)
            self._kept.clear()

    def forget(self) -> None:
        """Drop what was kept."""
        self.backlog -= sum(map(len, self._kept))
        self._kept.clear()

    def close(self) -> None:
        """Close without telling the owner."""
        if not self.closed:
            self.closed = True
            self._hurry()
            for fd in {self._in, self._out}:
                self._loop.pause(fd)
                os.close(fd)
            self._chunks.clear()
            self._kept.clear()
            self.backlog = 0

    def _watch(self) -> None:
        wanted = {self._in: 0, self._out: 0}
        wanted[self._in] |= READ if self._reading else 0
        wanted[self._out] |= WRITE if self._waiting else 0
        for fd, events in wanted.items():
            if events:
                self._loop.watch(fd, events, self._on_ready)
            else:
                self._loop.pause(fd)

    def _on_ready(self, events: int) -> None:
        if events & WRITE and self._waiting:
            self._waiting = False
            self._watch()
            self.flush()
        if events & ~WRITE and not self.closed:
            self._read()

    def _read(self) -> bool:
        try:
            data = os.read(self._in, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._end()
            return False
        try:
            self._decoder.feed(data)
            while not self.closed:
                frame = self._decoder.next()
                if frame is None:
                    return True
                self._on_frame(*frame)
        except ProtocolError:
            self._end()
        return False

    def _drop(self, written: int) -> None:
        chunks = self._chunks
        self.backlog -= written
        while written:
            head = chunks.popleft()
            if len(head) > written:
                chunks.appendleft(head[written:])
                return
            written -= len(head)

    def _end(self) -> None:
        if not self.closed:
            self.close()
            self._on_close()
