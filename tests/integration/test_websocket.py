"""Both WebSocket protocols, on a real server process with real machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from served import Served

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def vm(served: Served) -> Iterator[str]:
    """A machine of agent ada's."""
    with served.client() as client:
        made = client.post("/api/vms", json={"vm_type": "minimal", "agent_id": "ada"}).json()
        yield str(made["id"])
    served.end_machines()


@pytest.fixture
def socket(served: Served, vm: str) -> Iterator[ClientConnection]:
    """A socket to that machine."""
    with connect(f"{served.url.replace('http', 'ws')}/ws/{vm}", proxy=None) as socket:
        yield socket


def send(socket: ClientConnection, kind: str, **data: Any) -> None:
    socket.send(json.dumps({"message_type": kind, "data": data}))


def receive(socket: ClientConnection) -> tuple[str, Any]:
    message = json.loads(socket.recv(timeout=60))
    assert set(message) == {"message_type", "data"}
    return message["message_type"], message["data"]


def until(socket: ClientConnection, kind: str, execution_id: str | None = None) -> list[tuple[str, Any]]:
    """Messages up to the next one of this kind (about this execution)."""
    seen = []
    while True:
        seen.append(receive(socket))
        if seen[-1][0] == kind and execution_id in (None, seen[-1][1].get("execution_id")):
            return seen


def test_code_is_run_and_its_output_comes_as_it_is_printed(socket: ClientConnection) -> None:
    code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7"
    send(socket, "LlmExecuteCode", agent_id="ada", language="python", code=code, execution_id="mine")
    seen = until(socket, "LlmExecutionComplete")
    output = [data for kind, data in seen if kind == "LlmExecutionOutput"]
    assert {data["execution_id"] for _, data in seen} == {"mine"}
    told = {data["stream"]: data["content"] for data in output}
    assert told == {"stdout": "out\n", "stderr": "err\n", "result": "42"}
    complete = seen[-1][1]
    assert (complete["status"], complete["exit_code"]) == ("completed", 0)
    assert complete["duration_ms"] > 0
    assert complete["history_id"].startswith("ex-")
    assert complete["response"]["stdout"] == "out\n"


def test_several_executions_share_a_socket(socket: ClientConnection) -> None:
    """The second one ends while the first one waits for it: each in a language of its own."""
    wait = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('waited')"
    send(socket, "LlmExecuteCode", language="python", code=wait, execution_id="one")
    send(socket, "LlmExecuteCode", language="bash", code="echo second", execution_id="two")
    assert until(socket, "LlmExecutionComplete")[-1][1]["execution_id"] == "two"
    send(socket, "LlmExecuteCode", language="bash", code="touch go", execution_id="three")
    ended = {until(socket, "LlmExecutionComplete")[-1][1]["execution_id"] for _ in range(2)}
    assert ended == {"one", "three"}
    send(socket, "LlmExecuteCode", language="python", code="import time; time.sleep(60)", execution_id="same")
    send(socket, "LlmExecuteCode", language="bash", code="echo", execution_id="same")
    assert "under way" in until(socket, "Error")[-1][1]["message"]
    send(socket, "CancelExecution", execution_id="same")
    until(socket, "LlmExecutionComplete", "same")


def test_cancelled_code_stops_and_the_machine_goes_on(socket: ClientConnection) -> None:
    code = "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.01); open('beat', 'a').write('x')"
    send(socket, "LlmExecuteCode", language="python", code=code, execution_id="long")
    assert receive(socket)[1]["content"] == "begun\n"
    send(socket, "CancelExecution", execution_id="long")
    assert until(socket, "LlmExecutionComplete", "long")[-1][1]["status"] == "cancelled"
    check = "a=$(stat -c %s beat); sleep 0.3; b=$(stat -c %s beat); test $a = $b && echo stopped"
    send(socket, "LlmExecuteCode", language="bash", code=check, execution_id="check")
    assert until(socket, "LlmExecutionComplete", "check")[-1][1]["response"]["stdout"] == "stopped\n"
    send(socket, "CancelExecution", execution_id="long")
    assert "long" in until(socket, "Error")[-1][1]["message"]


