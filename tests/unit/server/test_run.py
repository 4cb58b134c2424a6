"""The start of a server: where it listens, and from when on."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from emberbox.config import Settings
from emberbox.errors import ConfigError
from emberbox.server.run import _listen, check_binding, notify_systemd
from emberbox.server.tokens import TokenStore


def test_who_is_told_of_the_address_can_connect() -> None:
    """It is announced, to people and to systemd, when the application is up: what comes then must not be refused."""
    with contextlib.closing(_listen("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname(), 5):
        pass


@pytest.mark.parametrize(("host", "port"), [("no such host", 80), ("203.0.113.1", 0), ("", -1), ("a" * 300, 80)])
def test_where_nobody_can_listen_is_told(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match="Cannot listen"):
        _listen(host, port)


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),  # noqa: S104
     ("10.0.0.1", False), ("", False), ("localhost.example.com", False), ("::ffff:10.0.0.1", False), ("0", False)],
)  # fmt: skip
def test_where_others_come_in_tokens_are_needed(settings: Settings, tmp_path: Path, host: str, alone: bool) -> None:
    there = settings.model_copy(update={"server": settings.server.model_copy(update={"host": host})})
    store = TokenStore(tmp_path / "tokens.json")
    if alone:
        check_binding(there, store)
        return
    with pytest.raises(ConfigError, match="token"):
        check_binding(there, store)
    store.create("a", ["read"], ["*"])
    check_binding(there, store)


def test_systemd_is_told_where_it_wants_to_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify_systemd("READY=1")
    for wrong in ("nowhere", str(tmp_path / "none"), "/" + "x" * 500):
        monkeypatch.setenv("NOTIFY_SOCKET", wrong)
        notify_systemd("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.settimeout(5)
        heard.bind(str(tmp_path / "s"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "s"))
        notify_systemd("READY=1")
        assert heard.recv(100) == b"READY=1"
