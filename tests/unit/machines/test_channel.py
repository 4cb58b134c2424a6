"""The channel, with a fake agent at the other ends of real pipes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from emberbox.errors import (
    ExecutionFailed,
    ExecutionTimeout,
    GuestFileError,
    SessionNotFound,
    VmConnectionError,
    VmExecutionError,
)
from emberbox.guest.protocol import MAX_HEADER, MAX_PAYLOAD, PREFIX, FrameDecoder, Header, encode
from emberbox.machines import channel as module
from emberbox.machines.channel import Channel, Event, Stream

PATIENCE = 30.0


class Agent:
    """The other ends of the pipes; what a test does not read stays in the pipe."""

    def __init__(self) -> None:
        self.requests_fd, self.host_write = os.pipe()
        self.host_read, self.answers_fd = os.pipe()
        self.decoder = FrameDecoder()
        self.broken: list[str] = []
        self.ended = asyncio.Event()
        self.channel = Channel(self.host_read, self.host_write, self._broke)

    def _broke(self, why: str) -> None:
        self.broken.append(why)
        self.ended.set()

    async def request(self) -> tuple[Header, bytes]:
        """The next request."""
        loop = asyncio.get_running_loop()
        while (frame := self.decoder.next()) is None:
            ready = asyncio.Event()
            loop.add_reader(self.requests_fd, ready.set)
            try:
                async with asyncio.timeout(PATIENCE):
                    await ready.wait()
            finally:
                loop.remove_reader(self.requests_fd)
            data = os.read(self.requests_fd, 1 << 20)
            if not data:
                raise EOFError
            self.decoder.feed(data)
        return frame

    async def requests(self, count: int) -> list[Header]:
        return [(await self.request())[0] for _ in range(count)]

    def send(self, header: Header, payload: bytes = b"") -> None:
        self.raw(encode(header, payload))

    def raw(self, data: bytes) -> None:
        assert os.write(self.answers_fd, data) == len(data), "a test sends more than a pipe takes"

    def leave(self) -> None:
        """Close both ends, as an agent that dies."""
        for name in ("requests_fd", "answers_fd"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)


@pytest.fixture
async def agent() -> Any:
    made = Agent()
    yield made
    made.channel.close()
    made.leave()


async def events_of(stream: Stream) -> list[Event]:
    return [event async for event in stream]


@contextlib.contextmanager
def fails(error: type[VmExecutionError], match: str) -> Iterator[pytest.ExceptionInfo[VmExecutionError]]:
    with pytest.raises(error, match=match) as info:
        yield info


# --- requests ---------------------------------------------------------------------------------------------------------


async def test_a_call_sends_its_fields_and_returns_the_final_event(agent: Agent) -> None:
    call = asyncio.ensure_future(agent.channel.call("read", b"in", path="/a"))
    header, payload = await agent.request()
    assert (header["op"], header["path"], payload) == ("read", "/a", b"in")
    agent.send({"id": header["id"], "ev": "done", "size": 3}, b"out")
    answer, data = await call
    assert (answer["size"], data) == (3, b"out")


async def test_events_of_a_request_come_in_their_order_up_to_the_final_one(agent: Agent) -> None:
    async with agent.channel.request("run_code") as stream:
        number = (await agent.request())[0]["id"]
        assert number == stream.number
        agent.send({"id": number, "ev": "started"})
        for text in (b"1", b"2", b"3"):
            agent.send({"id": number, "ev": "stdout"}, text)
        agent.send({"id": number, "ev": "done"})
        events = await events_of(stream)
        assert [(h["ev"], p) for h, p in events] == [
            ("started", b""), ("stdout", b"1"), ("stdout", b"2"), ("stdout", b"3"), ("done", b"")
        ]  # fmt: skip
        assert stream.ended
        assert await events_of(stream) == []


async def test_many_requests_at_once_each_get_their_own_answer(agent: Agent) -> None:
    calls = [asyncio.ensure_future(agent.channel.call("ping", str(n).encode())) for n in range(200)]
    frames = [await agent.request() for _ in calls]
    assert len({header["id"] for header, _ in frames}) == 200
    for header, payload in reversed(frames):
        agent.send({"id": header["id"], "ev": "done"}, b"re " + payload)
    assert [data for _, data in await asyncio.gather(*calls)] == [f"re {n}".encode() for n in range(200)]


async def test_events_of_two_requests_may_be_mixed(agent: Agent) -> None:
    async with agent.channel.request("exec") as one, agent.channel.request("exec") as two:
        for number, text in ((one.number, b"a"), (two.number, b"b"), (one.number, b"c"), (two.number, b"d")):
            agent.send({"id": number, "ev": "stdout"}, text)
        for number in (two.number, one.number):
            agent.send({"id": number, "ev": "done"})
        both = await asyncio.gather(events_of(one), events_of(two))
    assert [b"".join(payload for _, payload in events) for events in both] == [b"ac", b"bd"]


async def test_frames_may_arrive_in_any_pieces(agent: Agent) -> None:
    call = asyncio.ensure_future(agent.channel.call("ping"))
    number = (await agent.request())[0]["id"]
    for byte in encode({"id": number, "ev": "done", "text": "é"}, b"payload"):
        agent.raw(bytes([byte]))
        await asyncio.sleep(0)
    answer, data = await call
    assert (answer["text"], data) == ("é", b"payload")


async def test_many_frames_may_arrive_at_once(agent: Agent) -> None:
    async with agent.channel.request("run_code") as stream:
        number = stream.number
        agent.raw(encode({"id": number, "ev": "stdout"}, b"x") * 500 + encode({"id": number, "ev": "done"}))
        assert len(await events_of(stream)) == 501


async def test_no_answer_in_time(agent: Agent) -> None:
    with fails(ExecutionTimeout, "did not answer 'ping' within 0.01 s"):
        await agent.channel.call("ping", timeout=0.01)
    assert agent.channel.closed is None


async def test_an_answer_that_comes_too_late_is_dropped(agent: Agent) -> None:
    with fails(ExecutionTimeout, "ping"):
        await agent.channel.call("ping", timeout=0.01)
    late = (await agent.request())[0]["id"]
    call = asyncio.ensure_future(agent.channel.call("ping"))
    agent.send({"id": late, "ev": "done"}, b"late")
    agent.send({"id": (await agent.request())[0]["id"], "ev": "done"}, b"mine")
    assert (await call)[1] == b"mine"


async def test_leaving_early_drops_the_rest_and_keeps_the_channel(agent: Agent) -> None:
    async with agent.channel.request("run_code") as stream:
        number = stream.number
        agent.send({"id": number, "ev": "stdout"}, b"1")
        assert (await anext(stream))[1] == b"1"
    for _ in range(3):
        agent.send({"id": number, "ev": "stdout"}, b"more")
    agent.send({"id": number, "ev": "done"})
    call = asyncio.ensure_future(agent.channel.call("ping"))
    agent.send({"id": (await agent.requests(2))[1]["id"], "ev": "done"}, b"pong")
    assert (await call)[1] == b"pong"
    assert agent.channel.closed is None


async def test_a_request_left_after_its_end_has_no_more_events(agent: Agent) -> None:
    """Also when the final event was there and nobody had read it: the number is used up."""
    async with agent.channel.request("ping") as stream:
        agent.send({"id": stream.number, "ev": "stdout"})
        agent.send({"id": stream.number, "ev": "done"})
        await anext(stream)
    agent.send({"id": stream.number, "ev": "done"})
    async with asyncio.timeout(PATIENCE):
        await agent.ended.wait()
    assert "not under way" in agent.broken[0]


async def test_cancelling_a_call_keeps_the_channel(agent: Agent) -> None:
    call = asyncio.ensure_future(agent.channel.call("ping"))
    number = (await agent.request())[0]["id"]
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    agent.send({"id": number, "ev": "done"})
    second = asyncio.ensure_future(agent.channel.call("ping"))
    agent.send({"id": (await agent.request())[0]["id"], "ev": "done"}, b"2")
    assert (await second)[1] == b"2"


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"kind": "file", "errno": "ENOENT"}, GuestFileError),
        ({"kind": "not_found"}, SessionNotFound),
        ({"kind": "busy"}, ExecutionFailed),
        ({}, ExecutionFailed),
        ({"kind": ["strange"], "errno": {"a": 1}}, ExecutionFailed),
    ],
)
async def test_an_error_event_is_raised_as_its_exception(
    agent: Agent, fields: dict[str, Any], error: type[VmExecutionError]
) -> None:
    call = asyncio.ensure_future(agent.channel.call("read"))
    agent.send({"id": (await agent.request())[0]["id"], "ev": "error", "message": "because", **fields})
    with fails(error, "because") as info:
        await call
    assert type(info.value) is error
    assert agent.channel.closed is None


async def test_a_file_error_has_the_name_of_the_errno(agent: Agent) -> None:
    call = asyncio.ensure_future(agent.channel.call("read"))
    agent.send({"id": (await agent.request())[0]["id"], "ev": "error", "kind": "file", "errno": "ENOENT"})
    with fails(GuestFileError, "no reason given") as info:
        await call
    assert info.value.details == {"errno": "ENOENT"}


async def test_words_of_the_agent_are_bounded(agent: Agent) -> None:
    call = asyncio.ensure_future(agent.channel.call("read"))
    agent.send({"id": (await agent.request())[0]["id"], "ev": "error", "kind": "k" * 5000, "message": "m" * 9000})
    with fails(ExecutionFailed, "m") as info:
        await call
    assert len(info.value.message) == 2000
    assert len(info.value.details["kind"]) == 40


# --- nonsense ---------------------------------------------------------------------------------------------------------

NONSENSE = {
    "random bytes": b"\xde\xad\xbe\xef" * 10,
    "a frame of 4 GiB": PREFIX.pack(0xFFFFFFFF, 10),
    "a header longer than its frame": PREFIX.pack(8, 1000),
    "a header over the bound": PREFIX.pack(4 + MAX_HEADER + 1, MAX_HEADER + 1),
    "a payload over the bound": PREFIX.pack(4 + 2 + MAX_PAYLOAD + 1, 2),
    "a header that is not JSON": PREFIX.pack(4 + 3, 3) + b"{,}",
    "no id": encode({"ev": "done"}),
    "a negative id": encode({"id": -1, "ev": "done"}),
    "a boolean for an id": encode({"id": True, "ev": "done"}),
    "no event": encode({"id": 1}),
    "an event that is a number": encode({"id": 1, "ev": 5}),
    "an answer to nobody": encode({"id": 99, "ev": "done"}),
    "no hello": encode({"id": 0, "ev": "goodbye"}),
    "two hellos": encode({"id": 0, "ev": "hello"}) * 2,
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_closes_the_channel_and_fails_what_is_under_way(agent: Agent, data: bytes) -> None:
    call = asyncio.ensure_future(agent.channel.call("ping"))
    await agent.request()
    agent.raw(data)
    with fails(VmConnectionError, "broke the protocol") as info:
        await call
    assert not info.value.retryable
    assert agent.channel.broken_by_guest
    assert len(agent.broken) == 1
    assert agent.broken[0] == agent.channel.closed


async def test_frames_before_the_nonsense_count(agent: Agent) -> None:
    call = asyncio.ensure_future(agent.channel.call("ping"))
    number = (await agent.request())[0]["id"]
    agent.raw(encode({"id": number, "ev": "done"}, b"ok") + b"\xff" * 20)
    assert (await call)[1] == b"ok"
    assert agent.channel.broken_by_guest


async def test_events_that_nobody_reads_are_bounded(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_WAITING_BYTES", 10_000)
    async with agent.channel.request("run_code") as stream:
        for _ in range(11):
            agent.send({"id": stream.number, "ev": "stdout"}, b"x" * 1000)
        with fails(VmConnectionError, "more than 10000 bytes of events"):
            await events_of(stream)
    assert agent.channel.broken_by_guest


async def test_events_that_are_read_are_not_counted_again(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_WAITING_BYTES", 3_000)
    async with agent.channel.request("run_code") as stream:
        for _ in range(20):
            agent.send({"id": stream.number, "ev": "stdout"}, b"x" * 1000)
            assert len((await anext(stream))[1]) == 1000
    assert agent.channel.closed is None


# --- hello ------------------------------------------------------------------------------------------------------------


async def test_the_hello_of_the_agent_can_be_awaited(agent: Agent) -> None:
    agent.send({"id": 0, "ev": "hello", "protocol": 1})
    assert (await agent.channel.hello)["protocol"] == 1


async def test_an_agent_that_leaves_before_its_hello(agent: Agent) -> None:
    agent.leave()
    with fails(VmConnectionError, "closed its channel"):
        await agent.channel.hello


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_the_end_of_the_agent_fails_every_request(agent: Agent) -> None:
    calls = [asyncio.ensure_future(agent.channel.call("ping")) for _ in range(5)]
    await agent.requests(5)
    agent.leave()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [VmConnectionError] * 5
    assert agent.broken == ["the machine closed its channel"]
    assert not agent.channel.broken_by_guest


async def test_events_before_the_end_are_still_read(agent: Agent) -> None:
    async with agent.channel.request("run_code") as stream:
        agent.send({"id": stream.number, "ev": "stdout"}, b"last words")
        agent.leave()
        assert (await anext(stream))[1] == b"last words"
        with fails(VmConnectionError, "closed its channel"):
            await anext(stream)


async def test_half_a_frame_and_the_end(agent: Agent) -> None:
    call = asyncio.ensure_future(agent.channel.call("ping"))
    number = (await agent.request())[0]["id"]
    agent.raw(encode({"id": number, "ev": "done"})[:-1])
    agent.leave()
    with fails(VmConnectionError, "closed its channel"):
        await call


async def test_close_fails_the_requests_and_tells_nobody(agent: Agent) -> None:
    call = asyncio.ensure_future(agent.channel.call("ping"))
    await agent.request()
    agent.channel.close("the user wanted it")
    with fails(VmConnectionError, "the user wanted it"):
        await call
    assert agent.broken == []
    assert agent.channel.closed == "the user wanted it"


async def test_a_closed_channel_takes_no_requests_and_can_be_closed_again(agent: Agent) -> None:
    agent.channel.close("first")
    agent.channel.close("second")
    with fails(VmConnectionError, "first"):
        await agent.channel.call("ping")


async def test_close_closes_both_descriptors(agent: Agent) -> None:
    agent.channel.close()
    for fd in (agent.host_read, agent.host_write):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


async def test_writing_to_an_agent_that_only_stopped_reading(agent: Agent) -> None:
    os.close(agent.requests_fd)
    agent.requests_fd = -1
    with fails(VmConnectionError, "writing to the machine failed"):
        await agent.channel.call("ping")
    assert len(agent.broken) == 1


# --- writing ----------------------------------------------------------------------------------------------------------


async def test_large_requests_reach_a_slow_reader_whole_and_in_order(agent: Agent) -> None:
    """Together far more than the pipe and the channel's own buffer hold."""
    sizes = [MAX_PAYLOAD, 1, MAX_PAYLOAD - 7, 300_000, MAX_PAYLOAD, 0, MAX_PAYLOAD]
    calls = [
        asyncio.ensure_future(agent.channel.call("write", bytes([n]) * size, timeout=PATIENCE))
        for n, size in enumerate(sizes)
    ]
    seen: dict[int, bytes] = {}
    for _ in sizes:
        header, payload = await agent.request()
        seen[header["id"]] = payload
        agent.send({"id": header["id"], "ev": "done"})
    await asyncio.gather(*calls)
    assert [seen[number] for number in sorted(seen)] == [bytes([n]) * size for n, size in enumerate(sizes)]


