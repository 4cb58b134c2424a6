"""What can be written to a file of a sandbox. Clients of a server import no more than this."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import IO

from emberbox._text import encoded

Data = str | bytes | bytearray | memoryview | IO[bytes] | IO[str] | Iterable[bytes] | AsyncIterable[bytes]


async def pieces_of(data: Data, size: int) -> AsyncIterator[bytes]:
    """Cut data into pieces of at most `size` bytes (those of an asynchronous iterable stay as they are); read an open
    file in a thread."""
    if isinstance(data, str):
        data = encoded("data", data)
    if isinstance(data, bytes | bytearray | memoryview):
        view = memoryview(data)
        for start in range(0, len(view), size):
            yield bytes(view[start : start + size])
        return
    if hasattr(data, "read"):
        while piece := await asyncio.to_thread(data.read, size):
            yield encoded("data", piece) if isinstance(piece, str) else piece
        return
    if isinstance(data, AsyncIterable):
        async for item in data:
            yield item
        return
    for item in data:
        for start in range(0, len(item), size):
            yield bytes(item[start : start + size])