def test_an_answer_is_run_block_by_block(socket: ClientConnection) -> None:
    blocks = ("python\nprint('a')", "bash\nrm -rf /", "bash\necho b")
    answer = "".join(f"Run:\n\n```{block}\n```\n\n" for block in blocks)
    send(socket, "LlmParseExecute", llm_response=answer, execution_id="all", auto_execute_threshold=0.0)
    seen = until(socket, "LlmParseComplete")
    complete = [(data["execution_id"], data["status"]) for kind, data in seen if kind == "LlmExecutionComplete"]
    assert sorted(name for name, _ in complete) == ["all:0", "all:1", "all:2"]
    assert sorted(status for _, status in complete) == ["completed", "completed", "refused"]
    printed = [data["content"] for kind, data in seen if kind == "LlmExecutionOutput"]
    assert printed == ["a\n", "b\n"]
    assert seen[-1][1]["status"] == "completed"
    assert [error["code"] for error in seen[-1][1]["errors"]] == ["blocked_by_policy"]


def test_history_snapshot_and_rollback(socket: ClientConnection) -> None:
    send(socket, "LlmExecuteCode", language="python", code="x = 1", execution_id="a")
    until(socket, "LlmExecutionComplete")
    send(socket, "CreateSnapshot", name="one", description="first", agent_id="ada")
    snapshot = until(socket, "SnapshotCreated")[-1][1]["snapshot_id"]
    send(socket, "LlmExecuteCode", language="python", code="x = 2; 1 / 0", execution_id="b")
    until(socket, "LlmExecutionComplete")
    send(socket, "RollbackToSnapshot", snapshot_id=snapshot, agent_id="ada", create_pre_rollback_snapshot=True)
    back = until(socket, "RollbackComplete")[-1][1]
    assert back["snapshot_id"] == snapshot
    assert back["pre_rollback_snapshot_id"]
    send(socket, "LlmExecuteCode", language="python", code="print(x)", execution_id="c")
    assert until(socket, "LlmExecutionComplete")[-1][1]["response"]["stdout"] == "1\n"
    send(socket, "QueryHistory", agent_id="ada", limit=10, failures_only=True)
    found = until(socket, "HistoryResponse")[-1][1]
    assert (found["total"], [entry["command"] for entry in found["history"]]) == (1, ["x = 2; 1 / 0"])
    send(socket, "RollbackToSnapshot", snapshot_id="sn-nothing")
    assert until(socket, "Error")[-1][1]["code"] == "snapshot_not_found"


