"""Clients that send much at once, or do not read what they asked for: the server's memory has bounds, those who want
more are told so, and everybody else is served."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from wire import TEXT, Frames, defects, gauge, head, memory, open_socket, rest, statuses, well

from emberbox import VmExecutionClient
from emberbox.models import VmExecutionConfig
from served import Served
from waiting import until

MIB = 1 << 20
BODY = 8 * MIB
INCOMING, EACH, UNREAD, PAGE = 48 * MIB, 24 * MIB, 32 * MIB, 4 * MIB
ENTRIES = 120
PRINTED = 200_000


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    server = Served({
        "SERVER__SLOW_READER_SECONDS": "2",
        "SERVER__SLOW_REQUEST_SECONDS": "20",
        "SERVER__MAX_BODY_BYTES": str(BODY),
        "SERVER__MAX_INCOMING_BYTES": str(INCOMING),
        "SERVER__MAX_INCOMING_BYTES_PER_CALLER": str(EACH),
        "SERVER__MAX_UNREAD_BYTES": str(UNREAD),
        "SERVER__MAX_PAGE_BYTES": str(PAGE),
        "VM_EXECUTION__DEFAULT_VM_TYPE": "minimal",
        "VM_EXECUTION__VM_POOL_SIZE": "0",
        "VM_EXECUTION__HISTORY__MAX_HISTORY_ENTRIES": "100000",
    })  # fmt: skip
    server.start()
    yield server
    server.finish()


@pytest.fixture(autouse=True)
def _as_before(server: Served, filled: str) -> Iterator[None]:
    del filled  # its machine is there from the beginning
    before = sockets_of(server)
    yield
    with server.client() as api:
        until(lambda: gauge(api, "emberbox_incoming_bytes") == 0, "requests to be forgotten")
        until(lambda: gauge(api, "emberbox_unread_bytes") == 0, "answers to be forgotten")
    until(lambda: sockets_of(server) <= before + 1, "connections to be given back")
    well(server)


@pytest.fixture
def api(server: Served) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def sockets_of(server: Served) -> int:
    """How many it has; other descriptors come and go with its machine."""
    links = []
    for entry in Path(f"/proc/{server.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(entry.readlink()))
    return sum(link.startswith("socket:") for link in links)


def caller(server: Served, number: int) -> socket.socket:
    """A connection from an address of its own, which is a caller of its own where there are no tokens."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), 20, (f"127.0.0.{10 + number}", 0))


# --- long requests ----------------------------------------------------------------------------------------------------


def begun(connection: socket.socket, size: int = BODY) -> None:
    """Send a request but for its last byte."""
    lines = ["Content-Type: application/json", f"Content-Length: {size}"]
    data = head("POST", "/api/llm/execute", *lines) + b'{"code": "' + b"x" * (size - 11)

    def send() -> None:
        with contextlib.suppress(OSError):
            connection.sendall(data)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize(("callers", "status", "words"), [(1, 429, b"of this caller"), (15, 503, b"The server holds")])
def test_many_long_requests_at_once(server: Served, api: httpx.Client, callers: int, status: int, words: bytes) -> None:
    """What one caller has under way is bounded, and what all have."""
    most = EACH if callers == 1 else INCOMING
    before = memory(server.pid)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(caller(server, n % callers)) for n in range(30)]
        for connection in connections:
            begun(connection)
        waiting = list(connections)
        answers: list[bytes] = []

        def refused() -> bool:
            for connection in list(waiting):
                seen, closed = rest(connection, 0.05)
                if seen or closed:
                    answers.append(seen)
                    waiting.remove(connection)
            return len(answers) >= 30 - most // BODY

        until(refused, "those beyond the bound to be refused", 60)
        until(lambda: gauge(api, "emberbox_incoming_bytes") == most, "the others to be counted")
        assert Counter(found for answer in answers for found in statuses(answer)) == {status: 30 - most // BODY}
        assert all(words in answer and b"retry-after: 1" in answer.lower() for answer in answers)
        assert memory(server.pid) - before < 4 * most
        small = {"llm_response": "nothing to run", "auto_execute": False}
        assert api.post("/api/llm/parse-execute", json=small).status_code == 200


def test_a_request_of_unknown_length_is_counted_as_it_comes(server: Served, api: httpx.Client) -> None:
    chunk = b"%x\r\n" % MIB + b"x" * MIB + b"\r\n"
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(open_socket(server)) for _ in range(3)]
        for connection in first:
            begun(connection)
        until(lambda: gauge(api, "emberbox_incoming_bytes") == EACH, "them to be counted")
        connection = stack.enter_context(open_socket(server))
        lines = ["Content-Type: application/json", "Transfer-Encoding: chunked"]
        with contextlib.suppress(OSError):
            connection.sendall(head("POST", "/api/llm/execute", *lines) + chunk)
        seen, _ = rest(connection, 20)
        assert statuses(seen) == [429], seen


def test_many_unfinished_messages_of_sockets(server: Served) -> None:
    before = memory(server.pid)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(Frames(server, "/ws")) for _ in range(20)]
        for frames in sockets:
            with contextlib.suppress(OSError):
                frames.send(TEXT, b'"' + b"x" * (7 * MIB), fin=False)
        codes = Counter(_code(frames) for frames in sockets)
        assert codes[1013] + codes[None] >= 15, codes
        assert codes[1013] > 0
        assert memory(server.pid) - before < 4 * EACH


