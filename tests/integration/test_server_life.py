"""A server that is stopped, killed and started again; clients that leave, are slow, or ask twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from served import Served
from waiting import until

WAIT = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('done')"
BEAT = "import time\nwhile True: open('beat', 'a').write('x'); time.sleep(0.01)"


@pytest.fixture
def server() -> Iterator[Served]:
    """A server of this test's own."""
    server = Served(
        {
            "SERVER__DRAIN_SECONDS": "20",
            "SERVER__SLOW_READER_SECONDS": "1",
            "SERVER__SLOW_REQUEST_SECONDS": "1",
            "ADOPTION_SECONDS": "30",
            "VM_EXECUTION__SECURITY_SETTINGS__RESOURCE_LIMITS__MAX_OUTPUT_BYTES": str(64 << 20),
        }
    )
    server.start()
    yield server
    server.finish()


def make(client: httpx.Client, **more: Any) -> str:
    answer = client.post("/api/vms", json={"vm_type": "minimal", "agent_id": "ada"} | more)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def run(client: httpx.Client, vm: str, code: str, language: str = "python", **headers: str) -> httpx.Response:
    body = {"agent_id": "ada", "vm_id": vm, "language": language, "code": code}
    return client.post("/api/llm/execute", json=body, headers=headers)


def exists(client: httpx.Client, vm: str, path: str) -> bool:
    return client.get(f"/api/vms/{vm}/files/info", params={"path": path}).status_code == 200


def size(client: httpx.Client, vm: str, path: str) -> int:
    return int(client.get(f"/api/vms/{vm}/files/info", params={"path": path}).json()["size"])


def stands_still(client: httpx.Client, vm: str, path: str) -> bool:
    """The file does not grow while code runs in the machine that would have let it."""
    before = size(client, vm, path)
    run(client, vm, "sleep 0.1", "bash")
    return size(client, vm, path) == before


# --- idempotency keys -------------------------------------------------------------------------------------------------


def test_a_request_with_a_key_runs_once(server: Served) -> None:
    with server.client() as client:
        vm = make(client)
        key = {"Idempotency-Key": "k1"}
        first = run(client, vm, "echo x >> f; wc -l < f", "bash", **key)
        again = run(client, vm, "echo x >> f; wc -l < f", "bash", **key)
        assert first.json()["stdout"].strip() == "1"
        assert again.json() == first.json()
        other = run(client, vm, "echo other", "bash", **key)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")
        assert run(client, vm, "cat f", "bash").json()["stdout"] == "x\n"
        server.stop()
        server.start()
    with server.client() as client:
        assert run(client, vm, "echo x >> f; wc -l < f", "bash", **key).json() == first.json()
        assert run(client, vm, "cat f", "bash").json()["stdout"] == "x\n"
        for bad in ("", "x" * 201):
            assert run(client, vm, "echo", "bash", **{"Idempotency-Key": bad}).status_code == 400


def test_two_requests_with_one_key_at_once_run_once(server: Served) -> None:
    answers: list[Any] = []
    with server.client() as client:
        vm = make(client)

        def ask() -> None:
            with server.client() as own:
                answers.append(run(own, vm, f"open('n', 'a').write('x')\n{WAIT}", **{"Idempotency-Key": "k"}).json())

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: exists(client, vm, "n"), "the execution")
        client.put(f"/api/vms/{vm}/files", params={"path": "go"}, content=b"")
        for thread in threads:
            thread.join(30)
        assert size(client, vm, "n") == 1
    assert len(answers) == 3
    assert answers[0] == answers[1] == answers[2]


def test_a_refusal_leaves_the_key_free(server: Served) -> None:
    with server.client() as client:
        vm = make(client)
        key = {"Idempotency-Key": "k"}
        assert run(client, vm, "rm -rf /", "bash", **key).status_code == 422
        assert run(client, vm, "echo ok", "bash", **key).json()["stdout"] == "ok\n"


def test_a_key_that_a_killed_server_left_is_answered_with_a_conflict(server: Served) -> None:
    with server.client() as client:
        vm = make(client)
        thread = threading.Thread(target=lambda: _broken(server, vm))
        thread.start()
        until(lambda: exists(client, vm, "beat"), "the execution")
        server.stop(signal.SIGKILL)
        thread.join(30)
    server.start()
    with server.client() as client:
        again = run(client, vm, BEAT, **{"Idempotency-Key": "k"})
        assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")
        assert again.json()["error"]["retryable"] is False


def _broken(server: Served, vm: str) -> None:
    with server.client() as client, contextlib.suppress(httpx.HTTPError):
        run(client, vm, BEAT, **{"Idempotency-Key": "k"})


# --- clients that leave -----------------------------------------------------------------------------------------------


def leave_in_the_middle(server: Served, vm: str, path: str, **headers: str) -> None:
    """Send a request, wait until its code runs, and hang up."""
    body = json.dumps({"agent_id": "ada", "vm_id": vm, "language": "python", "code": BEAT}).encode()
    host, _, port = server.url.removeprefix("http://").partition(":")
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((host, int(port))) as connection, server.client() as client:
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{more}"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: exists(client, vm, "beat"), "the execution")