async def test_writers_wait_while_the_agent_reads_nothing(agent: Agent) -> None:
    calls = [asyncio.ensure_future(agent.channel.call("write", bytes(MAX_PAYLOAD))) for _ in range(20)]
    for _ in range(50):
        await asyncio.sleep(0)
    assert agent.channel._out_size < 4 * MAX_PAYLOAD
    agent.channel.close()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [VmConnectionError] * 20


async def test_a_request_that_is_too_large_is_refused_and_never_sent(agent: Agent) -> None:
    with fails(ExecutionFailed, "too large") as info:
        await agent.channel.call("write", bytes(MAX_PAYLOAD + 1))
    assert info.value.retryable
    call = asyncio.ensure_future(agent.channel.call("ping"))
    header, _ = await agent.request()
    assert header["op"] == "ping"
    agent.send({"id": header["id"], "ev": "done"})
    await call


async def test_nothing_is_kept_of_requests_that_are_over(agent: Agent) -> None:
    async def one(n: int) -> None:
        with contextlib.suppress(VmExecutionError):
            await agent.channel.call("write", bytes(MAX_PAYLOAD + 1) if n % 3 == 0 else b"", n=n)

    calls = [asyncio.ensure_future(one(n)) for n in range(30)]
    for header in await agent.requests(20):
        agent.send({"id": header["id"], "ev": "error" if header["n"] % 3 == 1 else "done"})
    await asyncio.gather(*calls)
    assert not agent.channel._requests
    assert not agent.channel._abandoned
