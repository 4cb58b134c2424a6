"""The host's end of the way to the relay in the guest (guest/vm_init.py), through Firecracker's vsock device.

Firecracker listens on a Unix socket; `CONNECT <port>\\n` is answered by `OK <number>\\n` when somebody in the guest
listens there, and the stream is the connection from then on (docs/vsock.md of Firecracker).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from pathlib import Path

from emberbox.errors import VmConnectionError
from emberbox.guest.vm_init import ACCEPTED, ASKS_MEMORY, ENTROPY_BYTES, FREE_MEMORY, GREETING, MAGIC, PORT

FIRST_TRY_SECONDS = 0.08
"""The first connection after a restore may hang for ever, so that one soon tries again. A slow guest gets twice the
time with each attempt."""
BOOT_TRY_SECONDS = 5.0
"""The first one to a machine that was booted, whose agent listens by then."""
LONGEST_TRY_SECONDS = 20.0
_PAUSE_SECONDS = 0.005


async def connect(path: Path, seconds: float, first_try: float = FIRST_TRY_SECONDS) -> tuple[int, int]:
    """Descriptors of the stream to the agent, for reading and for writing; the guest has the right time and fresh
    randomness by then.

    Args:
        path: of Firecracker's socket.
        seconds: for all attempts.
        first_try: seconds for the first one.

    Raises:
        VmConnectionError: nobody in the guest answered within `seconds`.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    patience = first_try
    why = "nothing was tried"
    while loop.time() < end:
        try:
            async with asyncio.timeout(min(patience, end - loop.time())):
                stream = await _try(path)
        except FileNotFoundError as exc:
            raise VmConnectionError(f"Firecracker made no socket {path.name} for its vsock device.") from exc
        except OSError as exc:  # a time-out is one as well
            why = str(exc) or f"no answer within {patience:g} s"
            if isinstance(exc, TimeoutError):
                patience = min(patience * 2, LONGEST_TRY_SECONDS)
            await asyncio.sleep(_PAUSE_SECONDS)
            continue
        with stream:
            return os.dup(stream.fileno()), stream.detach()
    raise VmConnectionError(f"The machine's agent could not be reached through {path.name}: {why}.")


async def free_memory_mb(path: Path, seconds: float) -> int:
    """MiB that the guest's kernel has no use for; the connection to the agent stays as it is.

    Raises:
        VmConnectionError: the guest did not say so within `seconds`.
    """
    answer = b""
    try:
        async with asyncio.timeout(seconds):
            with await _greet(path, ASKS_MEMORY) as stream:
                while len(answer) < FREE_MEMORY.size:
                    answer += await _some(stream, FREE_MEMORY.size - len(answer))
    except OSError as exc:
        raise VmConnectionError(f"The guest does not say how much memory it has left: {exc!r}.") from exc
    (kibibytes,) = FREE_MEMORY.unpack(answer)
    return int(kibibytes) >> 10


async def _try(path: Path) -> socket.socket:
    stream = await _greet(path, MAGIC)
    try:
        _check(await _some(stream, len(ACCEPTED)) == ACCEPTED, "the guest did not accept the connection")
    except BaseException:
        stream.close()
        raise
    return stream


async def _greet(path: Path, magic: bytes) -> socket.socket:
    """A connection to the relay, which has been told who calls and what for."""
    loop = asyncio.get_running_loop()
    # Firecracker may write to this folder: what a guest that has taken it over puts there must not lead elsewhere
    place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.setblocking(False)
        await loop.sock_connect(stream, f"/proc/self/fd/{place}")
        await loop.sock_sendall(stream, b"CONNECT %d\n" % PORT)
        _check((await _line(stream)).startswith(b"OK "), "nobody listens in the guest")
        await loop.sock_sendall(stream, GREETING.pack(magic, time.time_ns(), os.urandom(ENTROPY_BYTES)))
    except BaseException:
        with contextlib.suppress(OSError):
            stream.close()
        raise
    finally:
        os.close(place)
    return stream


def _check(good: bool, why: str) -> None:
    if not good:
        raise ConnectionRefusedError(why)


async def _line(stream: socket.socket) -> bytes:
    """Up to the end of a short line; not one byte more, which would be the stream's."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 64:
        line += await _some(stream, 1)
    return line


async def _some(stream: socket.socket, size: int) -> bytes:
    data = await asyncio.get_running_loop().sock_recv(stream, size)
    if not data:
        raise ConnectionResetError("Firecracker closed the connection")
    return data
