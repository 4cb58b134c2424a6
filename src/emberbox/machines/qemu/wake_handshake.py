"""The host's end of the port on which copies of a machine learn that they are copies (guest/vm_init.py)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time

from emberbox.errors import VmConnectionError
from emberbox.guest.vm_init import ENTROPY_BYTES, GREETING, MAGIC, accepted

_MOST_BYTES = 1 << 16
_AGAIN_SECONDS = 10.0


async def greet(stream: socket.socket, seconds: float) -> None:
    """Give the guest the time and random bytes; returns when it has taken them. What comes before its answer is for
    somebody before us, and is passed over.

    Raises:
        VmConnectionError: no answer within `seconds`.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while (left := end - loop.time()) > 0:
        greeting = GREETING.pack(MAGIC, time.time_ns(), os.urandom(ENTROPY_BYTES))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left, _AGAIN_SECONDS)):  # a slow guest gets the time anew
                await loop.sock_sendall(stream, greeting)
                await _wait(stream, accepted(greeting))
                return
    raise VmConnectionError(f"The machine's first process did not answer within {seconds:g} s.")


async def _wait(stream: socket.socket, wanted: bytes) -> None:
    loop = asyncio.get_running_loop()
    seen, count = b"", 0
    while wanted not in seen:
        try:
            data = await loop.sock_recv(stream, 4096)
        except OSError as exc:
            raise VmConnectionError(f"The machine's port for greetings broke: {exc.strerror}.") from exc
        count += len(data)
        if not data or count > _MOST_BYTES:
            raise VmConnectionError("The machine's port for greetings was closed, or says something else.")
        seen = (seen + data)[-2 * len(wanted) - 4096 :]