@pytest.mark.parametrize("path", ["/api/llm/execute", "/api/llm/execute?stream=true", "/api/v2/execute?stream=true"])
def test_code_stops_when_its_client_leaves(server: Served, path: str) -> None:
    with server.client() as client:
        vm = make(client)
        leave_in_the_middle(server, vm, path)
        until(lambda: stands_still(client, vm, "beat"), "the end of the execution")
        entry = client.get(f"/api/vms/{vm}/history", params={"failures_only": True}).json()["history"][0]
        assert entry["command"] == BEAT
        assert run(client, vm, "print('fine')").json()["stdout"] == "fine\n"


def test_with_a_key_it_goes_on_until_it_is_cancelled(server: Served) -> None:
    with server.client() as client:
        vm = make(client)
        leave_in_the_middle(server, vm, "/api/llm/execute", **{"Idempotency-Key": "k"})
        assert not stands_still(client, vm, "beat")
        for cancelled in (True, False):
            answer = client.post("/api/v2/executions/cancel", json={"idempotency_key": "k"})
            assert answer.json() == {"cancelled": cancelled}
            until(lambda: stands_still(client, vm, "beat"), "the end of the execution")
        assert client.post("/api/v2/executions/cancel", json={}).status_code == 400


def test_who_waits_is_told_that_it_was_stopped(server: Served) -> None:
    with server.client() as client, server.client() as other:
        vm = make(client)
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(run(client, vm, BEAT, **{"Idempotency-Key": "k"})))
        thread.start()
        until(lambda: exists(other, vm, "beat"), "the execution")
        assert other.post("/api/v2/executions/cancel", json={"idempotency_key": "k"}).json() == {"cancelled": True}
        thread.join(30)
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (409, "cancelled")
    assert answers[0].json()["error"]["retryable"] is False


def test_a_stream_has_no_key(server: Served) -> None:
    with server.client() as client:
        body = {"agent_id": "ada", "language": "bash", "code": "echo"}
        answer = client.post("/api/llm/execute?stream=true", json=body, headers={"Idempotency-Key": "k"})
        assert answer.status_code == 400


@pytest.mark.parametrize(
    "start",
    [
        b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: ",
        b"POST /api/llm/execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
    ],
)  # fmt: skip
def test_requests_that_do_not_end_are_ended(server: Served, start: bytes) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(30)
        connection.sendall(start)
        said = b""
        while piece := connection.recv(4096):
            said += piece
    assert said == b"" or b"400" in said.split(b"\r\n")[0]
    with server.client() as client:
        assert client.get("/health").status_code == 200


def test_code_stops_when_its_socket_breaks(server: Served) -> None:
    with server.client() as client:
        vm = make(client)
        with connect(f"{server.url.replace('http', 'ws')}/ws/{vm}", proxy=None) as socket_:
            message = {"message_type": "LlmExecuteCode", "data": {"language": "python", "code": BEAT}}
            socket_.send(json.dumps(message))
            until(lambda: exists(client, vm, "beat"), "the execution")
            socket_.socket.shutdown(socket.SHUT_RDWR)
        until(lambda: stands_still(client, vm, "beat"), "the end of the execution")


@pytest.mark.parametrize("way", ["events", "socket"])
def test_a_reader_that_takes_nothing_is_left(server: Served, way: str) -> None:
    """Its code waits for it, then it is ended; others are served meanwhile, and memory is not filled."""
    code = "while True: print('x' * 1000)"
    with server.client() as client:
        vm = make(client, limits={"output_bytes": 64 << 20, "memory_mb": 512})
        host, _, port = server.url.removeprefix("http://").partition(":")
        if way == "events":
            connection = socket.create_connection((host, int(port)))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            body = json.dumps({"agent_id": "ada", "vm_id": vm, "language": "python", "code": code})
            head = f"POST /api/llm/execute?stream=true HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            _ended_for(client, vm)
            connection.close()
        else:
            url = f"{server.url.replace('http', 'ws')}/ws/{vm}"
            with connect(url, proxy=None, max_queue=1, close_timeout=1) as socket_:
                message = {"message_type": "LlmExecuteCode", "data": {"language": "python", "code": code}}
                socket_.send(json.dumps(message))
                _ended_for(client, vm)
        assert run(client, vm, "print('fine')").json()["stdout"] == "fine\n"


def _ended_for(client: httpx.Client, vm: str) -> None:
    def ended() -> bool:
        found = client.get(f"/api/vms/{vm}/history").json()["history"]
        return bool(found) and found[0]["state"] == "finished"

    until(ended, "the end of the execution")


def test_ten_megabytes_of_output(server: Served) -> None:
    code = "import sys\nfor _ in range(160): sys.stdout.write('x' * 65536)"
    with server.client() as client:
        vm = make(client, limits={"output_bytes": 16 << 20, "memory_mb": 512})
        answer = run(client, vm, code).json()
        assert (len(answer["stdout"]), answer["stdout_truncated"]) == (10 << 20, False)
        body = {"agent_id": "ada", "vm_id": vm, "language": "python", "code": code}
        with client.stream("POST", "/api/llm/execute?stream=true", json=body) as stream:
            events = "".join(stream.iter_text()).split("\n\n")
        sizes = [len(json.loads(one.partition("data: ")[2])["content"]) for one in events if "event: stdout" in one]
        assert sum(sizes) == 10 << 20


