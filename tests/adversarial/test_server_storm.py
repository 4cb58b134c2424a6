"""Twenty agents at once, in no order; a server that is killed or stopped in the middle. Nothing leaks, nothing that was
acknowledged is lost, and what is told to have never run has never run."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import httpx
import psutil
import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect
from wire import defects, descriptors, gauge, memory

from served import Served
from waiting import until

AGENTS = 20
POOL = "/api/v2/vm-pool/status"
STORM_SECONDS = 2.0
FINE = {200, 201, 400, 404, 409, 422, 429, 503}
"""What an agent may be told in a storm: never a defect, never a time-out."""


@pytest.fixture
def server() -> Iterator[Served]:
    server = Served({
        "VM_EXECUTION__DEFAULT_VM_TYPE": "minimal",
        "MAX_SANDBOXES": "24",
        "CAPACITY_TIMEOUT_SECONDS": "5",
        "ADOPTION_SECONDS": "30",
        "SERVER__DRAIN_SECONDS": "5",
    })  # fmt: skip
    server.start()
    yield server
    server.finish()


class Agent(threading.Thread):
    """Does what it may with machines of its own, in random order, until it is told to stop."""

    def __init__(self, server: Served, number: int, stop: threading.Event) -> None:
        super().__init__(name=f"agent-{number}")
        self._server = server
        self._stop_now = stop
        self._random = random.Random(number)
        self.told: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.acknowledged: list[str] = []
        self.broken = 0

    def run(self) -> None:
        while not self._stop_now.is_set():
            try:
                with self._server.client() as client:
                    while not self._stop_now.is_set():
                        self._step(client)
            except (httpx.HTTPError, WebSocketException, OSError, KeyError):
                self.broken += 1
                self._stop_now.wait(0.05)

    def _post(self, client: httpx.Client, path: str, body: Any = None, method: str = "POST", **more: Any) -> Any:
        answer = client.request(method, path, json=body, **more)
        self.told[answer.status_code] += 1
        if answer.status_code not in FINE:
            self.wrong.append(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json() if answer.is_success else {}

    def _step(self, client: httpx.Client) -> None:
        steps = [self._execute, self._execute, self._execute, self._snapshot_and_back, self._kill, self._leave,
                 self._socket, self._batch, self._keyed]  # fmt: skip
        self._random.choice(steps)(client)

    def _code(self, **more: Any) -> dict[str, Any]:
        return {"agent_id": self.name, "language": "bash", "code": "echo x >> log; echo ok"} | more

    def _execute(self, client: httpx.Client) -> None:
        done = self._post(client, "/api/llm/execute", self._code())
        if done.get("exit_code") == 0:
            self.acknowledged.append(done["execution_id"])

    def _vm(self, client: httpx.Client) -> str:
        vms = self._post(client, f"/api/llm/vm-pool/{self.name}", method="GET")
        found = [vm["id"] for vm in vms.get("available_vms", []) + vms.get("in_use_vms", [])]
        return str(found[0]) if found else "sb-none"

    def _snapshot_and_back(self, client: httpx.Client) -> None:
        vm = self._vm(client)
        made = self._post(client, f"/api/vms/{vm}/snapshots", {})
        self._post(client, "/api/llm/execute", self._code())
        if made:
            self._post(client, f"/api/vms/{vm}/rollback/{made['snapshot_id']}", {})
            self._post(client, f"/api/vms/{vm}/snapshots/{made['snapshot_id']}", method="DELETE")

    def _kill(self, client: httpx.Client) -> None:
        self._post(client, f"/api/vms/{self._vm(client)}", method="DELETE")

    def _leave(self, client: httpx.Client) -> None:
        """In the middle of code that would not end."""
        body = self._code(code="sleep 30")
        with contextlib.suppress(httpx.TimeoutException):
            path = self._random.choice(["/api/llm/execute", "/api/llm/execute?stream=true"])
            client.post(path, json=body, timeout=self._random.uniform(0.01, 0.2))

    def _socket(self, client: httpx.Client) -> None:
        url = f"{self._server.url.replace('http', 'ws')}/ws/{self._vm(client)}"
        with contextlib.suppress(WebSocketException), connect(url, proxy=None, close_timeout=1) as socket:
            for number in range(3):
                data = {"language": "bash", "code": "echo hi; sleep 0.05", "execution_id": f"e{number}"}
                socket.send(json.dumps({"message_type": "LlmExecuteCode", "data": data}))
            socket.send(json.dumps({"message_type": "CancelExecution", "data": {"execution_id": "e1"}}))
            if self._random.random() < 0.5:
                with contextlib.suppress(TimeoutError):
                    socket.recv(timeout=0.5)

    def _batch(self, client: httpx.Client) -> None:
        mode = self._random.choice(["sequential", "parallel"])
        blocks = [{"language": "bash", "code": "echo a"}, {"language": "bash", "code": "echo b"}]
        self._post(client, "/api/v2/execute/batch", {
            "agent_id": self.name, "execution_mode": mode, "code_blocks": blocks,
        })  # fmt: skip

    def _keyed(self, client: httpx.Client) -> None:
        headers = {"Idempotency-Key": f"{self._random.random()}"}
        first = self._post(client, "/api/llm/execute", self._code(), headers=headers)
        again = self._post(client, "/api/llm/execute", self._code(), headers=headers)
        if first and again != first:
            self.wrong.append(f"another answer for the same key: {again}")


class Storm:
    """Agents at work. Use it as a context manager; they have stopped at its end."""

    def __init__(self, server: Served, agents: int = AGENTS) -> None:
        self._stop = threading.Event()
        self.agents = [Agent(server, number, self._stop) for number in range(agents)]

    def __enter__(self) -> Self:
        for agent in self.agents:
            agent.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for agent in self.agents:
            agent.join(60)
        assert not any(agent.is_alive() for agent in self.agents), "somebody hangs"

    @property
    def wrong(self) -> list[str]:
        return [text for agent in self.agents for text in agent.wrong]

    @property
    def acknowledged(self) -> int:
        return sum(len(agent.acknowledged) for agent in self.agents)


def blow(server: Served) -> Storm:
    """A storm for some seconds, and until something was done in it."""
    with Storm(server) as storm:
        end = time.monotonic() + STORM_SECONDS
        until(lambda: time.monotonic() > end and storm.acknowledged > AGENTS, "some load", 30)
    return storm


def nothing_runs(client: httpx.Client) -> None:
    for name in ("executions_running", "executions_waiting", "streams", "websockets", "approvals_waiting"):
        until(lambda name=name: gauge(client, f"emberbox_{name}") == 0, f"{name} to be 0")  # type: ignore[misc]


def children(pid: int) -> int:
    return len(psutil.Process(pid).children(recursive=True))


def test_a_storm_leaves_nothing_behind(server: Served) -> None:
    """The first one warms everything; what the second one leaves beyond that is a leak."""
    with server.client() as client:
        storms, figures = [], []
        for _ in range(2):
            storms.append(blow(server))
            nothing_runs(client)
            server.end_machines()
            until(lambda: client.get("/api/vms").json()["total"] == 0, "no machines")
            until(lambda: client.get(POOL).json()["pool_stats"]["in_use"] == 0, "no machines in use")
            figures.append((descriptors(server.pid), children(server.pid), memory(server.pid)))
    wrong = storms[0].wrong + storms[1].wrong
    assert wrong == [], (len(wrong), wrong[:5])
    told = sum((agent.told for storm in storms for agent in storm.agents), Counter())
    assert told[200] > told.total() / 2, told
    first, second = figures
    assert second[0] <= first[0] + 10, f"descriptors: {figures}"
    assert second[1] <= first[1] + 8, f"processes: {figures}"
    assert second[2] <= first[2] + (48 << 20), f"memory: {figures}"
    assert defects(server) == {}


def test_killed_in_the_storm_it_comes_back_with_what_it_had(server: Served) -> None:
    """Machines in every state: running, idle, paused, put under a name, just being made, copied, ended."""
    with server.client() as client:
        paused = client.post("/api/vms", json={"agent_id": "keeper", "vm_name": "paused"}).json()["id"]
        client.post(f"/api/vms/{paused}/pause")
        client.post("/sessions", json={"name": "s", "agent_id": "keeper"})
        client.post("/sessions/s/execute", json={"command": "X=1"})
    with Storm(server, 8) as storm:
        for _ in range(2):
            before = storm.acknowledged
            until(lambda before=before: storm.acknowledged > before + 20, "some load", 30)  # type: ignore[misc]
            server.stop(signal.SIGKILL)
            server.start()
    assert storm.wrong == [], storm.wrong[:5]
    with server.client() as client:
        nothing_runs(client)
        names = {vm["name"]: vm for vm in client.get("/api/vms").json()["vms"] if vm["agent_id"] == "keeper"}
        assert names.keys() == {"paused", "s"}
        assert client.post("/sessions/s/execute", json={"command": "echo $X"}).json()["stdout"] == "1\n"
        assert client.post(f"/api/vms/{paused}/resume").status_code == 200
        assert client.get("/api/history/verify").json()["intact"] is True
        for agent in storm.agents:
            found = client.get("/api/history", params={"agent_id": agent.name, "limit": 1000}).json()["history"]
            finished = {entry["execution_id"] for entry in found if entry["state"] == "finished"}
            assert set(agent.acknowledged[-50:]) <= finished, "an entry is lost"


def test_a_crash_leaves_no_machine_that_nobody_asked_for(server: Served) -> None:
    """Copies of a parallel batch and the machine of a probe are the server's own: after a crash they are gone, or at
    least not there for ever among the agent's."""
    with server.client() as client:
        vm = client.post("/api/vms", json={"agent_id": "ada"}).json()["id"]
        blocks = [{"language": "bash", "code": "sleep 20"}] * 3
        body = {"agent_id": "ada", "vm_id": vm, "execution_mode": "parallel", "code_blocks": blocks}

        def ask() -> None:
            with server.client() as own, contextlib.suppress(httpx.HTTPError):
                own.post("/api/v2/execute/batch", json=body)

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: gauge(client, "emberbox_executions_running") == 3, "the batch")
        server.stop(signal.SIGKILL)
        thread.join(20)
        server.start()
    with server.client() as client:
        assert [one["id"] for one in client.get("/api/vms").json()["vms"]] == [vm]


