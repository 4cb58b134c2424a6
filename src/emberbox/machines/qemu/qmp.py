"""QEMU's control channel: JSON lines over a socket that QEMU inherited, each call with a deadline.

Commands and events: docs/interop/qmp-spec.txt and qapi/ of QEMU. What comes is bounded: a guest that has taken QEMU
over may write here.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from emberbox.errors import VmConnectionError, VmNotAvailable

CALL_SECONDS = 20.0
_MAX_LINE = 1 << 20
_MAX_EVENTS = 100
_MOST_AT_ONCE, _MOST_A_SECOND = 4 << 20, 64 << 10
"""Bytes that QEMU may write at once, and on average: events of a machine are some hundred bytes a second."""


class QmpError(VmNotAvailable):
    """QEMU refused a command."""


class Qmp:
    """One QEMU. Made on the running loop; owns the socket.

    Args:
        stream: of which QEMU has the other end.
        number: of the first call: answers to others are passed over.
        on_broken: called once, when the channel is given up because of what came on it, or of a command of which QEMU
            has taken a part only.
    """

    def __init__(
        self, stream: socket.socket, number: int = 0, on_broken: Callable[[str], None] = lambda _: None
    ) -> None:
        stream.setblocking(False)
        self._stream = stream
        self._number = number
        self._on_broken = on_broken
        self._buffer = b""
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._watchers: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._loop = asyncio.get_running_loop()
        self._greeted: asyncio.Future[None] = self._loop.create_future()
        self._ended: str | None = None
        self._sending = asyncio.Lock()
        self._left, self._left_at = float(_MOST_AT_ONCE), self._loop.time()
        self._loop.add_reader(stream.fileno(), self._readable)

    def fileno(self) -> int:
        return self._stream.fileno()

    async def begin(self, seconds: float) -> None:
        """Wait for QEMU's greeting and switch its commands on; raises VmConnectionError, TimeoutError, QmpError."""
        async with asyncio.timeout(seconds):
            await asyncio.shield(self._greeted)
        await self.call("qmp_capabilities")
        await self.call("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])

    async def interrupt(self) -> None:
        """End a command that somebody before us may have sent in part: its parser begins anew after such a byte."""
        await self._loop.sock_sendall(self._stream, b"\xff\n")

    async def call(self, command: str, *, fds: Sequence[int] = (), seconds: float = CALL_SECONDS, **fields: Any) -> Any:
        """One command; `fds` travel beside it.

        Raises:
            QmpError: QEMU refused, or did not answer in time.
            VmConnectionError: QEMU is gone.
        """
        if self._ended is not None:
            raise VmConnectionError(self._ended)
        self._number += 1
        number = self._number
        words: dict[str, Any] = {"execute": command, "id": number}
        if fields:
            words["arguments"] = {name.replace("_", "-"): value for name, value in fields.items()}
        line = json.dumps(words).encode() + b"\n"
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._calls[number] = answer
        try:
            async with asyncio.timeout(seconds):
                await self._send(line, fds)
                return await answer
        except TimeoutError as exc:
            raise QmpError(f"QEMU did not answer {command!r} within {seconds:g} s.", retryable=True) from exc
        except OSError as exc:
            raise VmConnectionError(f"QEMU cannot be told {command!r}: {exc.strerror}.") from exc
        finally:
            del self._calls[number]

    async def _send(self, line: bytes, fds: Sequence[int]) -> None:
        async with self._sending:
            if self._ended is not None:
                raise VmConnectionError(self._ended)
            try:
                if fds:
                    socket.send_fds(self._stream, [line[:1]], list(fds))
                    line = line[1:]
                await self._loop.sock_sendall(self._stream, line)
            except BaseException:  # the next command would be taken for the rest of this one
                self._break("QEMU takes no commands: one was sent in part.")
                raise

    @contextmanager
    def watch(self, event: str) -> Iterator[asyncio.Queue[dict[str, Any]]]:
        """Collect the data of one kind of event."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_MAX_EVENTS)
        self._watchers[event] = queue
        try:
            yield queue
        finally:
            del self._watchers[event]

    def _readable(self) -> None:
        try:
            data = self._stream.recv(65_536)
        except BlockingIOError:
            return
        except OSError as exc:
            self._end(f"QEMU's control channel broke: {exc.strerror}.")
            return
        if not data:
            self._end("QEMU closed its control channel.")
            return
        if not self._allowed(len(data)):
            self._break("QEMU writes far more than it was asked for.")
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _MAX_LINE:
            self._break("QEMU writes an answer without an end.")
            return
        for line in lines:
            if self._ended is None:
                self._take(line)

    def _allowed(self, count: int) -> bool:
        """Whether QEMU may write so many bytes now."""
        now = self._loop.time()
        self._left = min(_MOST_AT_ONCE, self._left + (now - self._left_at) * _MOST_A_SECOND) - count
        self._left_at = now
        return self._left >= 0

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return  # the rest of something that was for another
        except RecursionError:
            self._break("QEMU writes what no QEMU writes.")
            return
        if not isinstance(message, dict):
            return
        if "QMP" in message and not self._greeted.done():
            self._greeted.set_result(None)
        event = message.get("event")
        queue = self._watchers.get(event) if isinstance(event, str) else None
        data = message.get("data")
        if queue is not None and not queue.full():
            queue.put_nowait(data if isinstance(data, dict) else {})
        number = message.get("id")
        answer = self._calls.get(number) if isinstance(number, int) else None
        if answer is not None and not answer.done():
            error = message.get("error")
            if error is None:
                answer.set_result(message.get("return"))
            else:
                words = error.get("desc") if isinstance(error, dict) else None
                said = "".join(c for c in words[:500] if c.isprintable()) if isinstance(words, str) else "no reason"
                answer.set_exception(QmpError(f"QEMU refused: {said}."))

    def _end(self, why: str) -> None:
        if self._ended is None:
            self._ended = why
            self._loop.remove_reader(self._stream.fileno())
            self._loop.remove_writer(self._stream.fileno())
            for waiting in [self._greeted, *self._calls.values()]:
                if not waiting.done():
                    waiting.set_exception(VmConnectionError(why))
            if self._greeted.done() and not self._greeted.cancelled():
                self._greeted.exception()  # nobody waiting for it is no leak

    def _break(self, why: str) -> None:
        if self._ended is None:
            self._end(why)
            self._on_broken(why)

    def close(self) -> None:
        self._end("The machine was ended.")
        self._stream.close()

    def abandon(self) -> None:
        """Close without the loop, which is closed itself."""
        self._stream.close()
