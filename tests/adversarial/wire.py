"""A client without manners: bytes on a socket, frames of a WebSocket by hand; and what a user would notice."""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx

from served import Served

SECONDS = 20.0
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def open_socket(server: Served, seconds: float = SECONDS, receive_buffer: int | None = None) -> socket.socket:
    """A connection to the server."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    connection = socket.socket()
    connection.settimeout(seconds)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        connection.connect((host, int(port)))
    except BaseException:
        connection.close()
        raise
    return connection


def rest(connection: socket.socket, seconds: float = SECONDS) -> tuple[bytes, bool]:
    """What comes until the server closes; whether it did in time."""
    deadline, seen = time.monotonic() + seconds, b""
    while (left := deadline - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            piece = connection.recv(1 << 16)
        except TimeoutError:
            break
        except OSError:
            return seen, True
        if not piece:
            return seen, True
        seen += piece
    return seen, False


def exchange(server: Served, data: bytes, seconds: float = SECONDS) -> tuple[bytes, bool]:
    """Send bytes; what comes until the server closes, and whether it did."""
    with open_socket(server) as connection:
        connection.sendall(data)
        return rest(connection, seconds)


def statuses(answer: bytes) -> list[int]:
    """Of all answers in it."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]


def head(method: str, path: str, *lines: str, host: str = "localhost") -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode("latin-1")


class Frames:
    """A WebSocket whose frames are written by hand."""

    def __init__(self, server: Served, path: str, *, receive_buffer: int | None = None, deflate: bool = False) -> None:
        self.socket = open_socket(server, receive_buffer=receive_buffer)
        self._seen = b""
        lines = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}"]
        if deflate:
            lines.append("Sec-WebSocket-Extensions: permessage-deflate")
        self.socket.sendall(head("GET", path, *lines))
        while b"\r\n\r\n" not in self._seen:
            self._more()
        self.answer, _, self._seen = self._seen.partition(b"\r\n\r\n")
        assert self.answer.startswith(b"HTTP/1.1 101"), self.answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def _more(self) -> None:
        piece = self.socket.recv(1 << 16)
        if not piece:
            raise ConnectionError("closed")
        self._seen += piece

    def send(self, opcode: int, data: bytes, *, fin: bool = True, rsv: int = 0, masked: bool = True) -> None:
        """Send a frame."""
        self.socket.sendall(frame(opcode, data, fin=fin, rsv=rsv, masked=masked))

    def receive(self) -> tuple[int, bytes]:
        """The next frame; raises ConnectionError at the end, TimeoutError where none comes."""
        while len(self._seen) < 2:
            self._more()
        size, start = self._seen[1] & 127, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            while len(self._seen) < start:
                self._more()
            size = int.from_bytes(self._seen[2:start], "big")
        while len(self._seen) < start + size:
            self._more()
        opcode, data = self._seen[0] & 15, self._seen[start : start + size]
        self._seen = self._seen[start + size :]
        return opcode, data

    def close_code(self) -> int | None:
        """The code with which the server closes; None where it only hangs up. Other frames are passed over."""
        try:
            while True:
                opcode, data = self.receive()
                if opcode == CLOSE:
                    return struct.unpack("!H", data[:2])[0] if data else 1005
        except OSError as exc:
            if isinstance(exc, TimeoutError):
                raise
            return None


def frame(opcode: int, data: bytes, *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """A frame of a client; the mask is zero, so that the data stays as it is."""
    size = len(data)
    first = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if masked else 0
    if size < 126:
        length = bytes([bit | size])
    elif size < 1 << 16:
        length = bytes([bit | 126]) + struct.pack("!H", size)
    else:
        length = bytes([bit | 127]) + struct.pack("!Q", size)
    return first + length + (b"\0\0\0\0" if masked else b"") + data


# --- what is left, and what it costs ----------------------------------------------------------------------------------


def gauge(client: httpx.Client, name: str) -> float:
    """A figure without labels; not a number while the server takes no more requests of its callers."""
    answer = client.get("/metrics")
    if answer.status_code == 429:
        return math.nan
    assert answer.status_code == 200, answer.text
    return next(float(line.rpartition(" ")[2]) for line in answer.text.splitlines() if line.startswith(f"{name} "))


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    """Open descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def complaints(server: Served) -> list[dict[str, Any]]:
    """What it logged as an error of its own."""
    return [line for line in server.logs() if line.get("level") in {"error", "critical"}]


def defects(server: Served) -> dict[str, int]:
    """The same in a few words, and how often."""
    last = [(one["event"].strip(), str(one.get("exception", "")).splitlines()) for one in complaints(server)]
    return dict(Counter(f"{event}: {lines[-1] if lines else ''}" for event, lines in last))


@contextlib.contextmanager
def quiet(server: Served) -> Iterator[None]:
    """Nothing that happens meanwhile is an error of the server: what callers do wrong is not."""
    before = len(complaints(server))
    yield
    new = complaints(server)[before:]
    assert new == [], [(line["event"], str(line.get("exception", ""))[-300:]) for line in new]


def well(server: Served, token: str | None = None) -> None:
    """It serves others as before."""
    with server.client(token) as client:
        answer = client.get("/api/vms")
        assert answer.status_code == 200, answer.text