def test_stopped_in_the_storm_it_answers_or_refuses_and_goes(server: Served) -> None:
    """In good time (`stop` has a deadline); nobody is answered with a defect; the next one finds everything."""
    with Storm(server) as storm:
        until(lambda: storm.acknowledged > AGENTS, "some load", 30)
        status = server.stop(signal.SIGTERM)
    assert storm.wrong == [], storm.wrong[:5]
    assert status in {0, -signal.SIGTERM}
    assert defects(server) == {}
    server.start()
    with server.client() as client:
        assert client.get("/api/history/verify").json()["intact"] is True
        known = {vm["agent_id"] for vm in client.get("/api/vms").json()["vms"]}
        assert known <= {agent.name for agent in storm.agents}
        for agent in storm.agents[:5]:
            found = client.get("/api/history", params={"agent_id": agent.name, "limit": 1000}).json()["history"]
            finished = {entry["execution_id"] for entry in found if entry["state"] == "finished"}
            assert set(agent.acknowledged[-50:]) <= finished, "an entry is lost"


@pytest.fixture
def small() -> Iterator[Served]:
    """One place, and time to wait for it."""
    server = Served({
        "VM_EXECUTION__DEFAULT_VM_TYPE": "minimal",
        "VM_EXECUTION__VM_POOL_SIZE": "0",
        "MAX_SANDBOXES": "1",
        "CAPACITY_TIMEOUT_SECONDS": "20",
        "SERVER__DRAIN_SECONDS": "10",
    })  # fmt: skip
    server.start()
    yield server
    server.finish()


