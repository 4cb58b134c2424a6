"""Tokens: made, checked, revoked; and files of them that nobody should have touched."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from emberbox.errors import ConfigError, ValidationFailed
from emberbox.server.tokens import TokenStore


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "state" / "tokens.json")


def make(store: TokenStore, name: str = "ada", **more: Any) -> str:
    return store.create(name, ["read", "execute"], ["ada"], **more)[0]


def test_without_a_file_nobody_is_asked(store: TokenStore) -> None:
    assert not store.enforced
    assert store.records() == []
    assert store.check("ebx_000000000000_" + "x" * 43) is None


def test_a_token_is_let_in_until_it_is_revoked(store: TokenStore) -> None:
    server, token = TokenStore(store.path), make(store)
    found = server.check(token)
    assert found is not None
    assert (found.name, found.scopes, found.agents, found.state) == ("ada", ["read", "execute"], ["ada"], "active")
    store.revoke("ada")
    assert server.check(token) is None
    assert server.records()[0].state == "revoked"
    assert server.enforced


def test_the_secret_is_not_kept_and_the_file_is_private(store: TokenStore) -> None:
    secret = make(store).split("_", 2)[2]  # which may have more of these
    assert secret not in store.path.read_text()
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert store.path.parent.stat().st_mode & 0o077 == 0
    assert secret not in repr(store.records())


def test_the_secret_has_256_random_bits(store: TokenStore) -> None:
    secrets = {make(store, str(number)).split("_", 2)[2] for number in range(20)}
    assert len(secrets) == 20
    assert {len(base64.urlsafe_b64decode(secret + "=")) for secret in secrets} == {32}
    hashes = {record.hash for record in store.records()}
    assert {len(bytes.fromhex(one)) for one in hashes} == {32}, "SHA-256"


def test_tokens_are_compared_in_constant_time_also_where_there_is_none(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make(store)
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("emberbox.server.tokens.hmac.compare_digest", compare)
    assert store.check(token) is not None
    for wrong in (token[:-4] + "AAAA", "ebx_000000000000_" + "A" * 43, "nonsense"):
        assert store.check(wrong) is None
    assert len(compared) == 4, "each is compared"
    assert all(len(one) == len(other) == 64 for one, other in compared), "what is compared are hashes"


def test_a_token_expires(store: TokenStore) -> None:
    token = make(store, expires_in=timedelta(microseconds=1))
    assert store.check(token) is None
    assert store.records()[0].state == "expired"
    assert store.check(make(store, "bob", expires_in=timedelta(hours=1))) is not None


@pytest.mark.parametrize(
    "wrong",
    ["", "x", "ebx_", "Bearer", "ebx_{id}_", "ebx_{id}_" + "A" * 43, "ebx_ffffffffffff_{secret}", " {token}",
     "{token} ",
     "{token}\n", "{token}x", "EBX_{id}_{secret}", "\u0435bx_{id}_{secret}"],
)  # fmt: skip
def test_what_only_looks_like_a_token_is_none(store: TokenStore, wrong: str) -> None:
    token = make(store)
    _, token_id, secret = token.split("_", 2)
    assert store.check(wrong.format(id=token_id, secret=secret, token=token)) is None


def test_names_that_mean_several_are_not_revoked(store: TokenStore) -> None:
    make(store, "same")
    make(store, "same")
    with pytest.raises(ValidationFailed, match="Several"):
        store.revoke("same")
    first = store.records()[0].id
    store.revoke(first)
    store.revoke("same")
    assert {record.state for record in store.records()} == {"revoked"}
    when = store.records()[0].revoked_at
    store.revoke(first)
    assert store.records()[0].revoked_at == when


def test_a_file_that_is_gone_lets_nobody_in(store: TokenStore) -> None:
    token = make(store)
    assert store.enforced
    store.path.unlink()
    assert store.check(token) is None
    assert store.enforced


# --- files that nobody should have touched ----------------------------------------------------------------------------


TRIED = f"ebx_{'0' * 12}_{'A' * 43}"


def _record(**changes: Any) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    good = {"id": "0" * 12, "name": "a", "hash": "0" * 64, "scopes": ["read"], "agents": ["*"], "created_at": now}
    return good | changes


def _file(**changes: Any) -> str:
    return json.dumps({"version": 1, "tokens": [_record(**changes)]})


MALFORMED = {
    "nothing": "",
    "no JSON": "{",
    "another document": "[]",
    "another version": '{"version": 2, "tokens": []}',
    "binary": "\udcff\udcfe\udc80",
    "deep": "[" * 100_000,
    "a scope that is none": _file(scopes=["root"]),
    "a limit of nothing": _file(requests_per_second=0),
    "more than we know": _file(colour="red"),
    "a time without zone": _file(expires_at="2000-01-01T00:00:00", hash=hashlib.sha256(TRIED.encode()).hexdigest()),
    "a hash that is none": _file(hash="\u00fc" * 64),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_file_lets_nobody_in_and_says_so(store: TokenStore, text: str) -> None:
    token = make(store)
    assert store.check(token) is not None
    good = store.path.read_bytes()
    store.path.write_bytes(text.encode("utf-8", "surrogateescape"))
    for _ in range(2):
        try:
            assert store.check(TRIED) is None
            assert store.check(token) is None
        except ConfigError as error:
            assert str(store.path) in error.message  # noqa: PT017 (either is fine, another exception is not)
    store.path.write_bytes(good)
    assert store.check(token) is not None


def test_a_malformed_file_is_not_overwritten(store: TokenStore) -> None:
    make(store)
    store.path.write_text("{")
    with pytest.raises(ConfigError):
        make(store, "bob")
    assert store.path.read_text() == "{"


@contextlib.contextmanager
def within(seconds: float) -> Iterator[Callable[[Callable[[], object]], object]]:
    """Call something that may hang, in a thread; it must have ended in time."""

    def call(work: Callable[[], object]) -> object:
        found: list[object] = []

        def run() -> None:
            try:
                found.append(work())
            except BaseException as error:  # noqa: BLE001 (looked at below)
                found.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds)
        assert not thread.is_alive(), "it hangs"
        return found[0]

    yield call


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _directory(path: Path) -> None:
    path.mkdir(mode=0o700)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    path.chmod(0o600)


def _link_to_a_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("fifo"), 0o600)
    path.symlink_to(path.with_name("fifo"))


def _link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def _link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _large(path: Path) -> None:
    """A TiB that takes no space on the disk; who reads it whole has no memory left."""
    with path.open("wb") as file:
        file.truncate(1 << 40)
    path.chmod(0o600)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_lets_nobody_in(store: TokenStore) -> None:
    """Its owner may read it, and write tokens of his own into it."""
    token = make(store)
    os.chown(store.path, 12345, 12345)
    with pytest.raises(ConfigError, match="another user's") as error:
        store.check(token)
    assert error.value.remediation == f"chown 0 {store.path}"
    os.chown(store.path, 0, 0)
    assert store.check(token) is not None


def test_what_is_wrong_with_a_file_is_told_without_what_stands_there(store: TokenStore) -> None:
    """The message goes into the server's log."""
    token = make(store)
    hashed = store.records()[0].hash
    for text in (f'{{"tokens": [{{"hash": "{hashed}", "token": "{token}"}}]}}', f'{{"{token}", "{hashed}"'):
        store.path.write_text(text)
        with pytest.raises(ConfigError) as error:
            TokenStore(store.path).records()
        told = f"{error.value.message} {error.value.remediation}"
        assert token[:30] not in told
        assert hashed[:12] not in told
        assert hashed[-12:] not in told


