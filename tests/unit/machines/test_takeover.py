"""The channel of an agent that was somebody else's: what may be in its pipes, wherever it was cut."""

from __future__ import annotations

import asyncio
import os
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberbox.guest.protocol import MAX_PAYLOAD, PAD, FrameDecoder, Header, ProtocolError, encode

from .test_channel import PATIENCE, Agent, agent, fails

__all__ = ["agent"]
NUMBER = 4711
ANSWER = encode({"id": NUMBER + 1, "ev": "done"})
GARBAGE = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from([ANSWER[:-1], ANSWER[1:], encode({"id": 5, "ev": "stdout"}, b"x")])).map(b"".join),
)  # fmt: skip


async def _hunt(garbage: bytes, cuts: list[int]) -> list[str]:
    """Everything comes in pieces; what the first and the second request are answered."""
    agent = Agent()
    try:
        agent.channel.resync(NUMBER)
        call = asyncio.ensure_future(agent.channel.call("wake"))
        header, _ = await agent.request()
        data = garbage + ANSWER + encode({"id": NUMBER + 2, "ev": "done", "text": "second"})
        second = None
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            agent.raw(data[start:end])
            for _ in range(3):
                await asyncio.sleep(0)
            if second is None and end >= len(garbage + ANSWER):
                await call
                second = asyncio.ensure_future(agent.channel.call("ping"))
                await agent.request()
        assert header["id"] == NUMBER + 1
        assert second is not None
        async with asyncio.timeout(PATIENCE):
            return [(await call)[0]["ev"], (await second)[0]["text"]]
    finally:
        agent.channel.close()
        agent.leave()


@settings(deadline=None, max_examples=60)
@given(st.data(), GARBAGE)
def test_whatever_comes_before_the_first_answer_is_dropped(data: st.DataObject, garbage: bytes) -> None:
    if ANSWER in garbage:
        return  # the number is random: nobody can know it
    size = len(garbage + ANSWER)
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=6)))
    assert asyncio.run(_hunt(garbage, [*cuts, size])) == ["done", "second"]


async def test_without_it_garbage_ends_the_channel(agent: Agent) -> None:
    call = asyncio.ensure_future(agent.channel.call("wake"))
    await agent.request()
    agent.raw(b"\xff" * 20)
    with pytest.raises(Exception, match="impossible frame"):
        await call


async def test_a_second_attempt_drops_the_answer_to_the_first(agent: Agent) -> None:
    agent.channel.resync(NUMBER)
    with fails(Exception, "did not answer"):  # type: ignore[arg-type]
        await agent.channel.call("wake", timeout=0.01)
    agent.channel.resync(agent.channel.last_request)
    call = asyncio.ensure_future(agent.channel.call("wake"))
    agent.raw(ANSWER + encode({"id": NUMBER + 2, "ev": "done", "n": 1})[:10])
    agent.raw(b"rest" + encode({"id": NUMBER + 2, "ev": "done"}))
    assert (await call)[0] == {"id": NUMBER + 2, "ev": "done"}
    assert not agent.broken


# --- the agent's side -------------------------------------------------------------------------------------------------

FRAMES = [
    ({"id": 1, "op": "write", "path": "f"}, b"\xff\0payload" * 50),
    ({"id": 2, "op": "exec", "argv": ["x" * 300]}, b""),
    ({"id": 3, "op": "run_code"}, b"print('\xc3\xbc')" * 30),
]
LONGEST = 1000


def decoded(*pieces: bytes, padded: bool = True) -> list[tuple[Header, bytes]]:
    decoder, found = FrameDecoder(padded=padded), []
    for piece in pieces:
        decoder.feed(piece)
        while (frame := decoder.next()) is not None:
            found.append(frame)
    return found


@pytest.mark.parametrize("frame", FRAMES, ids=["write", "exec", "run_code"])
def test_a_frame_that_was_cut_anywhere_swallows_nothing_after_it(frame: tuple[Header, bytes]) -> None:
    header, payload = frame
    whole = encode({**header, "crc": zlib.crc32(payload)}, payload)
    wake = encode({"id": 9, "op": "wake"})
    for cut in range(len(whole)):
        found = decoded(whole[:cut], bytes([PAD]) * LONGEST, wake)
        assert found[-1] == ({"id": 9, "op": "wake"}, b""), cut
        for other, data in found[:-1]:  # its header was whole: the checksum tells
            assert other["crc"] != zlib.crc32(data), cut
    assert decoded(whole, bytes([PAD]) * LONGEST, wake)[0] == ({**header, "crc": zlib.crc32(payload)}, payload)


@given(st.integers(0, 500), st.integers(0, 700))
def test_padding_comes_in_any_pieces(cut: int, at: int) -> None:
    whole = encode(*FRAMES[0])[:cut]
    data = whole + bytes([PAD]) * LONGEST + encode({"id": 9, "op": "wake"})
    assert decoded(data[:at], data[at:])[-1][0]["id"] == 9


def test_padding_is_for_those_who_ask_for_it() -> None:
    with pytest.raises(ProtocolError):
        decoded(bytes([PAD]) * 100, padded=False)


async def test_the_host_pads_as_much_as_the_longest_frame_has(agent: Agent) -> None:
    agent.channel.resync(NUMBER, pad=True)
    call = asyncio.ensure_future(agent.channel.call("wake"))
    decoder = FrameDecoder(padded=True)
    decoder.feed(encode({"id": 1, "op": "write", "crc": 0}, bytes(MAX_PAYLOAD))[:20])
    frames: list[Header] = []
    async with asyncio.timeout(PATIENCE):
        while not frames or frames[-1]["op"] != "wake":
            decoder.feed(await asyncio.to_thread(os.read, agent.requests_fd, 1 << 20))
            while (frame := decoder.next()) is not None:
                frames.append(frame[0])
    agent.raw(b"rest of something" + ANSWER)
    assert (await call)[0]["ev"] == "done"


# --- checksums --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "payload", "checked"),
    [("a", b"", False), ("a", b"x" * 100, False), ("a", b"x" * 3000, True), ("a" * 3000, b"x", True)],
)
async def test_what_may_be_cut_has_a_checksum(agent: Agent, argument: str, payload: bytes, checked: bool) -> None:
    call = asyncio.ensure_future(agent.channel.call("write", payload, path=argument))
    header, data = await agent.request()
    assert ("crc" in header) is checked
    assert header.get("crc", zlib.crc32(data)) == zlib.crc32(payload)
    agent.send({"id": header["id"], "ev": "done"})
    await call