def test_what_waits_for_a_machine_can_be_cancelled(small: Served) -> None:
    """It is told to be stopped or not there; in neither case does it run afterwards."""
    answers: list[httpx.Response] = []
    key = {"Idempotency-Key": "k"}
    body = {"agent_id": "bob", "language": "bash", "code": "echo ran"}

    def ask() -> None:
        with small.client() as own:
            answers.append(own.post("/api/llm/execute", json=body, headers=key))

    with small.client() as client:
        vm = client.post("/api/vms", json={"agent_id": "ada"}).json()["id"]
        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: gauge(client, "emberbox_executions_waiting") == 1, "the execution to wait")
        client.post("/api/v2/executions/cancel", json={"idempotency_key": "k"})
        client.delete(f"/api/vms/{vm}")
        thread.join(30)
        assert not answers[0].is_success, "it ran after it was cancelled"
        assert client.get("/api/history", params={"agent_id": "bob"}).json()["total"] == 0


def test_while_it_drains_no_command_begins(small: Served) -> None:
    """In the background neither: it would be cut short at once."""
    with small.client() as client:
        vm = client.post("/api/vms", json={"agent_id": "ada"}).json()["id"]
        body = {"vm_id": vm, "language": "bash", "code": "while ! test -e go; do sleep 0.02; done"}

        def ask() -> None:
            with small.client() as own:
                own.post("/api/llm/execute", json=body)

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: gauge(client, "emberbox_executions_running") == 1, "the execution")
        stopping = threading.Thread(target=small.stop)
        stopping.start()
        until(lambda: client.get("/ready").status_code == 503, "the server to drain")
        command = {"cmd": "touch begun; sleep 5", "background": True}
        with client.stream("POST", f"/api/vms/{vm}/commands", json=command) as stream:
            first = next(stream.iter_text())
        client.put(f"/api/vms/{vm}/files", params={"path": "go"}, content=b"")
        thread.join(20)
        stopping.join(60)
    assert "event: started" not in first, first
