"""The agent's loop, and how what it sends is joined."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from emberbox.guest.channel import Channel
from emberbox.guest.fields import RequestFields
from emberbox.guest.kernel_process import KernelProcess
from emberbox.guest.limits import Settings
from emberbox.guest.loop import READ, Loop
from emberbox.guest.protocol import FrameDecoder, Header, encode
from emberbox.guest.streams import Capture

from .conftest import PATIENCE, Client


@pytest.fixture
def loop() -> Iterator[Loop]:
    before = signal.getsignal(signal.SIGCHLD)
    yield Loop()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, before)


def test_it_knows_which_pipes_were_empty_when_it_woke_up(loop: Loop) -> None:
    (first, wake), (full, fill), (bare, keep), (late, held) = (os.pipe() for _ in range(4))
    seen = []

    def look(_events: int) -> None:
        loop.watch(late, READ, lambda _: None)
        seen.append([loop.empty(fd) for fd in (full, bare, late, held)])
        os.read(first, 1)
        os.read(full, 1)
        if len(seen) == 1:
            os.write(fill, b"x")
            os.write(wake, b"x")
            return
        loop.stop()

    for fd in (first, full, bare):
        loop.watch(fd, READ, look if fd == first else lambda _: None)
    os.write(fill, b"x")
    os.write(wake, b"x")
    loop.run()
    # what is watched since this round only, or not at all, was not asked
    assert seen == [[False, True, False, False], [False, True, True, False]]
    for fd in (first, wake, full, fill, bare, keep, late, held):
        os.close(fd)


def frames(fd: int) -> list[str]:
    """Events of what one read gives."""
    decoder = FrameDecoder()
    decoder.feed(os.read(fd, 1 << 16))
    found = []
    while (frame := decoder.next()) is not None:
        found.append(frame[0]["ev"])
    return found


@pytest.fixture
def channel(loop: Loop) -> Iterator[tuple[Channel, int]]:
    """A channel, and where the host reads from it."""
    ours, theirs = os.pipe()
    answers, out = os.pipe()
    os.set_blocking(answers, False)

    def ignore(_header: Header, _payload: bytes) -> None:
        pass

    channel = Channel(loop, ours, out, ignore, loop.stop)
    loop.before_sleep.append(channel.flush)
    yield channel, answers
    channel.close()
    os.close(theirs)
    os.close(answers)


def test_a_frame_that_may_wait_leaves_with_the_next_one(channel: tuple[Channel, int]) -> None:
    ours, answers = channel
    ours.send_lazily({"id": 1, "ev": "started"})
    ours.send_lazily({"id": 1, "ev": "stdout"}, b"x")
    ours.flush()
    with pytest.raises(BlockingIOError):
        os.read(answers, 1)
    ours.send({"id": 1, "ev": "done"})
    ours.flush()
    assert frames(answers) == ["started", "stdout", "done"]


def test_a_frame_that_may_wait_does_not_wait_for_long(loop: Loop, channel: tuple[Channel, int]) -> None:
    ours, answers = channel
    ours.send_lazily({"id": 1, "ev": "started"})
    loop.watch(answers, READ, lambda _: loop.stop())
    loop.later(PATIENCE, loop.stop)
    loop.run()
    assert frames(answers) == ["started"]


def test_much_output_does_not_wait(channel: tuple[Channel, int]) -> None:
    ours, answers = channel
    ours.send_lazily({"id": 1, "ev": "started"})
    ours.send_lazily({"id": 1, "ev": "stdout"}, b"x" * 5000)
    ours.flush()
    assert frames(answers) == ["started", "stdout"]


def test_a_short_execution_is_one_write(agent: Client, context: str) -> None:
    agent.code("0", context=context)
    ident = agent.begin_code("40 + 2", context=context)
    agent.receive()
    # whatever else there is was read with the first event
    assert not agent.pending()
    agent.outcomes[ident].events += [frame for frame in iter(agent._decoder.next, None) if frame is not None]
    assert [header["ev"] for header, _ in agent.outcomes[ident].events] == ["started", "result", "done"]


def test_output_and_results_keep_their_order_and_none_is_lost(agent: Client, context: str) -> None:
    code = "for i in range(100):\n    print(i)\n    display(i)\nprint('last')\n'value'"
    events = agent.code(code, context=context).events
    said = b"".join(data if header["ev"] == "stdout" else b"" for header, data in events).split()
    assert said == [*(b"%d" % i for i in range(100)), b"last"]
    order = [header["ev"] for header, _ in events]
    results = [place for place, event in enumerate(order) if event == "result"]
    assert len(results) == 101
    # the first lines are there before the first result, the last one before the value
    assert order.index("stdout") < results[0]
    before_value = b"".join(data for header, data in events[: results[-1]] if header["ev"] == "stdout")
    assert before_value.endswith(b"last\n")


class Kernel(KernelProcess):
    """A kernel that is played by the test."""

    def start(self, fds: list[int]) -> None:
        self.control, _, self.out, _ = map(os.dup, fds)


class Heard:
    """What an execution hears, in order."""

    def __init__(self) -> None:
        self.said: list[object] = []
        self.stdout = self.stderr = Capture(1 << 20, self.said.append)
        self.late = b""

    def on_result(self, _header: Header, payload: bytes) -> None:
        self.said.append(payload)

    def on_done(self, _header: Header) -> None:
        self.said.append("done")

    def on_lost(self, _status: int | None) -> None:
        self.said.append("lost")


def test_output_between_two_frames_that_are_read_at_once_is_not_lost(loop: Loop, tmp_path: Path) -> None:
    first, wake = os.pipe()
    settings = Settings(RequestFields({"uid": os.getuid(), "home": str(tmp_path), "workdir": str(tmp_path)}))
    heard = Heard()

    def more(_events: int) -> None:
        # the loop has asked all descriptors, and is about to read the first frame
        os.read(first, 1)
        os.write(kernel.out, b"second")
        os.write(kernel.control, encode({"id": 1, "ev": "done"}))

    loop.watch(first, READ, more)
    kernel = Kernel(loop, settings)
    kernel.execute(heard, {}, b"", b"")
    os.write(kernel.control, encode({"id": 1, "ev": "result"}, b"first"))
    os.write(wake, b"x")
    loop.before_sleep.append(lambda: loop.stop() if "done" in heard.said else None)
    loop.later(PATIENCE, loop.stop)
    loop.run()
    assert heard.said == [b"first", b"second", "done"]
    kernel.died(0)
    for fd in (first, wake, kernel.control, kernel.out):
        os.close(fd)


def test_frames_of_a_peer_may_come_in_any_pieces(loop: Loop) -> None:
    ours, theirs = os.pipe()
    unused, out = os.pipe()
    heard: list[int] = []
    channel = Channel(loop, ours, out, lambda header, _: heard.append(header["id"]), loop.stop)
    data = b"".join(encode({"id": number, "ev": "x"}, bytes(30_000)) for number in range(1, 6))

    def feed() -> None:
        nonlocal data
        if data:
            data = data[os.write(theirs, data[:50_000]) :]
        elif len(heard) == 5:
            loop.stop()

    loop.before_sleep.append(feed)
    loop.later(PATIENCE, loop.stop)
    loop.run()
    assert heard == [1, 2, 3, 4, 5]
    channel.close()
    for fd in (theirs, unused):
        os.close(fd)