ODD = [_fifo, _directory, _socket, _link_to_a_fifo, _link_to_nothing, _link_to_itself, _link_to_a_device, _large]


@pytest.mark.parametrize("odd", ODD, ids=lambda make: make.__name__)
def test_what_is_no_file_of_tokens_lets_nobody_in_and_does_not_hang(
    store: TokenStore, odd: Callable[[Path], None]
) -> None:
    """The server asks in its event loop: to wait here is to serve nobody."""
    token = make(store)
    assert store.check(token) is not None
    store.path.unlink()
    odd(store.path)
    with within(3) as call:
        assert isinstance(call(lambda: store.check(token)), ConfigError | None)
        assert call(lambda: store.enforced) in {True} or isinstance(call(lambda: store.enforced), ConfigError)


def test_a_file_that_cannot_be_read_is_not_read_again_and_again(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request asks: what was wrong with a large file need not be found out each time."""
    token = make(store)
    store.check(token)
    store.path.write_text("{" * 1000)
    reads = 0
    load = TokenStore._load

    def counted(self: TokenStore) -> Any:
        nonlocal reads
        reads += 1
        return load(self)

    monkeypatch.setattr(TokenStore, "_load", counted)
    for _ in range(20):
        with contextlib.suppress(ConfigError):
            store.check(token)
    assert reads <= 2


# --- two at once ------------------------------------------------------------------------------------------------------

_MAKER = """
import sys
from pathlib import Path
from emberbox.server.tokens import TokenStore
store = TokenStore(Path(sys.argv[1]))
for number in range(40):
    name = f"{sys.argv[2]}-{number}"
    store.create(name, ["read"], ["*"])
    if number % 2:
        store.revoke(name)
"""


def test_two_processes_at_once_lose_no_token(store: TokenStore) -> None:
    """While a server reads."""
    command = [sys.executable, "-c", _MAKER, str(store.path)]
    processes = [subprocess.Popen([*command, name]) for name in ("a", "b")]
    deadline = time.monotonic() + 60
    while any(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        store.records()
    assert [process.returncode for process in processes] == [0, 0]
    records = {record.name: record.state for record in store.records()}
    assert records == {f"{who}-{n}": "revoked" if n % 2 else "active" for who in "ab" for n in range(40)}
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["tokens.json", "tokens.json.lock"]


def test_a_disk_that_is_full_leaves_the_file_as_it_was(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    token = make(store)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        make(store, "bob")
    monkeypatch.undo()
    assert store.check(token) is not None
    assert [record.name for record in store.records()] == ["ada"]
    assert [path.name for path in store.path.parent.iterdir() if path.suffix not in {".json", ".lock"}] == []