@pytest.mark.parametrize(
    "text",
    [
        "no json", "[]", "1", "null", '{"data": {}}', '{"message_type": "Dance"}', '{"message_type": 7}',
        '{"message_type": "LlmExecuteCode", "data": {"language": "python"}}',
        '{"message_type": "LlmExecuteCode", "data": {"language": "python", "code": 1}}',
        '{"message_type": "LlmExecuteCode", "data": {"language": "python", "code": "1", "agent_id": "bob"}}',
        '{"message_type": "LlmExecuteCode", "data": {"language": "klingon", "code": "1"}}',
        '{"message_type": "CancelExecution", "data": {"execution_id": "x"}}',
        '{"message_type": "ApprovalResponse", "data": {"approval_id": "ap-x", "approve": true}}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told_and_the_connection_stays(socket: ClientConnection, text: str) -> None:
    socket.send(text)
    kind, data = receive(socket)
    if kind == "LlmExecutionComplete":
        assert data["status"] == "refused"
        data = data["error"]
    assert data["code"]
    assert data["message"]
    assert data["remediation"]
    send(socket, "LlmExecuteCode", language="bash", code="echo still here", execution_id="after")
    assert until(socket, "LlmExecutionComplete", "after")[-1][1]["response"]["stdout"] == "still here\n"


def test_binary_messages_are_told_and_the_connection_stays(socket: ClientConnection) -> None:
    socket.send(b"\xff\x00")
    assert receive(socket)[0] == "Error"
    send(socket, "LlmExecuteCode", language="bash", code="echo still here", execution_id="after")
    until(socket, "LlmExecutionComplete", "after")


def test_a_machine_that_is_not_there_ends_the_socket(served: Served) -> None:
    with connect(f"{served.url.replace('http', 'ws')}/ws/sb-000000000000", proxy=None) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        assert "sb-000000000000" in closed.value.rcvd.reason


def test_workflows_run_in_the_agents_own_machine(served: Served, vm: str) -> None:
    with connect(f"{served.url.replace('http', 'ws')}/ws", proxy=None) as socket:

        def ask(workflow: str, code: str, **more: Any) -> None:
            data = {"language": "python", "code": code, "agent_id": "flow"}
            command = {"command_type": "execute_code", "session_id": "s", "workflow_id": workflow, "data": data}
            socket.send(json.dumps(command | more))

        def answers() -> list[dict[str, Any]]:
            seen: list[dict[str, Any]] = []
            while not seen or seen[-1]["response_type"] == "execution_output":
                seen.append(json.loads(socket.recv(timeout=60)))
            return seen

        ask("w1", "import sys; x = 41; print('a'); print('b', file=sys.stderr)")
        first = answers()
        assert {"stdout": "a\n"} in [one["data"] for one in first]
        assert {"stderr": "b\n"} in [one["data"] for one in first]
        assert first[-1]["response_type"] == "execution_complete"
        assert (first[-1]["session_id"], first[-1]["workflow_id"]) == ("s", "w1")
        assert first[-1]["data"]["exit_code"] == 0
        ask("w2", "print(x + 1)")
        assert answers()[0]["data"] == {"stdout": "42\n"}
        ask("w3", "1", data={"language": "python"})
        assert answers()[-1]["response_type"] == "error"
        socket.send("{")
        assert answers()[-1]["data"]["code"] == "validation_failed"
        ask("w4", "import time; time.sleep(60)")
        socket.send(json.dumps({"command_type": "cancel_execution", "workflow_id": "w4"}))
        assert answers()[-1]["data"] == {"status": "cancelled"}


def test_people_are_asked_over_the_socket(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A rule asks; the answer comes by the socket, or by HTTP; edited code is what runs."""
    server = Served()
    server.config.write_text('[vm_execution.policy]\nask = ["python.subprocess"]\n')
    server.start()
    try:
        with server.client() as client:
            _asked_over_both(server, client)
    finally:
        server.finish()


def _asked_over_both(server: Served, client: httpx.Client) -> None:
    vm = client.post("/api/vms", json={"vm_type": "minimal", "agent_id": "ada"}).json()["id"]
    code = "import subprocess\nprint(subprocess.run(['echo', 'ran'], capture_output=True, text=True).stdout)"
    with connect(f"{server.url.replace('http', 'ws')}/ws/{vm}", proxy=None) as socket:
        for approve, status in ((True, "completed"), (False, "refused")):
            send(socket, "LlmExecuteCode", language="python", code=code, execution_id="q")
            question = until(socket, "ApprovalRequest")[-1][1]
            assert question["code"] == code
            assert question["prompt"]
            send(socket, "ApprovalResponse", approval_id=question["approval_id"], approve=approve)
            assert until(socket, "LlmExecutionComplete")[-1][1]["status"] == status
        send(socket, "LlmExecuteCode", language="python", code=code, execution_id="e")
        approval_id = until(socket, "ApprovalRequest")[-1][1]["approval_id"]
        waiting = client.get("/api/approvals").json()["approvals"]
        assert [one["approval_id"] for one in waiting] == [approval_id]
        body = {"approve": True, "edited_code": "print('edited')"}
        assert client.post(f"/api/approvals/{approval_id}", json=body).json() == {"done": True}
        assert until(socket, "LlmExecutionComplete")[-1][1]["response"]["stdout"] == "edited\n"
        assert client.post(f"/api/approvals/{approval_id}", json=body).status_code == 404
        entry = client.get(f"/api/vms/{vm}/history").json()["history"][0]
        assert entry["decisions"][0]["approved"] is True
        assert entry["decisions"][0]["edited"] is True
