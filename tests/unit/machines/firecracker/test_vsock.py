"""The way to the agent: Firecracker's handshake and the greeting, with connections that hang, end or lead elsewhere."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from emberbox.errors import VmConnectionError
from emberbox.guest.vm_init import ACCEPTED, ASKS_MEMORY, FREE_MEMORY, GREETING, MAGIC
from emberbox.machines.firecracker.channel import VmChannel
from emberbox.machines.firecracker.vsock import connect, free_memory_mb

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Start = Callable[[Serve], Awaitable[Path]]


@pytest.fixture
async def listen(tmp_path: Path) -> AsyncIterator[Start]:
    servers: list[asyncio.Server] = []

    async def start(serve: Serve) -> Path:
        async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer)
            finally:
                writer.close()

        path = tmp_path / "v.sock"
        servers.append(await asyncio.start_unix_server(whole, str(path)))
        return path

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    assert await reader.readline() == b"CONNECT 52\n"
    writer.write(b"OK 1073741824\n")
    greeting = await reader.readexactly(GREETING.size)
    writer.write(ACCEPTED)
    return greeting


async def test_the_guest_gets_time_and_randomness_and_then_the_stream_begins(listen: Start) -> None:
    greetings = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greetings.append(await accept(reader, writer))
        writer.write(b"stream")
        await writer.drain()
        await reader.read(1)

    path = await listen(serve)
    for _ in range(2):
        read_fd, write_fd = await connect(path, 5)
        await asyncio.sleep(0.05)
        assert os.read(read_fd, 100) == b"stream"
        os.write(write_fd, b"x")
        os.close(read_fd)
        os.close(write_fd)
    (magic, nanoseconds, one), (_, _, two) = map(GREETING.unpack, greetings)
    assert magic == MAGIC
    assert abs(nanoseconds / 1e9 - time.time()) < 10
    assert one != two


async def test_a_first_connection_that_hangs_or_is_refused_is_given_up(listen: Start) -> None:
    tries = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            await asyncio.sleep(0.3)
        elif tries == 3:
            await accept(reader, writer)
            await reader.read(1)

    path = await listen(serve)
    for fd in await connect(path, 60):
        os.close(fd)
    assert tries == 3


async def test_nobody_there_is_an_error_in_time(listen: Start, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()

    path = await listen(serve)
    with pytest.raises(VmConnectionError, match="could not be reached"):
        await connect(path, 0.3)
    with pytest.raises(VmConnectionError, match="made no socket"):
        await connect(tmp_path / "none", 5)


async def test_the_guest_says_how_much_memory_is_free(listen: Start) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"OK 1\n")
        assert (await reader.readexactly(GREETING.size)).startswith(ASKS_MEMORY)
        for byte in FREE_MEMORY.pack((100 << 10) + 1023):
            writer.write(bytes([byte]))
            await writer.drain()

    assert await free_memory_mb(await listen(serve), 20) == 100


@pytest.mark.parametrize("answer", [b"", b"REFUSED\n", b"OK 1\n", b"OK 1\nnonsense"[:10]])
async def test_a_guest_that_says_nothing_or_half_of_it_is_an_error(listen: Start, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        if answer.startswith(b"OK"):
            await reader.readexactly(GREETING.size)

    with pytest.raises(VmConnectionError, match="how much memory"):
        await free_memory_mb(await listen(serve), 20)


async def test_a_guest_that_hangs_is_not_waited_for(listen: Start, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    with pytest.raises(VmConnectionError, match="how much memory"):
        await free_memory_mb(await listen(serve), 0.1)
    with pytest.raises(VmConnectionError, match="how much memory"):
        await free_memory_mb(tmp_path / "none", 0.1)


async def test_a_link_does_not_lead_to_another_socket(listen: Start, tmp_path: Path) -> None:
    seen = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(100))

    (tmp_path / "link").symlink_to(await listen(serve))
    with pytest.raises(VmConnectionError):
        await connect(tmp_path / "link", 0.2)
    assert seen == []


async def test_a_channel_goes_on_through_another_connection() -> None:
    from emberbox.guest.protocol import FrameDecoder, encode

    async def answer(end: socket.socket) -> None:
        loop, decoder = asyncio.get_running_loop(), FrameDecoder()
        while data := await loop.sock_recv(end, 1000):
            decoder.feed(data)
            while (frame := decoder.next()) is not None:
                await loop.sock_sendall(end, encode({"id": frame[0]["id"], "ev": "done"}))

    broken: list[str] = []
    pairs = [socket.socketpair() for _ in range(2)]
    for _, far in pairs:
        far.setblocking(False)
    servers = [asyncio.create_task(answer(far)) for _, far in pairs]
    first, second = (near.detach() for near, _ in pairs)
    channel = VmChannel(os.dup(first), first, broken.append)
    await channel.call("ping", timeout=5)
    channel.detach()
    pairs[0][1].close()
    waiting = asyncio.create_task(channel.call("ping", timeout=5))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    channel.attach(os.dup(second), second)
    await waiting
    await channel.call("ping", timeout=5)
    assert broken == []
    channel.close()
    for server in servers:
        server.cancel()
    await asyncio.gather(*servers, return_exceptions=True)
    pairs[1][1].close()
