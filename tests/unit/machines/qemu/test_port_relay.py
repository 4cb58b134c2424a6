"""The relay in the guest on two ports: a greeting stands for a new connection. It runs here, between sockets and pipes;
what it would do to this host's clock and random numbers is left out."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from emberbox.guest import vm_init
from emberbox.guest.vm_init import GREETING, MAGIC, Port, PortRelay, accepted
from emberbox.machines.qemu.wake_handshake import greet


class Guest:
    def __init__(self) -> None:
        self.host, stream = socket.socketpair()
        self.greetings, greetings = socket.socketpair()
        self.agent_in, to_agent = os.pipe()
        from_agent, self.agent_out = os.pipe()
        self.host.settimeout(5)
        self.streams = [stream, greetings]
        relay = PortRelay(Port(stream.fileno()), Port(greetings.fileno()), to_agent, from_agent)
        self.thread = threading.Thread(target=relay.run, daemon=True)
        self.thread.start()
        self.pipes = [self.agent_in, to_agent, from_agent]

    def end(self) -> None:
        os.close(self.agent_out)  # as if the agent had ended
        self.thread.join(5)
        assert not self.thread.is_alive()
        for stream in [self.host, self.greetings, *self.streams]:
            stream.close()
        for fd in self.pipes:
            os.close(fd)


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    monkeypatch.setattr(vm_init, "heed", lambda greeting: None)
    guest = Guest()
    try:
        yield guest
    finally:
        guest.end()


async def test_after_a_greeting_bytes_go_both_ways(guest: Guest) -> None:
    guest.greetings.setblocking(False)
    await greet(guest.greetings, 5)
    guest.host.sendall(b"request")
    assert os.read(guest.agent_in, 100) == b"request"
    os.write(guest.agent_out, b"answer")
    assert guest.host.recv(100) == b"answer"
    await greet(guest.greetings, 5)  # a copy's
    os.write(guest.agent_out, b"again")
    assert guest.host.recv(100) == b"again"


def test_a_greeting_is_found_behind_the_rest_of_another(guest: Guest) -> None:
    greeting = GREETING.pack(MAGIC, 1, bytes(64))
    guest.greetings.settimeout(5)
    guest.greetings.sendall(b"rest of something" + greeting)
    assert guest.greetings.recv(100) == accepted(greeting)
