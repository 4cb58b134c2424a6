"""The channel to a guest agent: framed, bounded, many requests at once, over a pair of pipe descriptors.

Nothing that arrives is trusted. A frame that breaks the protocol, an answer to a request that was never sent, or more
waiting events than a request may have, closes the channel with the reason; the owner then kills the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from emberbox._text import check_texts, printable
from emberbox.errors import ExecutionFailed, ExecutionTimeout, GuestFileError, SessionNotFound, VmConnectionError
from emberbox.guest.protocol import (
    FINAL_EVENTS,
    MAX_HEADER,
    MAX_PAYLOAD,
    PAD,
    PREFIX,
    FrameDecoder,
    Header,
    ProtocolError,
    encode,
)

Event = tuple[Header, bytes]

_READ_SIZE = 1 << 16
"""What a pipe holds; a larger buffer would only have to be mapped and unmapped each time."""
_MAX_WAITING_BYTES = 256 << 20
"""Bytes of events that may wait for one request's reader. Output is capped by the request itself far below this; a
guest that sends more than it was asked for is broken or hostile."""
_MAX_WRITE_BUFFER = 16 << 20
_HEADER_WEIGHT = 2000
_CHECKED_BYTES = 2048
"""A frame that a pipe does not take at once may be cut, if this process dies; what comes next must not pass for its
rest. Those with a payload and a header that are shorter are whole (pipe(7): PIPE_BUF)."""
_LONGEST_FIELD = 1000
"""Of the header of an event that is not the last one; there may be many of those, waiting."""


_NAMES = frozenset({"path", "to", "target"})
"""Fields that name files: any bytes but NUL are a name, and those that are not UTF-8 are halves of surrogate pairs."""


def _encoded(header: Header, payload: bytes) -> bytes:
    length = sum(len(value) for value in header.values() if isinstance(value, str))
    if length > MAX_HEADER or len(payload) > MAX_PAYLOAD:  # it takes a moment to write, and is refused then
        raise ProtocolError(f"frame too large: header {length} characters, payload {len(payload)} bytes")
    try:
        return encode(header, payload, errors="strict")
    except UnicodeEncodeError:
        texts = {name: value for name, value in header.items() if name not in _NAMES}
        check_texts(**{name: json.dumps(value, ensure_ascii=False) for name, value in texts.items()})
        return encode(header, payload)


def _is_long(value: object) -> bool:
    return isinstance(value, dict | list) or (isinstance(value, str) and len(value) > _LONGEST_FIELD)


class _Request:
    """Events of one request, waiting for their reader."""

    __slots__ = ("answered", "events", "failure", "ready", "sent", "size")

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.size = 0
        self.sent = self.answered = False
        self.failure: VmConnectionError | None = None
        self.ready = asyncio.Event()

    def put(self, event: Event) -> None:
        self.events.append(event)
        self.answered = self.answered or event[0]["ev"] in FINAL_EVENTS
        self.size += len(event[1]) + _HEADER_WEIGHT
        self.ready.set()

    def fail(self, error: VmConnectionError) -> None:
        self.failure = error
        self.ready.set()

    async def get(self) -> Event:
        while not self.events:
            if self.failure is not None:
                raise self.failure
            self.ready.clear()
            await self.ready.wait()
        event = self.events.popleft()
        self.size -= len(event[1]) + _HEADER_WEIGHT
        return event


class Channel:
    """One agent. Made on the running loop; owns both descriptors and closes them.

    Args:
        read_fd: the agent's answers.
        write_fd: our requests.
        on_broken: called once, when the channel ends for any reason but `close()`.
    """

    def __init__(self, read_fd: int, write_fd: int, on_broken: Callable[[str], None]) -> None:
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._read_fd, self._write_fd = read_fd, write_fd
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._requests: dict[int, _Request] = {}
        self._abandoned: dict[int, asyncio.Event] = {}
        """Requests that nobody waits for any more, and whether their final event has come."""
        self._next_id = 0
        self._hunted: bytes | None = None
        self._unmatched = bytearray()
        self._out: deque[memoryview] = deque()
        self._out_size = 0
        self._drained = asyncio.Event()
        self._drained.set()
        self._gate = asyncio.Event()
        self._gate.set()
        self._closed: str | None = None
        self._broken_by: str | None = None
        self.before_send: Callable[[], None] | None = None
        """Called once, before the next request leaves."""
        self.hello: asyncio.Future[Header] = self._loop.create_future()
        self._loop.add_reader(read_fd, self._readable)

    def resync(self, number: int, *, pad: bool = False) -> None:
        """Begin after this number with an agent that was somebody else's: what comes before the answer to the first
        request may be the rest of anything, and is dropped. Nothing is under way.

        `pad`: what was sent to it last may have been cut anywhere, and is ended.
        """
        self._next_id = number
        self._hunted = encode({"id": number + 1, "ev": "done"})
        self._unmatched.clear()
        if pad:
            padding = bytes([PAD]) * (PREFIX.size + MAX_HEADER + MAX_PAYLOAD)
            self._out.append(memoryview(padding))
            self._out_size += len(padding)
            self._loop.add_writer(self._write_fd, self._writable)

    @property
    def last_request(self) -> int:
        """The highest number that a request had so far."""
        return self._next_id

    def number_after(self, last_request: int) -> None:
        """Begin after this number: the agent became a copy of one that knows older requests. None was sent so far."""
        self._next_id = last_request

    @property
    def fds(self) -> tuple[int, int]:
        """Descriptors of the agent's answers and of our requests."""
        return self._read_fd, self._write_fd

    @property
    def closed(self) -> str | None:
        """Why the channel ended, or None while it is open."""
        return self._closed

    @property
    def quiet(self) -> bool:
        """Nothing that was asked of the agent is under way."""
        return not self._requests and not self._abandoned

    # --- requests -------------------------------------------------------------------------------------------------

    async def call(self, op: str, payload: bytes = b"", *, timeout: float = 30.0, **fields: Any) -> Event:
        """One request with one answer.

        Raises:
            ExecutionTimeout: no answer within `timeout` seconds.
            VmConnectionError: the channel ended before the answer.
            ExecutionFailed: the agent refused (subclasses: GuestFileError, SessionNotFound).
        """
        try:
            async with asyncio.timeout(timeout), self.request(op, payload, **fields) as stream:
                async for header, data in stream:
                    if header["ev"] in FINAL_EVENTS:
                        return header, data
        except TimeoutError as exc:
            raise ExecutionTimeout(f"The machine did not answer {op!r} within {timeout:g} s.") from exc
        raise VmConnectionError(f"The machine's answer to {op!r} had no end.")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep new requests back, all but the urgent ones, until the end of the block."""
        self._gate.clear()
        try:
            yield
        finally:
            self._gate.set()

    @contextlib.asynccontextmanager
    async def request(
        self, op: str, payload: bytes = b"", *, urgent: bool = False, **fields: Any
    ) -> AsyncIterator[Stream]:
        """Send a request and read its events. Leaving early drops the rest of its events; it does not stop the work."""
        if not urgent:
            await self._gate.wait()
        self._next_id += 1
        number = self._next_id
        request = _Request()
        self._requests[number] = request
        stream = Stream(number, request)
        try:
            await self._send({"id": number, "op": op, **fields}, payload)
            request.sent = True
            yield stream
        finally:
            del self._requests[number]
            if request.sent and not request.answered and self._closed is None:
                self._abandoned[number] = asyncio.Event()

    async def answered(self, number: int) -> None:
        """Wait until a request that was left early has ended in the guest, or the channel has."""
        if (ended := self._abandoned.get(number)) is not None and self._closed is None:
            await ended.wait()

    async def _send(self, header: Header, payload: bytes) -> None:
        if self._closed is not None:
            raise self._error()
        try:
            frame = _encoded(header, payload)
            if payload and len(frame) >= _CHECKED_BYTES:
                frame = encode({**header, "crc": zlib.crc32(payload)}, payload)
        except ProtocolError as exc:
            raise ExecutionFailed(str(exc), remediation="Send less at once.", retryable=True) from exc
        while self._out_size > _MAX_WRITE_BUFFER:
            self._drained.clear()
            await self._drained.wait()
            if self._closed is not None:
                raise self._error()
        if self.before_send is not None:
            prepare, self.before_send = self.before_send, None
            prepare()
        self._out.append(memoryview(frame))
        self._out_size += len(frame)
        if len(self._out) == 1:
            self._write_some()
            if self._out and self._closed is None:
                self._loop.add_writer(self._write_fd, self._writable)

    # --- the loop's callbacks -------------------------------------------------------------------------------------

    def _write_some(self) -> None:
        while self._out:
            chunk = self._out[0]
            try:
                written = os.write(self._write_fd, chunk)
            except BlockingIOError:
                return
            except OSError as exc:
                self._break(f"writing to the machine failed: {exc.strerror}")
                return
            self._out_size -= written
            if written == len(chunk):
                self._out.popleft()
            else:
                self._out[0] = chunk[written:]
        if self._out_size <= _MAX_WRITE_BUFFER:
            self._drained.set()

    def _writable(self) -> None:
        self._write_some()
        if not self._out and self._closed is None:
            self._loop.remove_writer(self._write_fd)

    def _readable(self) -> None:
        try:
            data = os.read(self._read_fd, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError as exc:
            self._break(f"reading from the machine failed: {exc.strerror}")
            return
        if not data:
            self._break("the machine closed its channel")
            return
        self._decoder.feed(data if self._hunted is None else self._hunt(data))
        try:
            while (frame := self._decoder.next()) is not None:
                self._dispatch(*frame)
                if self._closed is not None:
                    return
        except ProtocolError as exc:
            self._break(f"the machine broke the protocol: {exc}", by_guest=True)

    def _hunt(self, data: bytes) -> bytes:
        """What of the stream begins with the frame that is looked for."""
        assert self._hunted is not None  # noqa: S101 (for the type checker)
        self._unmatched += data
        place = self._unmatched.find(self._hunted)
        if place < 0:
            del self._unmatched[: -len(self._hunted)]
            return b""
        found = bytes(self._unmatched[place:])
        self._hunted = None
        self._unmatched.clear()
        return found

    def _dispatch(self, header: Header, payload: bytes) -> None:
        number, event = header["id"], header.get("ev")
        if not isinstance(event, str):
            raise ProtocolError("a frame without an event")
        if number == 0:
            if event != "hello" or self.hello.done():
                raise ProtocolError(f"unexpected event {event[:40]!r}")
            self.hello.set_result(header)
            return
        if number in self._abandoned:
            if event in FINAL_EVENTS:
                self._abandoned.pop(number).set()
            return
        if event not in FINAL_EVENTS and (len(header) > 10 or any(map(_is_long, header.values()))):
            raise ProtocolError("an event with more in its header than it has fields for")
        request = self._requests.get(number)
        if request is None:
            raise ProtocolError(f"an answer to request {number}, which is not under way")
        request.put((header, payload))
        if request.size > _MAX_WAITING_BYTES:
            raise ProtocolError(f"request {number} got more than {_MAX_WAITING_BYTES} bytes of events")

    # --- the end --------------------------------------------------------------------------------------------------

    @property
    def broken_by_guest(self) -> bool:
        """The agent sent nonsense (and did not just end)."""
        return self._broken_by == "guest"

    def close(self, why: str = "closed") -> None:
        """Close both descriptors; requests under way fail."""
        if self._closed is not None:
            return
        self._closed = why
        self._loop.remove_reader(self._read_fd)
        self._loop.remove_writer(self._write_fd)
        os.close(self._read_fd)
        os.close(self._write_fd)
        self._out.clear()
        self._drained.set()
        self._gate.set()
        for request in self._requests.values():
            request.fail(self._error())
        for ended in self._abandoned.values():
            ended.set()
        if not self.hello.done():
            self.hello.set_exception(self._error())
            self.hello.exception()  # whoever waits for it still gets it; nobody waiting is no leak

    def abandon(self) -> None:
        """Close both descriptors without the loop, which is closed itself."""
        if self._closed is None:
            self._closed = "abandoned"
            os.close(self._read_fd)
            os.close(self._write_fd)

    def _break(self, why: str, *, by_guest: bool = False) -> None:
        if self._closed is None:
            self._broken_by = "guest" if by_guest else "end"
            self.close(why)
            self._on_broken(why)

    def _error(self) -> VmConnectionError:
        return VmConnectionError(f"The channel to the machine is gone: {self._closed}.")


class Stream:
    """Events of one request, in order, to the final one. An `error` event is raised as its exception."""

    def __init__(self, number: int, request: _Request) -> None:
        self.number = number
        self.ended = False
        self._request = request

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        if self.ended:
            raise StopAsyncIteration
        header, payload = await self._request.get()
        if header["ev"] in FINAL_EVENTS:
            self.ended = True
            if header["ev"] == "error":
                raise _refusal(header)
        return header, payload


def _refusal(header: Header) -> Exception:
    kind, message = str(header.get("kind"))[:40], printable(str(header.get("message", "no reason given"))[:2000])
    if kind == "file":
        return GuestFileError(message, details={"errno": str(header.get("errno", ""))[:20]})
    if kind == "not_found":
        return SessionNotFound(message)
    return ExecutionFailed(message, details={"kind": kind})
