"""What a client may wish for: templates that the operator has made available, machines and times within the operator's
bounds, agents that are no part of the server."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect
from wire import defects

from emberbox import Sandbox
from emberbox.errors import ValidationFailed
from emberbox.server.tokens import TokenStore
from served import Served

BOUNDS = "VM_EXECUTION__SECURITY_SETTINGS__RESOURCE_LIMITS__MAX_"


class World:
    """A server with bounds of its own, a template of the operator's, and files of the host that are none of its."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ebs-wishes-", dir="/tmp"))
        own = self.folder / "templates"
        own.mkdir()
        (own / "offered.toml").write_text('suite = "bookworm"\npackages = ["python3"]\n[limits]\nprocesses = 700\n')
        (own / "wrong.toml").write_text("nonsense = 1\n")
        os.mkfifo(own / "pipe.toml")
        (self.folder / "secret").write_text("a private file of the host")
        self.there = self.folder / "mine.toml"
        self.there.write_text('[[files]]\npath = "/opt/x"\nsource = "secret"\n')
        self.fifo = self.folder / "fifo.toml"
        os.mkfifo(self.fifo)
        self.server = Served({
            "VM_EXECUTION__DEFAULT_VM_TYPE": "minimal", "TEMPLATES_DIR": str(own), "SERVER__MAX_SANDBOX_SECONDS": "600",
            "SERVER__MAX_COMMAND_SECONDS": "50", BOUNDS + "VCPUS": "3", BOUNDS + "PROCESSES": "300",
            BOUNDS + "OPEN_FILES": "2000", BOUNDS + "DISK_MB": "1500", BOUNDS + "TMP_MB": "300",
            BOUNDS + "OUTPUT_BYTES": str(2 << 20),
        }).start()  # fmt: skip
        self.api = self.server.client()

    def close(self) -> None:
        self.api.close()
        self.server.finish()
        for path in sorted(self.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.folder.rmdir()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture(autouse=True)
def _tidy(world: World) -> Iterator[None]:
    yield
    world.server.end_machines()


@pytest.fixture
def vm(world: World) -> str:
    return str(done(world.api.post("/api/vms", json={"agent_id": "ada"}), 201)["id"])


def done(response: httpx.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()


def refused(response: httpx.Response, *words: str) -> str:
    """The message and the remedy of a 400 that names these."""
    error = done(response, 400)["error"]
    assert error["code"] == "validation_failed", error
    text = f"{error['message']} {error['remediation']}"
    for word in words:
        assert word in text, text
    return text


# --- templates --------------------------------------------------------------------------------------------------------

MAKING = {"/api/vms": {}, "/sessions": {"name": "s"}, "/api/v2/vms/allocate": {}}


@pytest.mark.parametrize("path", MAKING)
def test_no_client_names_a_path(world: World, path: str) -> None:
    """Neither is such a file read, nor does the answer tell whether it is there; a FIFO keeps nobody waiting."""
    names = [
        world.there, world.folder / "not-there.toml", world.fifo, "./mine.toml", "mine.toml", "../mine", "/etc/passwd",
        "~/x.toml", "offered.toml", "offered\n", "Offered", "", "x" * 300, "pipe", "templates/offered", "..", "none",
    ]  # fmt: skip
    texts = []
    for name in map(str, names):
        text = refused(world.api.post(path, json=MAKING[path] | {"vm_type": name}), "vm_type")
        assert str(world.folder) not in text.replace(name or "\0", "")
        texts.append(text.replace(ascii(name), "<name>"))
    assert len(set(texts[:3])) == 1, "a file that is there, one that is not, and a FIFO"
    assert done(world.api.get("/api/vms"))["vms"] == []
    assert defects(world.server) == {}


def test_templates_of_the_operator_are_available(world: World) -> None:
    text = refused(world.api.post("/api/vms", json={"vm_type": "none"}), "default", "minimal", "offered")
    assert "mine" not in text
    vm = done(world.api.post("/sessions", json={"name": "s", "vm_type": "minimal"}), 201)["vm_id"]
    assert done(world.api.get(f"/api/vms/{vm}"))["vm_type"] == "minimal"


def test_a_template_of_the_operator_that_is_wrong_tells_clients_nothing(world: World) -> None:
    error = done(world.api.post("/api/vms", json={"vm_type": "wrong"}), 503)["error"]
    assert error["code"] == "image_error"
    assert "nonsense" not in str(error)
    assert str(world.folder) not in str(error)


def test_the_sdk_of_a_client_takes_names_too(world: World) -> None:
    with pytest.raises(ValidationFailed, match="vm_type"):
        Sandbox.create(str(world.there), base_url=world.server.url)


# --- limits of machines -----------------------------------------------------------------------------------------------

TOO_MUCH = {
    "memory_mb": 2049, "vcpus": 3.5, "processes": 301, "open_files": 2001, "disk_mb": 1501, "tmp_mb": 301,
    "output_bytes": (2 << 20) + 1,
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
def test_each_limit_of_a_machine_has_a_bound(world: World, name: str) -> None:
    asked = TOO_MUCH[name]
    most = 2048 if name == "memory_mb" else {"vcpus": 3, "output_bytes": 2 << 20}.get(name, int(asked) - 1)
    words = (name, str(asked), str(most), f"max_{name}")
    refused(world.api.post("/api/vms", json={"limits": {name: asked}}), *words)
    assert done(world.api.get("/api/vms"))["vms"] == []


def test_limits_of_other_routes_have_them_too(world: World) -> None:
    for path, body, name in (
        ("/sessions", {"name": "s", "vcpus": 4}, "vcpus"),
        ("/sessions", {"name": "s", "memory_mb": 5000}, "memory_mb"),
        ("/api/v2/vms/allocate", {"vm_config": {"vcpus": 4}}, "vcpus"),
        ("/api/v2/vms/allocate", {"vm_config": {"root_fs_size_gb": 2}}, "disk_mb"),
        ("/api/v2/vms/allocate", {"vm_config": {"memory_mb": 5000}}, "memory_mb"),
    ):
        refused(world.api.post(path, json=body), name, f"max_{name}")


def test_what_is_left_out_is_the_templates_own(world: World) -> None:
    """And no default that may be more."""
    vm = done(world.api.post("/api/vms", json={"limits": {"vcpus": 1, "processes": 300}}), 201)["id"]
    plain = done(world.api.post("/api/vms", json={}), 201)["id"]
    limits, own = (done(world.api.get(f"/api/vms/{one}/info"))["limits"] for one in (vm, plain))
    assert limits == own | {"vcpus": 1, "processes": 300}


# --- times ------------------------------------------------------------------------------------------------------------


def test_the_life_of_a_machine_has_a_bound(world: World, vm: str) -> None:
    words = ("timeout_seconds 601", "600", "max_sandbox_seconds")
    refused(world.api.post("/api/vms", json={"timeout_seconds": 601}), *words)
    refused(world.api.post(f"/api/vms/{vm}/fork", json={"timeout_seconds": 601}), *words)
    refused(world.api.post(f"/api/vms/{vm}/timeout", json={"seconds": 601}), "seconds 601", *words[1:])
    point = done(world.api.post(f"/api/vms/{vm}/snapshots", json={}), 201)["snapshot_id"]
    refused(world.api.post(f"/api/vms/{vm}/branch", json={"point": point, "timeout_seconds": 601}), *words)
    for path, body in (
        ("fork", {"timeout_seconds": None}), ("timeout", {"seconds": None}),
        ("branch", {"point": point, "timeout_seconds": None}),
    ):  # fmt: skip
        refused(world.api.post(f"/api/vms/{vm}/{path}", json=body), "for ever", "600")
    session = done(world.api.post("/sessions", json={"name": "s"}), 201)["vm_id"]
    allocated = done(world.api.post("/api/v2/vms/allocate", json={}), 201)["vm_id"]
    for one in (vm, session, allocated):
        assert done(world.api.get(f"/api/vms/{one}/info"))["end_at"] is not None, "who asks for none gets the longest"


def test_the_time_of_code_has_a_bound_everywhere(world: World, vm: str) -> None:
    code = {"language": "python", "code": "1"}
    named = code | {"vm_id": vm}
    for path, body in (
        ("/api/llm/execute", named | {"timeout_seconds": 61}),
        ("/api/v2/execute", named | {"timeout_ms": 61_000}),
        ("/api/v2/execute", named | {"timeout_ms": 61_000, "resource_limits": {"timeout_ms": 10}}),
        ("/api/v2/execute", named | {"timeout_ms": 10, "resource_limits": {"timeout_ms": 61_000}}),
        (f"/api/vms/{vm}/run", code | {"timeout_seconds": 61}),
    ):
        refused(world.api.post(path, json=body), "61", "60", "max_execution_time_seconds")
    answer: dict[str, Any] = {
        "llm_response": "Run:\n```python\n1\n```\n",
        "vm_config": {"execution_timeout_ms": 61_000},
    }
    refused(world.api.post("/api/llm/parse-execute", json=answer), "vm_config.execution_timeout_ms", "61000", "60000")
    session = {"command": "true", "timeout_seconds": 61}
    done(world.api.post("/sessions", json={"name": "s"}), 201)
    refused(world.api.post("/sessions/s/execute", json=session), "61", "60")
    batch = {"vm_id": vm, "code_blocks": [code | {"timeout_ms": 61_000}]}
    result = done(world.api.post("/api/v2/execute/batch", json=batch))["results"][0]
    assert (result["status"], "61" in result["error"]["message"]) == ("refused", True)


def test_the_time_of_a_command_has_a_bound(world: World, vm: str) -> None:
    for background in (False, True):
        body = {"cmd": "true", "timeout_seconds": 51, "background": background}
        text = world.api.post(f"/api/vms/{vm}/commands", json=body).text
        assert "timeout_seconds 51 is above the limit of 50" in text
        assert "max_command_seconds" in text
    assert "event: complete" in world.api.post(f"/api/vms/{vm}/commands", json={"cmd": "true"}).text


def test_more_output_than_the_machine_may_is_refused(world: World, vm: str) -> None:
    body = {"vm_id": vm, "language": "python", "code": "1", "resource_limits": {"output_bytes": 2 << 20}}
    refused(world.api.post("/api/v2/execute", json=body), "resource_limits.output_bytes", str(2 << 20), str(1 << 20))


def test_kept_snapshots_count_when_their_machine_is_gone() -> None:
    """Else who keeps and deletes in turn fills the disk."""
    server = Served({"VM_EXECUTION__DEFAULT_VM_TYPE": "minimal", "MAX_SNAPSHOT_MB_PER_AGENT": "1"}).start()
    try:
        with server.client() as api:
            for status in (201, 409):
                vm = done(api.post("/api/vms", json={"agent_id": "ada"}), 201)["id"]
                told = done(api.post(f"/api/vms/{vm}/snapshots", json={"snapshot_type": "kept"}), status)
                done(api.delete(f"/api/vms/{vm}"))
            assert told["error"]["code"] == "snapshot_failed"
    finally:
        server.finish()


# --- reserved names ---------------------------------------------------------------------------------------------------


def test_the_servers_own_agents_are_nobodys(world: World) -> None:
    agent = {"agent_id": "emberbox:probe"}
    code = agent | {"language": "python", "code": "1"}
    for path, body in (
        ("/api/vms", agent), ("/sessions", agent | {"name": "s"}), ("/api/v2/vms/allocate", agent),
        ("/api/llm/execute", code), ("/api/v2/execute", code),
        ("/api/llm/parse-execute", agent | {"llm_response": "Run:\n```python\n1\n```\n"}),
        ("/api/v2/execute/batch", agent | {"code_blocks": [{"language": "python", "code": "1"}]}),
    ):  # fmt: skip
        refused(world.api.post(path, json=body), "agent_id", "emberbox:")
    refused(world.api.get("/api/llm/vm-pool/emberbox:probe"), "emberbox:")
    assert done(world.api.get("/api/vms"))["vms"] == []


def test_nor_are_they_for_messages_tokens_and_the_sdk(world: World, vm: str) -> None:
    url = world.server.url.replace("http", "ws")
    with connect(f"{url}/ws/{vm}", proxy=None) as socket:
        socket.send(
            '{"message_type": "LlmExecuteCode", "data": {"language": "python", "code": "1", "agent_id": "emberbox:x"}}'
        )
        assert '"Error"' in (told := str(socket.recv(timeout=20)))
        assert "emberbox:" in told
    with connect(f"{url}/ws", proxy=None) as socket:
        socket.send(
            '{"command_type": "execute_code", "data": {"language": "python", "code": "1", "agent_id": "emberbox:x"}}'
        )
        assert '"error"' in (told := str(socket.recv(timeout=20)))
        assert "emberbox:" in told
    made = world.server.cli("token", "create", "x", "--agent", "emberbox:probe")
    assert (made.returncode, "emberbox:" in made.stderr) == (2, True), made.stderr
    with pytest.raises(ValidationFailed, match="emberbox:"):
        Sandbox.create("minimal", agent_id="emberbox:probe")


def test_a_token_bounds_the_machines_that_it_makes(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    token, _ = TokenStore(tokens).create("small", ["execute"], ["ada"], limits={"memory_mb": 256, "processes": 64})
    server = Served({"VM_EXECUTION__DEFAULT_VM_TYPE": "minimal", "SERVER__TOKEN_FILE": str(tokens)}).start()
    try:
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as api:
            for path, body in (
                ("/api/vms", {"limits": {"memory_mb": 300}}),
                ("/api/v2/vms/allocate", {"vm_config": {"memory_mb": 300}}),
                ("/sessions", {"name": "s", "memory_mb": 300}),
            ):
                answer = api.post(path, json=body)
                assert answer.status_code == 400, answer.text
                assert "memory_mb 300 is above the limit of 256" in answer.text
                assert "token" in answer.json()["error"]["remediation"]
            # nothing is asked for: no more is given
            code = "import resource; print(resource.getrlimit(resource.RLIMIT_NPROC)[0])"
            run = api.post("/api/llm/execute", json={"language": "python", "code": code}).json()
            assert run["stdout"] == "64\n"
            assert api.post("/sessions", json={"name": "s"}).json()["memory_mb"] == 256
    finally:
        server.finish()