# --- stop, kill, start ------------------------------------------------------------------------------------------------


def test_a_stop_waits_for_what_runs_and_takes_nothing_new(server: Served) -> None:
    answers: list[httpx.Response] = []
    with server.client() as client, server.client() as other:
        vm = make(client)
        other.get("/health")  # a connection that is open already
        thread = threading.Thread(target=lambda: answers.append(run(client, vm, f"open('on', 'w')\n{WAIT}")))
        thread.start()
        until(lambda: exists(other, vm, "on"), "the execution")
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        until(lambda: other.get("/ready").status_code == 503, "the server to drain")
        refused = run(other, vm, "echo", "bash")
        assert (refused.status_code, refused.json()["error"]["retryable"]) == (503, True)
        assert refused.headers["Retry-After"]
        assert other.put(f"/api/vms/{vm}/files", params={"path": "go"}, content=b"").status_code == 200
        thread.join(30)
        stopping.join(60)
    assert answers[0].json()["stdout"] == "done\n"
    server.start()
    with server.client() as client:
        assert client.get(f"/api/vms/{vm}/history").json()["history"][0]["success"] is True


def test_a_second_signal_ends_it_at_once(server: Served) -> None:
    with server.client() as client:
        vm = make(client)
        thread = threading.Thread(target=lambda: _broken(server, vm))
        thread.start()
        until(lambda: exists(client, vm, "beat"), "the execution")
        os.kill(server.pid, signal.SIGTERM)
        until(lambda: client.get("/ready").status_code == 503, "the server to drain")
        server.stop(signal.SIGTERM)
        thread.join(30)


def test_machines_sessions_and_variables_survive_a_restart(server: Served) -> None:
    with server.client() as client:
        vm = make(client, vm_name="mine")
        run(client, vm, "x = 42")
        client.post("/sessions", json={"name": "s", "vm_type": "minimal", "agent_id": "ada"})
        client.post("/sessions/s/execute", json={"command": "X=1"})
    server.stop()
    server.start()
    with server.client() as client:
        assert {one["name"] for one in client.get("/api/vms").json()["vms"]} == {"mine", "s"}
        assert run(client, vm, "x").json()["results"][0]["text"] == "42"
        assert client.post("/sessions/s/execute", json={"command": "echo $X"}).json()["stdout"] == "1\n"


def test_one_server_at_a_time(server: Served) -> None:
    second = server.another("--port", "0")
    assert second.returncode == 2
    assert "another process" in second.stderr.lower()


def test_killed_under_load_nothing_that_was_acknowledged_is_lost(server: Served) -> None:
    """Clients count in files of their machines. After each kill: what was answered is in the history and in the
    machine, and nothing ran twice."""
    acknowledged: dict[str, list[str]] = {}
    stop = threading.Event()

    def work(agent: str, vm: str) -> None:
        number = 0
        while not stop.is_set():
            try:
                with server.client() as client:
                    while not stop.is_set():
                        number += 1
                        body = {"agent_id": agent, "vm_id": vm, "language": "bash", "code": f"echo {number} >> log"}
                        answer = client.post("/api/llm/execute", json=body)
                        if answer.is_success and answer.json()["exit_code"] == 0:
                            acknowledged[vm].append(f"{number} {answer.json()['execution_id']}")
            except httpx.HTTPError:
                time.sleep(0.05)

    with server.client() as client:
        machines = {f"agent-{n}": make(client, agent_id=f"agent-{n}") for n in range(4)}
    acknowledged.update({vm: [] for vm in machines.values()})
    threads = [threading.Thread(target=work, args=pair) for pair in machines.items()]
    for thread in threads:
        thread.start()
    for _ in range(2):
        counts = {vm: len(done) for vm, done in acknowledged.items()}
        until(lambda c=counts: all(len(acknowledged[vm]) > c[vm] + 5 for vm in c), "some load")  # type: ignore[misc]
        server.stop(signal.SIGKILL)
        server.start()
    stop.set()
    for thread in threads:
        thread.join(60)
    with server.client() as client:
        assert client.get("/api/history/verify").json()["intact"] is True
        for agent, vm in machines.items():
            body = {"agent_id": agent, "vm_id": vm, "language": "bash", "code": "cat log"}
            lines = client.post("/api/llm/execute", json=body).json()["stdout"].split()
            assert len(lines) == len(set(lines)), "something ran twice"
            assert {done.split()[0] for done in acknowledged[vm]} <= set(lines), "an effect is lost"
            history = client.get(f"/api/vms/{vm}/history", params={"limit": 1000}).json()["history"]
            known = {entry["execution_id"] for entry in history if entry["state"] == "finished"}
            assert {done.split()[1] for done in acknowledged[vm][-20:]} <= known, "an entry is lost"
