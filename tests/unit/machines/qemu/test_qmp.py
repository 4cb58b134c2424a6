"""QEMU's control channel, with a socket in the place of QEMU."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from emberbox.errors import VmConnectionError
from emberbox.machines.qemu.qmp import Qmp, QmpError


class Qemu:
    """The other end."""

    def __init__(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        self.stream = stream

    async def said(self) -> dict[str, Any]:
        data = b""
        while not data.endswith(b"\n"):
            data += await asyncio.get_running_loop().sock_recv(self.stream, 65_536)
        message: dict[str, Any] = json.loads(data)
        return message

    async def say(self, **message: Any) -> None:
        await self.raw(json.dumps(message).encode() + b"\r\n")

    async def raw(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.stream, data)


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Qmp, Qemu]]:
    here, there = socket.socketpair()
    qmp = Qmp(here)
    try:
        yield qmp, Qemu(there)
    finally:
        qmp.close()
        there.close()


async def test_answers_find_their_calls_whatever_comes_between(ends: tuple[Qmp, Qemu]) -> None:
    qmp, qemu = ends
    first, second = (asyncio.create_task(qmp.call(name)) for name in ("stop", "cont"))
    await asyncio.sleep(0)
    data = b""
    while data.count(b"\n") < 2:
        data += await asyncio.get_running_loop().sock_recv(qemu.stream, 65_536)
    numbers = [json.loads(line)["id"] for line in data.splitlines()]
    await qemu.raw(b"half of something}\n[1]\n")
    await qemu.say(event="STOP", data={})
    await qemu.say(id=99, **{"return": "for another"})
    await qemu.say(id=numbers[1], **{"return": 2})
    await qemu.say(id=numbers[0], **{"return": 1})
    assert (await first, await second) == (1, 2)


async def test_names_of_arguments_are_qemu_s(ends: tuple[Qmp, Qemu]) -> None:
    qmp, qemu = ends
    call = asyncio.create_task(qmp.call("remove-fd", fdset_id=3))
    said = await qemu.said()
    assert (said["execute"], said["arguments"]) == ("remove-fd", {"fdset-id": 3})
    await qemu.say(id=said["id"], error={"class": "GenericError", "desc": "no such set"})
    with pytest.raises(QmpError, match="no such set"):
        await call


async def test_no_answer_is_an_error_and_so_is_the_end(ends: tuple[Qmp, Qemu]) -> None:
    qmp, qemu = ends
    with pytest.raises(QmpError, match="did not answer 'stop' within"):
        await qmp.call("stop", seconds=0.01)
    call = asyncio.create_task(qmp.call("cont"))
    await asyncio.sleep(0)
    qemu.stream.close()
    with pytest.raises(VmConnectionError, match="control channel"):
        await call
    with pytest.raises(VmConnectionError):
        await qmp.call("cont")


async def test_a_line_without_an_end_is_not_kept(ends: tuple[Qmp, Qemu]) -> None:
    qmp, qemu = ends
    call = asyncio.create_task(qmp.call("cont"))
    with pytest.raises(VmConnectionError, match="without an end"):
        await asyncio.gather(call, qemu.raw(b"x" * 1_200_000))


async def test_events_wait_for_their_watcher_and_are_bounded(ends: tuple[Qmp, Qemu]) -> None:
    qmp, qemu = ends
    with qmp.watch("MIGRATION") as events:
        for number in range(300):
            await qemu.say(event="MIGRATION", data={"status": str(number)})
        assert (await events.get())["status"] == "0"
        await asyncio.sleep(0.05)
        assert events.qsize() <= 100


async def test_what_no_qemu_writes_ends_the_channel(ends: tuple[Qmp, Qemu]) -> None:
    qmp, qemu = ends
    call = asyncio.create_task(qmp.call("stop"))
    await qemu.said()
    await qemu.raw(b"[" * 200_000 + b"\n")
    with pytest.raises(VmConnectionError, match="no QEMU writes"):
        await call
    with pytest.raises(VmConnectionError):
        await qmp.call("cont")


@pytest.mark.parametrize(
    ("error", "said"),
    [({"desc": "no\ud800 \x1b[31mred\n"}, r"refused: no \[31mred\."), ({"desc": [1]}, "no reason"), ("x", "no reason")],
)
async def test_words_of_an_error_can_be_shown(ends: tuple[Qmp, Qemu], error: object, said: str) -> None:
    qmp, qemu = ends
    call = asyncio.create_task(qmp.call("stop"))
    number = (await qemu.said())["id"]
    await qemu.say(event=[1], data={})
    await qemu.say(id=number, error=error)
    with pytest.raises(QmpError, match=said) as raised:
        await call
    raised.value.message.encode()


async def test_a_flood_ends_the_channel_and_the_machine_is_told() -> None:
    """Whatever it is: events that nobody asked for, and lines that mean nothing."""
    here, there = socket.socketpair()
    told: asyncio.Queue[str] = asyncio.Queue()
    qmp, qemu = Qmp(here, 0, told.put_nowait), Qemu(there)

    async def flood() -> None:
        while True:
            await qemu.raw(b'{"event": "RTC_CHANGE", "data": {}}\nnonsense\n' * 1000)

    flooding = asyncio.create_task(flood())  # when it is not read any more, nothing ends it
    try:
        async with asyncio.timeout(60):
            assert await told.get() == "QEMU writes far more than it was asked for."
        assert told.empty()
        with pytest.raises(VmConnectionError, match="far more"):
            await qmp.call("stop")
    finally:
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        qmp.close()
        there.close()


async def test_a_command_that_was_sent_in_part_is_the_last_one() -> None:
    """The next one would be taken for the rest of it."""
    here, there = socket.socketpair()
    told: list[str] = []
    qmp = Qmp(here, 0, told.append)
    try:
        with pytest.raises(QmpError, match="did not answer"):  # nobody reads: the socket is full
            await qmp.call("getfd", seconds=0.2, fdname="x" * 10_000_000)
        assert told == ["QEMU takes no commands: one was sent in part."]
        with pytest.raises(VmConnectionError, match="sent in part"):
            await qmp.call("cont")
    finally:
        qmp.close()
        there.close()


async def test_a_command_that_never_began_spoils_nothing(ends: tuple[Qmp, Qemu]) -> None:
    qmp, qemu = ends
    async with qmp._sending:
        with pytest.raises(QmpError, match="did not answer"):
            await qmp.call("stop", seconds=0.01)
    call = asyncio.create_task(qmp.call("cont"))
    said = await qemu.said()
    assert said["execute"] == "cont"
    await qemu.say(id=said["id"], **{"return": {}})
    assert await call == {}
