"""Machines, spawner and service are killed at random while agents work. What an agent was told to have run is in its
sandbox, or is named as lost to whoever runs code in that next."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from emberbox.host.rundir import processes_of
from served import Served
from waiting import until

AGENTS = 3
SECONDS = float(os.environ.get("EMBERBOX_CHAOS_SECONDS", "12"))
"""Some in CI; minutes by hand."""
GONE = {404, 410, 503, 500}


@pytest.fixture
def server() -> Iterator[Served]:
    server = Served({
        "VM_EXECUTION__DEFAULT_VM_TYPE": "minimal",
        "ADOPTION_SECONDS": "30",
        "SERVER__DRAIN_SECONDS": "5",
    })  # fmt: skip
    server.start()
    yield server
    server.finish()


def machines(server: Served) -> list[int]:
    """The processes of its sandboxes."""
    return [pid for pid in processes_of(f"{server.run_dir}/") if b"runsc-sandbox" in _argv(pid)]


def kill_machines(server: Served) -> None:
    for pid in machines(server):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def spawners(server: Served) -> list[int]:
    return [pid for pid in processes_of(f"{server.run_dir}/") if b"spawner_main" in _argv(pid)]


def _argv(pid: int) -> bytes:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(psutil.Process(pid).cmdline()).encode()
    return b""


class Agent(threading.Thread):
    """Writes a line in each execution, looks at all lines, and holds them against what it was told."""

    def __init__(self, server: Served, number: int, stop: threading.Event) -> None:
        super().__init__(name=f"agent-{number}")
        self._server = server
        self._stop_now = stop
        self._random = random.Random(number)
        self._runs = 0
        self.sandbox = ""
        self.acknowledged: list[str] = []
        """Names of lines, in this sandbox."""
        self.ids: dict[str, str] = {}
        """The execution that wrote a line."""
        self.told: set[str] = set()
        """Executions that were named as lost."""
        self.wrong: list[str] = []
        self.seen = self.lost = 0

    def run(self) -> None:
        while not self._stop_now.is_set():
            with contextlib.suppress(httpx.HTTPError, OSError, ValueError), self._server.client() as client:
                while not self._stop_now.is_set():
                    self.step(client)
            self._stop_now.wait(0.05)

    def step(self, client: httpx.Client) -> None:
        """One execution, and now and then a snapshot."""
        self._runs += 1
        line = f"{self.name}.{self._runs}"
        if self.sandbox and self._random.random() < 0.3:
            client.post(f"/api/vms/{self.sandbox}/snapshots", json={})
        body = {"agent_id": self.name, "language": "bash", "code": f"echo {line} >> log; cat log"}
        answer = client.post("/api/llm/execute", json=body)
        if not answer.is_success:
            return
        done = answer.json()
        self.told.update(done.get("lost_executions") or [])
        self.sandbox = done["vm_id"]  # another one, where there was no snapshot to go on from
        if done["exit_code"] != 0:
            return
        self.check(done["stdout"].split())
        self.seen += 1
        self.acknowledged.append(line)
        self.ids[line] = done["execution_id"]

    def check(self, lines: list[str]) -> None:
        """Whatever was acknowledged is there, or was named as lost."""
        gone = [line for line in self.acknowledged if line not in lines]
        silent = [line for line in gone if self.ids[line] not in self.told]
        if silent:
            self.wrong.append(f"undone in silence: {silent}")
        twice = {line for line in lines if lines.count(line) > 1}
        if twice:
            self.wrong.append(f"ran twice: {sorted(twice)}")
        self.lost += len(gone)
        self.acknowledged = [line for line in self.acknowledged if line in lines]


def kill_something(server: Served, chance: random.Random) -> None:
    """A machine, mostly; now and then all at once, the spawner, or the service, which is started again."""
    kind = chance.choice(["machine", "machine", "machine", "machines", "spawner", "service", "machine and service"])
    targets = spawners(server) if kind == "spawner" else []
    if kind.startswith("machine"):
        found = machines(server)
        targets = found if kind == "machines" else found and [chance.choice(found)]
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if kind.endswith("service"):
        server.stop(signal.SIGKILL)
        server.start()


@pytest.mark.parametrize("seed", [1, 2])
def test_what_was_acknowledged_is_there_or_is_named_as_lost(server: Served, seed: int) -> None:
    stop, chance = threading.Event(), random.Random(seed)
    agents = [Agent(server, number, stop) for number in range(AGENTS)]
    for agent in agents:
        agent.start()
    try:
        end = time.monotonic() + SECONDS / 2
        while time.monotonic() < end:
            before = sum(agent.seen for agent in agents)
            until(lambda before=before: sum(agent.seen for agent in agents) > before + 3, "some work")  # type: ignore[misc]
            kill_something(server, chance)
    finally:
        stop.set()
        for agent in agents:
            agent.join(60)
    assert not any(agent.is_alive() for agent in agents), "somebody hangs"
    assert [text for agent in agents for text in agent.wrong] == []
    with server.client() as client:
        for agent in agents:
            until(lambda agent=agent, before=agent.seen: agent.step(client) or agent.seen > before, "an answer")  # type: ignore[misc]
            assert agent.wrong == []
        assert client.get("/api/history/verify").json()["intact"] is True
    print({agent.name: (agent.seen, agent.lost) for agent in agents})


def test_of_a_death_before_the_service_was_killed_the_next_caller_is_told(server: Served) -> None:
    """Nobody asked between the two: what the first one lost is not forgotten with the second."""
    body = {"agent_id": "ada", "language": "bash"}

    def run(client: httpx.Client, code: str) -> dict[str, object]:
        answer = client.post("/api/llm/execute", json=body | {"code": code})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    with server.client() as client:
        vm = run(client, "echo one > log")["vm_id"]
        assert client.post(f"/api/vms/{vm}/snapshots", json={}).status_code == 201
        lost = [run(client, f"echo {word} >> log")["execution_id"] for word in ("two", "three")]
        for _ in range(2):
            kill_machines(server)
            until(lambda: client.get(f"/api/vms/{vm}").json()["status"] == "provisioning", "its end")
            until(lambda: client.get(f"/api/vms/{vm}").json()["status"] == "ready", "another machine")
    server.stop(signal.SIGKILL)
    server.start()
    with server.client() as client:
        told = run(client, "cat log")
        assert (told["vm_id"], told["stdout"]) == (vm, "one\n")
        assert told["lost_executions"] == lost
        assert run(client, "true")["lost_executions"] == [], "once"


def test_a_machine_that_is_killed_whenever_it_comes_up_costs_no_sandbox(server: Served) -> None:
    """Whatever kills it may pass: its snapshots wait for that."""
    body = {"agent_id": "ada", "language": "bash"}
    with server.client() as client:
        vm = client.post("/api/llm/execute", json=body | {"code": "echo one > log"}).json()["vm_id"]
        assert client.post(f"/api/vms/{vm}/snapshots", json={}).status_code == 201
        lost = client.post("/api/llm/execute", json=body | {"code": "echo two >> log"}).json()["execution_id"]

        def suspended() -> bool:
            kill_machines(server)
            return bool(client.get(f"/api/vms/{vm}").json()["status"] == "paused")

        until(suspended, "its suspension")
        told = client.post("/api/llm/execute", json=body | {"code": "cat log"}).json()
        assert (told["vm_id"], told["stdout"], told["lost_executions"]) == (vm, "one\n", [lost])


def test_where_there_is_no_snapshot_whoever_works_in_the_next_sandbox_is_told(server: Served) -> None:
    """Also when the service is killed in between."""
    body = {"agent_id": "ada", "language": "bash"}
    with server.client() as client:
        first = client.post("/api/llm/execute", json=body | {"code": "echo one > log"}).json()
        kill_machines(server)
        until(lambda: client.get(f"/api/vms/{first['vm_id']}").status_code == 404, "its end")
    server.stop(signal.SIGKILL)
    server.start()
    with server.client() as client:
        told = client.post("/api/llm/execute", json=body | {"code": "cat log"}).json()
        assert told["vm_id"] != first["vm_id"]
        assert told["lost_executions"] == [first["execution_id"]]
        assert "this is another one; the effects of 1 execution before it are lost" in told["notes"][0]
        assert client.post("/api/llm/execute", json=body | {"code": "true"}).json()["lost_executions"] == []
