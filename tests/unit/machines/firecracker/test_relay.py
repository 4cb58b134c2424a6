"""The relay in the guest: the newest connection counts, and nothing of the host's gets lost or out of order.

It runs here, between real sockets and pipes. What it would do to this host's clock and random numbers is left out.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emberbox.guest import vm_init
from emberbox.guest.vm_init import Relay


class Listener(socket.socket):
    """A Unix socket that names its peers as vsock does."""

    def accept(self) -> tuple[socket.socket, Any]:
        return super().accept()[0], (vm_init.HOST_CID, 1)


class Guest:
    """A relay that runs, and the agent's ends of its pipes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = Listener(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(4)
        self.agent_in, self.to_agent = os.pipe()
        self.from_agent, self.agent_out = os.pipe()
        relay = Relay(self.listener, self.to_agent, self.from_agent)
        self.thread = threading.Thread(target=relay.run, daemon=True)
        self.thread.start()

    def connect(self) -> socket.socket:
        host = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        host.settimeout(5)
        host.connect(str(self.path))
        assert host.recv(1) == vm_init.ACCEPTED
        return host

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += os.read(self.agent_in, size - len(data))
        return data

    def end(self) -> None:
        os.close(self.agent_out)  # as if the agent had ended
        self.thread.join(5)
        assert not self.thread.is_alive()
        self.listener.close()
        for fd in (self.agent_in, self.to_agent, self.from_agent):
            os.close(fd)


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    monkeypatch.setattr(Relay, "_greet", staticmethod(lambda connection, _: connection.sendall(vm_init.ACCEPTED)))
    guest = Guest(tmp_path / "v.sock")
    yield guest
    guest.end()


def receive(host: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := host.recv(size - len(data))):
        data += part
    return data


def test_bytes_go_both_ways(guest: Guest) -> None:
    with guest.connect() as host:
        host.sendall(b"request")
        assert guest.read(7) == b"request"
        os.write(guest.agent_out, b"answer")
        assert receive(host, 6) == b"answer"


def test_much_goes_through_although_nobody_reads_at_first(guest: Guest) -> None:
    data = os.urandom(3_000_000)
    with guest.connect() as host:
        sender = threading.Thread(target=host.sendall, args=(data,))
        sender.start()
        assert guest.read(len(data)) == data
        sender.join()
        writer = threading.Thread(target=_write_all, args=(guest.agent_out, data))
        writer.start()
        assert receive(host, len(data)) == data
        writer.join()


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def test_the_agent_does_not_notice_another_connection(guest: Guest) -> None:
    with guest.connect() as first:
        first.sendall(b"half of a fra")
        assert guest.read(13) == b"half of a fra"
        first.shutdown(socket.SHUT_WR)
        assert first.recv(1) == b"", "the relay has heard of the end; what it took before is lost with the connection"
    os.write(guest.agent_out, b"while nobody listened, ")  # waits in the pipe
    with guest.connect() as second:
        second.sendall(b"me")
        assert guest.read(2) == b"me"
        os.write(guest.agent_out, b"and after")
        assert receive(second, 32) == b"while nobody listened, and after"


def test_the_newest_connection_counts(guest: Guest) -> None:
    with guest.connect() as old, guest.connect() as new:
        assert old.recv(1) == b""
        os.write(guest.agent_out, b"x")
        assert new.recv(1) == b"x"


def test_what_is_not_the_host_is_refused(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    with guest.connect() as host:
        monkeypatch.setattr(Relay, "_greet", staticmethod(refuse))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.settimeout(5)
            other.connect(str(guest.path))
            assert other.recv(1) == b""
        os.write(guest.agent_out, b"x")
        assert host.recv(1) == b"x"
