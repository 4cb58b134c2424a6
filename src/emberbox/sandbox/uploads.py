"""What can be written to a file of a sandbox, and read at once. Clients of a server import no more than this."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import IO

from emberbox._text import encoded, printable
from emberbox.errors import GuestFileError

Data = str | bytes | bytearray | memoryview | IO[bytes] | IO[str] | Iterable[bytes] | AsyncIterable[bytes]

MOST_AT_ONCE = 1 << 30
"""Bytes of a file that is read into memory. One with a hole can say that it has terabytes, and take no space."""


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
        import asyncio

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


def too_large(path: str) -> GuestFileError:
    """What becomes of reading a file that is larger than MOST_AT_ONCE."""
    return GuestFileError(
        f"{printable(path)} has more than {MOST_AT_ONCE:,} bytes, the most that is read at once.",
        remediation='Read it in pieces, with format="stream".',
        details={"errno": "EFBIG"},
    )
