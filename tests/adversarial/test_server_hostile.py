"""Bytes that no well-behaved client sends: the server refuses them, in bounded time and memory, and serves others."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import threading
import time
import zlib
from collections.abc import Iterator

import httpx
import pytest
from wire import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    Frames,
    defects,
    descriptors,
    exchange,
    frame,
    gauge,
    head,
    memory,
    open_socket,
    quiet,
    rest,
    statuses,
    well,
)

from served import Served
from waiting import PATIENCE, until

SLOW = 3.0
"""Seconds that this server has patience for."""
MIB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    server = Served({
        "SERVER__SLOW_REQUEST_SECONDS": f"{SLOW:g}",
        "SERVER__SLOW_READER_SECONDS": "2",
        "SERVER__MAX_BODY_BYTES": str(16 * MIB),
        "VM_EXECUTION__DEFAULT_VM_TYPE": "minimal",
        "BOOT_TIMEOUT_SECONDS": "20",
        "MAX_SANDBOXES": "12",
    })  # fmt: skip
    server.start()
    yield server
    server.finish()


@pytest.fixture(autouse=True)
def _as_before(server: Served) -> Iterator[None]:
    yield
    well(server)
    server.end_machines()


@pytest.fixture
def api(server: Served) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def vm(api: httpx.Client) -> str:
    answer = api.post("/api/vms", json={"agent_id": "ada"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


# --- HTTP that is none ------------------------------------------------------------------------------------------------

GET = "GET /api/vms HTTP/1.1\r\nHost: localhost\r\n"
POST = "POST /api/llm/execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SMUGGLED = GET + "\r\n"


@pytest.mark.parametrize(
    "data",
    {
        "both lengths": POST + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "both, other order": POST + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "two lengths": POST + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde" + SMUGGLED,
        "a list of lengths": POST + "Content-Length: 4, 4\r\n\r\nabcd" + SMUGGLED,
        "a negative length": POST + "Content-Length: -1\r\n\r\n" + SMUGGLED,
        "a length with a sign": POST + "Content-Length: +2\r\n\r\n{}" + SMUGGLED,
        "a length without end": POST + "Content-Length: 99999999999999999999999\r\n\r\n{}",
        "another coding": POST + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "chunked is not the last coding": POST + "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "a space before the colon": POST + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "a negative chunk": POST + "Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n" + SMUGGLED,
        "a chunk without end": POST + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        "a folded header": GET + "X-A: b\r\n c: d\r\n\r\n",
        "a NUL in a header": GET + "X-A: b\0c\r\n\r\n",
        "a bare CR in a header": GET + "X-A: b\rX-B: c\r\n\r\n",
        "bare LFs": GET.replace("\r\n", "\n") + "\n",
        "a control character in the path": "GET /api/\x01vms HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "8-bit characters in the path": "GET /api/vms/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "an unknown method": "FOOBAR /api/vms HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "an unknown version": "GET /api/vms HTTP/9.9\r\nHost: localhost\r\n\r\n",
        "CONNECT": "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "HTTP/2 by surprise": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "TLS by surprise": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "\0" * 50,
    }.items(),
    ids=lambda pair: pair[0],
)  # fmt: skip
def test_what_is_no_request_is_refused_once_and_the_connection_ends(server: Served, data: tuple[str, str]) -> None:
    """Nothing after it is taken for a request: a proxy before us might see other borders than we do."""
    with quiet(server):
        answer, closed = exchange(server, data[1].encode("latin-1"), seconds=5)
        assert statuses(answer) == [400]
        assert closed


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (GET + "Host: evil.example.com\r\nConnection: close\r\n\r\n", 403),
        ("GET /api/vms HTTP/1.1\r\nConnection: close\r\n\r\n", 403),
        ("GET /api/vms HTTP/1.0\r\n\r\n", 403),
        ("OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        ("GET /api/vms/%zz%ff%00%0d%0aX:%20y HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 400),
        ("GET /docs/assets/%00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 400),
        ("GET /docs/assets/..%2f..%2f..%2fetc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        ("GET /docs/../api/vms HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (GET + "Origin: http://[\r\nConnection: close\r\n\r\n", 403),
        (GET + "Origin: \xff\xfe\r\nConnection: close\r\n\r\n", 403),
        (GET + "Origin: http://localhost@evil.example.com\r\nConnection: close\r\n\r\n", 403),
        ("GET /api/vms HTTP/1.1\r\nHost: localhost:99999999\r\nConnection: close\r\n\r\n", 403),
        ("GET /api/vms HTTP/1.1\r\nHost: [::1\r\nConnection: close\r\n\r\n", 403),
        ("GET /api/vms HTTP/1.1\r\nHost: localhost\\evil\r\nConnection: close\r\n\r\n", 403),
    ],
)  # fmt: skip
def test_odd_requests_have_a_plain_answer(server: Served, data: str, expected: int) -> None:
    with quiet(server):
        answer, closed = exchange(server, data.encode("latin-1"), seconds=5)
        assert statuses(answer) == [expected]
        assert closed
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error["message"]


def test_requests_in_a_row_are_answered_in_their_order(server: Served, api: httpx.Client) -> None:
    data = "".join(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n{last}\r\n" for path, last in (
        ("health", ""), ("nowhere", ""), ("api/vms", ""), ("openapi.json", "Connection: close\r\n"),
    ))  # fmt: skip
    answer, closed = exchange(server, data.encode())
    assert statuses(answer) == [200, 404, 200, 200]
    assert closed


def test_a_client_that_waits_for_100_is_told_to_go_on(server: Served) -> None:
    body = b'{"language": "python", "code": "print(6 * 7)"}'
    with open_socket(server) as connection:
        lines = ["Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close"]
        connection.sendall(head("POST", "/api/llm/execute", "Expect: 100-continue", *lines))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        answer, closed = rest(connection)
    assert statuses(answer) == [200]
    assert b'"stdout":"42\\n"' in answer
    assert closed


@pytest.mark.parametrize("start", [b"GET /", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "], ids=["url", "header"])
def test_a_head_without_end_is_cut_off(server: Served, start: bytes) -> None:
    """Before anybody knows who sends it: it must cost nothing."""
    before = memory(server.pid)
    with open_socket(server) as connection:
        connection.sendall(start)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 24 * MIB:
                connection.sendall(b"y" * MIB)
                sent += MIB
        grown = memory(server.pid) - before
    assert grown < 12 * MIB, f"{grown >> 20} MiB more for a head of {sent >> 20} MiB"
    assert sent < 8 * MIB, "nobody stopped it"


def test_many_small_headers_are_cut_off(server: Served) -> None:
    with open_socket(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 1000:  # more than the buffers on the way hold
                connection.sendall(b"X-A: b\r\n" * 5000)
                sent += 1
    assert sent < 1000, "5,000,000 headers were taken"


@pytest.mark.parametrize("more", [["X: y"] * 300, ["X: " + "y" * 20_000]], ids=["many headers", "a long header"])
def test_a_handshake_with_too_many_headers_is_not_left_hanging(server: Served, more: list[str]) -> None:
    lines = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AA=="]
    _, closed = exchange(server, head("GET", "/ws", *more, *lines), seconds=SLOW + 5)
    assert closed


# --- clients that take their time -------------------------------------------------------------------------------------


def test_nobody_keeps_a_connection_by_being_slow(server: Served, api: httpx.Client) -> None:
    """Silent from the start; half a head; a head drop by drop: hung up. A body that does not come, or not to its end:
    refused. All in bounded time, and others are served meanwhile."""
    before = descriptors(server.pid)
    body = head("POST", "/api/llm/execute", "Content-Type: application/json", "Content-Length: 100")
    upload = head("PUT", "/api/vms/sb-none/files?path=x", "Content-Length: 100")
    starts = {"silent": b"", "half a head": b"GET /health HT", "drops": b"GET /", "no body": body,
              "half a body": body + b'{"language":', "half a file": upload + b"x"}  # fmt: skip
    connections = {name: open_socket(server) for name in starts}
    answers: dict[str, list[int]] = {}
    try:
        for name, data in starts.items():
            connections[name].sendall(data)
        deadline = time.monotonic() + SLOW + PATIENCE
        while len(answers) < len(starts) and time.monotonic() < deadline:
            assert api.get("/health").status_code == 200
            for name in starts.keys() - answers.keys():
                with contextlib.suppress(OSError):
                    if name == "drops":
                        connections[name].sendall(b"x")
                seen, closed = rest(connections[name], 0.05)
                if closed or seen:
                    answers[name] = statuses(seen)
    finally:
        for connection in connections.values():
            connection.close()
    assert {name for name, seen in answers.items() if not seen} == {"silent", "half a head", "drops"}
    assert {seen[0] // 100 for seen in answers.values() if seen} == {4}
    assert answers.keys() == starts.keys()
    until(lambda: descriptors(server.pid) <= before + 2, "descriptors to be given back")


def test_more_connections_than_it_takes(server: Served, api: httpx.Client) -> None:
    """They are refused at once, or are gone after a while; then everything is as before."""
    before = descriptors(server.pid)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as connections:
        for _ in range(min(1200, soft - 300)):
            connections.enter_context(open_socket(server))
        with server.client() as fresh:
            assert fresh.get("/health").status_code in {200, 503}
        until(lambda: descriptors(server.pid) < before + 50, "connections to be left", SLOW + 15)
        well(server)


def test_a_reader_of_a_file_that_takes_nothing_is_left(server: Served, api: httpx.Client, vm: str) -> None:
    """As one of a stream is (server.slow_reader_seconds, here 2): it would keep its place in the machine for ever."""
    data = b"x" * (24 * MIB)
    assert api.put(f"/api/vms/{vm}/files", params={"path": "big"}, content=data).status_code == 200
    with open_socket(server, receive_buffer=4096) as connection:
        connection.sendall(head("GET", f"/api/vms/{vm}/files?path=big", "Connection: close"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:  # it reads nothing, and others go on
            assert api.get("/health").status_code == 200
            time.sleep(0.2)
        seen, closed = rest(connection, 30)
    assert closed
    assert len(seen) < len(data), "it was waited for"


def test_a_client_that_says_no_more_is_answered_or_left(server: Served, api: httpx.Client, vm: str) -> None:
    """Half closed after the request, as `nc` does: an answer or a hang-up, and the code does not run on for nobody."""
    body = json.dumps({"vm_id": vm, "language": "bash", "code": "echo on; sleep 30"}).encode()
    lines = ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    with open_socket(server) as connection:
        connection.sendall(head("POST", "/api/llm/execute?stream=true", *lines) + body)
        assert b"HTTP/1.1 200" in connection.recv(1 << 16)
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection, 10)[1]
    until(lambda: gauge(api, "emberbox_executions_running") == 0, "the end of the execution")
    until(lambda: gauge(api, "emberbox_streams") == 0, "the end of the stream")


def test_clients_that_leave_are_no_errors_of_the_server(server: Served, api: httpx.Client, vm: str) -> None:
    """Neither in its log nor in its figures: alarms hang on both."""
    body = json.dumps({"vm_id": vm, "language": "bash", "code": "touch on; sleep 30"}).encode()
    lines = ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    with quiet(server):
        for path in ("/api/llm/execute", "/api/llm/execute?stream=true"):
            with open_socket(server) as connection:
                connection.sendall(head("POST", path, *lines) + body)
                until(lambda: gauge(api, "emberbox_executions_running") == 1, "the execution")
            until(lambda: gauge(api, "emberbox_executions_running") == 0, "its end")
        with Frames(server, "/ws") as frames:
            frames.send(CLOSE, b"\x03\xe8")
            assert frames.close_code() == 1000
        with Frames(server, f"/ws/{vm}"):
            pass
        until(lambda: gauge(api, "emberbox_websockets") == 0, "the end of the sockets")
    figures = [line for line in api.get("/metrics").text.splitlines() if 'status="500"' in line]
    assert [line for line in figures if "llm/execute" in line] == []


# --- WebSockets -------------------------------------------------------------------------------------------------------


def ask(code: str = "echo hi", name: str = "e") -> bytes:
    data = {"language": "bash", "code": code, "execution_id": name}
    return json.dumps({"message_type": "LlmExecuteCode", "data": data}).encode()


def test_fragments_make_one_message(server: Served, vm: str) -> None:
    with Frames(server, f"/ws/{vm}") as frames:
        text = ask()
        frames.send(TEXT, text[:5], fin=False)
        frames.send(PING, b"in between")
        frames.send(0, text[5:9], fin=False)
        frames.send(0, b"", fin=False)
        frames.send(0, text[9:])
        assert frames.receive() == (PONG, b"in between")
        kinds = [json.loads(frames.receive()[1])["message_type"] for _ in range(2)]
    assert kinds == ["LlmExecutionOutput", "LlmExecutionComplete"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(TEXT, b'{"a": "\xed\xa0\x80"}'), 1007),
        (frame(TEXT, b"{}", masked=False), 1002),
        (frame(TEXT, b"{}", rsv=4), 1002),
        (frame(3, b"{}"), 1002),
        (frame(0, b"{}"), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"x", fin=False), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
    ],
)
def test_frames_that_break_the_protocol_end_the_socket(server: Served, data: bytes, code: int) -> None:
    with Frames(server, "/ws") as frames:
        frames.socket.sendall(data)
        assert frames.close_code() in {code, None}


@pytest.mark.parametrize("fragments", [1, 20])
def test_a_message_that_is_too_long_ends_the_socket(server: Served, fragments: int) -> None:
    before = memory(server.pid)
    piece = b"x" * (20 * MIB // fragments)
    with Frames(server, "/ws") as frames:
        with contextlib.suppress(OSError):
            for number in range(fragments):
                frames.send(TEXT if number == 0 else 0, piece, fin=number == fragments - 1)
        assert frames.close_code() in {1009, None}
    assert memory(server.pid) - before < 80 * MIB


def test_a_bomb_of_compression_does_not_go_off(server: Served) -> None:
    """Some KiB that want to be 64 MiB each; and many messages below the limit in one go."""
    with Frames(server, "/ws", deflate=True) as frames:
        if b"permessage-deflate" not in frames.answer:
            return
        before = memory(server.pid)
        frames.send(TEXT, _deflated(b" " * (64 * MIB)), rsv=4)
        assert frames.close_code() in {1009, None}
    with Frames(server, "/ws", deflate=True) as frames:
        one = frame(TEXT, _deflated(b" " * (16 * MIB - 10)), rsv=4)
        with contextlib.suppress(OSError):
            frames.socket.sendall(one * 12)
        worst, deadline = 0, time.monotonic() + 3
        while time.monotonic() < deadline:
            worst = max(worst, memory(server.pid) - before)
            time.sleep(0.01)
    assert worst < 120 * MIB, f"{worst >> 20} MiB for {12 * len(one) >> 10} KiB"


def _deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, wbits=-12)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def test_pings_whose_answers_nobody_reads(server: Served) -> None:
    before = memory(server.pid)
    with Frames(server, "/ws", receive_buffer=4096) as frames:
        frames.socket.settimeout(3)
        pings = frame(PING, b"p" * 125) * 8000
        with contextlib.suppress(OSError):
            for _ in range(48):
                frames.socket.sendall(pings)
        assert memory(server.pid) - before < 16 * MIB
    well(server)


def test_messages_whose_answers_nobody_reads(server: Served, api: httpx.Client) -> None:
    """They are not taken any more; and after slow_reader_seconds the socket is left."""
    before = memory(server.pid)
    with Frames(server, "/ws", receive_buffer=4096) as frames:
        frames.socket.settimeout(2)
        messages = frame(TEXT, b'{"command_type": "dance"}') * 4000
        with contextlib.suppress(OSError):
            for _ in range(60):
                frames.socket.sendall(messages)
        assert memory(server.pid) - before < 32 * MIB
        until(lambda: gauge(api, "emberbox_websockets") == 0, "the socket to be left")


def test_a_socket_that_breaks_in_the_middle_of_a_message(server: Served, vm: str, api: httpx.Client) -> None:
    with quiet(server):
        for data in (frame(TEXT, ask())[:7], frame(TEXT, b"x" * 1000, fin=False), b"\x81\xff" + b"\0" * 4, b"\x81"):
            with Frames(server, f"/ws/{vm}") as frames:
                frames.socket.sendall(data)
        until(lambda: gauge(api, "emberbox_websockets") == 0, "the sockets to be given back")


def test_the_others_are_served_while_a_long_answer_is_searched(server: Served, api: httpx.Client) -> None:
    """A million characters of fenced blocks, the longest answer that is taken: one caller's text must not stop the
    server for seconds."""
    text = ("Run:\n\n```python\nprint(1)\n```\n\n" * 40_000)[: 1 << 20]
    found: list[int] = []

    def search() -> None:
        with server.client() as client:
            body = {"llm_response": text, "auto_execute": False}
            found.append(client.post("/api/llm/parse-execute", json=body).status_code)

    served, thread = 0, threading.Thread(target=search)
    thread.start()
    while thread.is_alive():
        assert api.get("/health").status_code == 200
        served += thread.is_alive()
        thread.join(0.05)
    assert found == [200]
    assert served > 4, "where it stops the server, one question is answered before it and one after it"


def test_nothing_of_all_this_was_an_error_of_the_server(server: Served) -> None:
    """The last one of this file: what the tests above have provoked, in its own words."""
    assert defects(server) == {}
