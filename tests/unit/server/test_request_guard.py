"""What stands before every request, without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from emberbox.models.server import ServerConfig
from emberbox.server.auth import Authenticator
from emberbox.server.request_guard import RequestGuard
from emberbox.server.tokens import TokenStore

Message = MutableMapping[str, Any]


class Seen:
    """The application behind the guard, and the observer beside it."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.requests: list[tuple[str, str, int]] = []
        self.body = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        more = scope["type"] == "http"
        while more:
            message = await receive()
            self.body += message.get("body", b"")
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def request_ended(self, method: str, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.requests.append((method, route, status))


class Caller:
    """Sends requests to a guard."""

    def __init__(self, tokens: Path, **config: Any) -> None:
        self.seen = Seen()
        self.store = TokenStore(tokens)
        settings = ServerConfig(**config)
        self._guard = RequestGuard(self.seen, Authenticator(self.store, settings), settings, self.seen)

    async def ask(
        self, method: str = "GET", path: str = "/api/vms",
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        pieces: tuple[bytes, ...] = (b"",), kind: str = "http",
    ) -> tuple[int, Any, dict[str, str]]:  # fmt: skip
        """The status, the JSON and the headers of the answer."""
        given = list(headers.items()) if isinstance(headers, dict) else list(headers or ())
        if not any(name.lower() == "host" for name, _ in given):
            given.append(("host", "localhost"))
        scope: Scope = {
            "type": kind, "method": method, "path": path, "headers": [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in given
            ], "client": ("1.2.3.4", 5), "extensions": {"websocket.http.response": {}},
        }  # fmt: skip
        left = list(pieces)
        sent: list[Message] = []

        async def receive() -> Message:
            if not left:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def send(message: Message) -> None:
            sent.append(message)

        await self._guard(scope, receive, send)
        start = next(message for message in sent if message["type"].endswith("response.start"))
        body = b"".join(message.get("body", b"") for message in sent)
        told = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        return start["status"], json.loads(body) if body else None, told


@pytest.fixture
def caller(tmp_path: Path) -> Caller:
    return Caller(tmp_path / "tokens.json", max_body_bytes=1024, allowed_hosts=["Box.example.com"],
                  allowed_origins=["https://ok.example.com"])  # fmt: skip


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("LOCALHOST:8080", 200), ("localhost.", 200), ("127.0.0.1", 200), ("[::1]:80", 200),
     ("box.example.com", 200), ("evil.example.com", 403), ("localhost.evil.com", 403), ("", 403), ("localhost:", 403),
     ("localhost:80:80", 403), ("a b", 403), ("localhost/x", 403), ("user@localhost", 403), ("127.0.0.1.evil.com", 403),
     ("0x7f.1", 403), ("2130706433", 403), ("\u00fc", 403), ("[::1", 403), ("::1", 403)],
)  # fmt: skip
async def test_names_by_which_it_may_be_called(caller: Caller, host: str, status: int) -> None:
    assert (await caller.ask(headers={"Host": host}))[0] == status


async def test_two_hosts_are_none(caller: Caller) -> None:
    assert (await caller.ask(headers=[("Host", "localhost"), ("Host", "localhost")]))[0] == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://ok.example.com", 200), ("HTTPS://OK.EXAMPLE.COM", 200), ("http://localhost", 200), ("null", 403),
     ("", 403),
     ("https://ok.example.com.evil.com", 403), ("https://evil.com/https://ok.example.com", 403),
     ("https://ok.example.com:8443", 403), ("http://ok.example.com", 403), ("http://localhost:3000", 403),
     ("http://localhost@evil.com", 403), ("http://[", 403), ("http://[::1", 403), ("localhost", 403),
     ("\u00ff", 403), ("http://x\\y", 403), ("file://", 403)],
)  # fmt: skip
async def test_pages_that_may_call_it(caller: Caller, origin: str, status: int) -> None:
    assert (await caller.ask(headers={"Origin": origin}))[0] == status
    assert (await caller.ask(headers={"Origin": origin}, kind="websocket"))[0] == status


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
)
async def test_what_a_browser_says_of_itself(caller: Caller, site: str, status: int) -> None:
    assert (await caller.ask(headers={"Sec-Fetch-Site": site}))[0] == status


async def test_what_is_public_and_what_only_looks_so(caller: Caller) -> None:
    caller.store.create("a", ["read"], ["*"])
    for path in ("/health", "/ready", "/docs", "/docs/x", "/openapi.json", "/"):
        assert (await caller.ask(path=path))[0] == 200, path
    for path in ("/api/vms", "/health/", "/healthx", "/health\n", "//health", "/HEALTH", "/api/health", "/metrics",
                 "/docsx",
                 "/docs\n/../api", "", "/openapi.json/"):  # fmt: skip
        assert (await caller.ask(path=path))[0] == 401, path
    assert (await caller.ask(path="/health", kind="websocket"))[0] == 401


async def test_bodies_that_are_too_long_whether_they_say_so_or_not(caller: Caller) -> None:
    assert (await caller.ask("POST", headers={"Content-Length": "1025"}))[0] == 413
    assert (await caller.ask("POST", pieces=(b"x" * 1024,)))[0] == 200
    for length in ("-1", "x", "", "1 2", "\u00b2", "1e3"):
        status, told, _ = await caller.ask("POST", headers={"Content-Length": length})
        assert status in {400, 413}, length
        assert told["error"]["message"]


async def test_only_files_may_be_longer(caller: Caller) -> None:
    long = {"Content-Length": "9999"}
    assert (await caller.ask("PUT", "/api/vms/sb-1/files", headers=long))[0] == 200
    for method, path in (("POST", "/api/vms/sb-1/files"), ("PUT", "/api/vms/sb-1/files/"), ("PUT", "/api/vms//files"),
                         ("PUT", "/api/vms/a/b/files"), ("PUT", "/x/api/vms/a/files")):  # fmt: skip
        assert (await caller.ask(method, path, headers=long))[0] == 413, (method, path)


async def test_ids_of_requests(caller: Caller) -> None:
    for given, taken in (("mine-1", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("", False)):
        told = (await caller.ask(headers={"X-Request-ID": given}))[2]["x-request-id"]
        assert (told == given) is taken
        assert told


async def test_what_is_counted_has_an_end(caller: Caller) -> None:
    """Names that callers choose are no labels: there would be no end of them."""
    for number in range(50):
        await caller.ask(f"METHOD{number}", f"/path/{number}")
    assert len({(method, route) for method, route, _ in caller.seen.requests}) == 1


async def test_a_refusal_tells_nothing_of_the_token(caller: Caller) -> None:
    token = caller.store.create("a", ["read"], ["*"])[0]
    for header in (f"Bearer {token}x", f"Basic {token}", token):
        status, told, headers = await caller.ask(headers={"Authorization": header})
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert token not in json.dumps(told)
    assert (await caller.ask(headers={"Authorization": f"Bearer {token}"}))[0] == 200