def _code(frames: Frames) -> object:
    """Why the server closed it; `open` where it did not."""
    frames.socket.settimeout(1)
    try:
        return frames.close_code()
    except (TimeoutError, AssertionError):
        return "open"


def test_a_message_in_very_many_fragments(server: Served, api: httpx.Client) -> None:
    """A byte in each: what is kept is the bytes, not half a million objects."""
    before = memory(server.pid)
    with Frames(server, "/ws") as frames:
        frames.send(TEXT, b'"', fin=False)
        fragment = b"\x00\x81\0\0\0\0x"
        for _ in range(100):
            frames.socket.sendall(fragment * 5000)
        frames.socket.sendall(b'\x80\x81\0\0\0\0"')
        told = json.loads(frames.receive()[1])
        assert memory(server.pid) - before < 24 * MIB
    assert told["response_type"] == "error"


# --- answers that nobody reads ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(server: Served) -> str:
    """A machine with many executions that printed much: one that ran, and copies of its entry."""
    with server.client() as api:
        ran = api.post("/api/llm/execute", json={"agent_id": "ada", "language": "bash", "code": "echo hi"}).json()
    database = sqlite3.connect(server.state / "history.db", timeout=60)
    with contextlib.closing(database), database:
        database.row_factory = sqlite3.Row
        row = dict(database.execute("SELECT * FROM history_entries WHERE id = ?", (ran["execution_id"],)).fetchone())
        for number in range(1, ENTRIES):
            new = row | {"id": f"ex-{number:04}", "number": -number, "stdout": "é" * PRINTED}
            marks = ", ".join("?" * len(new))
            database.execute(f"INSERT INTO history_entries VALUES ({marks})", list(new.values()))  # noqa: S608
    return str(ran["vm_id"])


def test_a_long_history_comes_in_pages(server: Served, api: httpx.Client, filled: str) -> None:
    """Each entry once, in order, whatever fits into a page; and the limit is that of all pages."""
    seen: list[str] = []
    before: dict[str, str] = {}
    while True:
        answer = api.get(f"/api/vms/{filled}/history", params={"limit": 10_000, **before})
        page = answer.json()
        assert page["total"] == ENTRIES
        assert len(answer.content) < 3 * PAGE
        seen += [entry["id"] for entry in page["history"]]
        if page["next"] is None:
            break
        assert page["next"] == seen[-1]
        before = {"before": page["next"]}
    assert len(seen) == len(set(seen)) == ENTRIES
    assert seen[1:] == [f"ex-{number:04}" for number in range(1, ENTRIES)]
    odd = api.get(f"/api/vms/{filled}/history", params={"before": "ex-none"})
    assert odd.status_code == 400
    assert "ex-none" in odd.json()["error"]["message"]


async def test_clients_read_all_pages(server: Served, filled: str) -> None:
    async with VmExecutionClient(VmExecutionConfig(api_base_url=server.url)) as client:
        found = await client.query_history(filled, limit=100)
        assert [entry.id for entry in found.history[1:]] == [f"ex-{number:04}" for number in range(1, 100)]
        assert len((await client.query_history(filled, limit=10_000)).history) == ENTRIES


@pytest.mark.parametrize("close", ["", "Connection: close"])
def test_answers_that_nobody_reads_are_given_up(server: Served, api: httpx.Client, filled: str, close: str) -> None:
    """Sixty pages that are asked for and not read: they are bounded together, and after a while all are left."""
    before, open_before = memory(server.pid), sockets_of(server)
    worst = 0
    with contextlib.ExitStack() as stack:
        for number in range(60):
            connection = stack.enter_context(open_socket(server, receive_buffer=4096))
            connection.sendall(head("GET", f"/api/vms/{filled}/history?limit=1000", *([close] if close else [])))
            if number % 10 == 9:
                worst = max(worst, memory(server.pid) - before)
        until(lambda: sockets_of(server) <= open_before + 1, "all of them to be left", 60)
        worst = max(worst, memory(server.pid) - before)
    assert worst < 8 * UNREAD, f"{worst >> 20} MiB"


def test_pages_that_are_asked_for_on_a_socket_and_not_read(server: Served, api: httpx.Client, filled: str) -> None:
    before = memory(server.pid)
    ask = json.dumps({"message_type": "QueryHistory", "data": {"limit": 1000}}).encode()
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            frames = stack.enter_context(Frames(server, f"/ws/{filled}", receive_buffer=4096))
            for _ in range(30):
                frames.send(TEXT, ask)
        until(lambda: gauge(api, "emberbox_websockets") == 0, "the sockets to be left", 60)
        assert memory(server.pid) - before < 8 * UNREAD


def test_who_reads_slowly_but_reads_is_served(server: Served, api: httpx.Client, filled: str) -> None:
    lines = head("GET", f"/api/vms/{filled}/history?limit=1000", "Connection: close")
    with open_socket(server, receive_buffer=65536) as connection:
        connection.sendall(lines)
        seen = b""
        while piece := connection.recv(1 << 16):
            seen += piece
            if len(seen) % 7 == 0:
                assert api.get("/health").status_code == 200
    body = seen.partition(b"\r\n\r\n")[2]
    assert json.loads(body)["history"]


def test_nothing_of_all_this_was_an_error_of_the_server(server: Served) -> None:
    assert defects(server) == {}
