"""Callers who have a token and want more: other agents' machines, other limits, other people's answers."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from httpx_sse import connect_sse
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from wire import gauge, quiet, well

from served import Served
from waiting import until

CONFIG = """
[vm_execution]
execution_timeout_ms = 5000
[vm_execution.policy]
ask = ["python.subprocess"]
[[hooks.use]]
name = "output-sanitizer"
agents = ["guarded"]
options = { mode = "block" }
"""
ASKS = "import subprocess\nprint(subprocess.run(['echo', 'ran'], capture_output=True, text=True).stdout)"
NAMES = {
    "admin": ["--scope", "admin"],
    "ada": ["--agent", "ada"],
    "second": ["--agent", "ada"],
    "bob": ["--agent", "bob"],
    "both": ["--agent", "ada", "--agent", "bob"],
    "guarded": ["--agent", "guarded"],
    "asked": ["--scope", "execute", "--scope", "approve", "--agent", "ada"],
    "approver": ["--scope", "approve", "--agent", "ada"],
    "other": ["--scope", "approve", "--scope", "execute", "--agent", "bob"],
    "leaving": ["--agent", "ada"],
}


class World:
    """A server with tokens of several people, and a client for each."""

    def __init__(self) -> None:
        self.server = Served({
            "VM_EXECUTION__DEFAULT_VM_TYPE": "minimal",
            "SERVER__MAX_SOCKETS": "4",
            "SERVER__SLOW_READER_SECONDS": "5",
            "MAX_SANDBOXES": "10",
            "CAPACITY_TIMEOUT_SECONDS": "20",
            "BOOT_TIMEOUT_SECONDS": "10",
        })  # fmt: skip
        self.server.config.write_text(CONFIG)
        self.tokens = {name: self.server.token(name, *args) for name, args in NAMES.items()}
        self.server.start()
        self.clients: dict[str, httpx.Client] = {name: self.server.client(token) for name, token in self.tokens.items()}

    def __getitem__(self, name: str) -> httpx.Client:
        return self.clients[name]

    def connect(self, path: str, name: str) -> ClientConnection:
        headers = {"Authorization": f"Bearer {self.tokens[name]}"}
        url = self.server.url.replace("http", "ws") + path
        return connect(url, additional_headers=headers, proxy=None, close_timeout=2)

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        self.server.finish()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture(autouse=True)
def _as_before(world: World) -> Iterator[None]:
    yield
    well(world.server, world.tokens["admin"])
    world.server.end_machines(world.tokens["admin"])


@pytest.fixture
def vm(world: World) -> str:
    """A machine of ada's."""
    return done(world["ada"].post("/api/vms", json={}), 201)["id"]  # type: ignore[no-any-return]


def done(response: httpx.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()


def code_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def run(client: httpx.Client, vm: str, code: str, language: str = "bash", **headers: str) -> httpx.Response:
    body = {"vm_id": vm, "language": language, "code": code}
    return client.post("/api/llm/execute", json=body, headers=headers)


def tell(socket: ClientConnection, kind: str, **data: Any) -> None:
    socket.send(json.dumps({"message_type": kind, "data": data}))


def hear(socket: ClientConnection, *kinds: str, seconds: float = 20) -> tuple[str, Any]:
    """The next message of one of these kinds."""
    deadline = time.monotonic() + seconds
    while True:
        message = json.loads(socket.recv(timeout=max(0.01, deadline - time.monotonic())))
        if message["message_type"] in kinds:
            return message["message_type"], message["data"]


# --- what is another's ------------------------------------------------------------------------------------------------


def test_a_kept_snapshot_is_its_agents_own(world: World, vm: str) -> None:
    """It holds memory, files and environment."""
    done(run(world["ada"], vm, "echo her secret > note"))
    kept = done(world["ada"].post(f"/api/vms/{vm}/snapshots", json={"snapshot_type": "kept"}), 201)["snapshot_id"]
    answer = world["bob"].post("/api/vms", json={"snapshot_id": kept})
    text = "" if answer.status_code != 201 else run(world["bob"], answer.json()["id"], "cat note").text
    assert "her secret" not in text
    assert code_of(answer) == (404, "snapshot_not_found")
    assert done(world["ada"].post("/api/vms", json={"snapshot_id": kept}), 201)["agent_id"] == "ada"


ODD = ["..%2f..%2fada", "%2e%2e%2f", "%00", "sb-%2e%2e", "%ed%a0%80", "sb-\u0430\u0434\u0430", "%0d%0aX:%20y", "*", "%",
       "' OR 1=1--", "x" * 4000, "sb-000000000000", "%2f", "%252e%252e", "-"]  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_ids_that_are_guessed_or_odd_find_nothing(world: World, vm: str, odd: str) -> None:
    """In each place of an address, and in bodies: no success, no defect, nothing about others."""
    part = odd if odd.startswith(("%", "..%")) else quote(odd, safe="")
    bob = world["bob"]
    mine = done(bob.post("/sessions", json={"name": "s"}), 201)["vm_id"]
    with quiet(world.server):
        answers = [
            bob.get(f"/api/vms/{part}"), bob.delete(f"/api/vms/{part}"), bob.get(f"/api/vms/{part}/history"),
            bob.post(f"/api/vms/{part}/run", json={"code": "1"}), bob.get(f"/api/vms/{part}/files?path=x"),
            bob.get(f"/sessions/{part}/info"), bob.post(f"/sessions/{part}/execute", json={"command": "id"}),
            bob.delete(f"/sessions/{part}"), bob.get(f"/api/history/{part}"),
            bob.post(f"/api/vms/{mine}/rollback/{part}"), bob.delete(f"/api/vms/{mine}/snapshots/{part}"),
            bob.post(f"/api/v2/vms/{mine}/snapshots/{part}/rollback", json={}),
            bob.post(f"/api/vms/{mine}/contexts/{part}/restart"), bob.delete(f"/api/vms/{mine}/contexts/{part}"),
            bob.post(f"/api/approvals/{part}", json={"approve": True}),
            bob.post("/api/vms", json={"snapshot_id": odd}), bob.post("/api/vms", json={"vm_type": odd}),
            bob.post("/api/llm/execute", json={"language": "bash", "code": "id", "vm_id": odd}),
            bob.post(f"/api/vms/{mine}/rollback", json={"target": odd}),
            bob.post(f"/api/vms/{mine}/diff", json={"before": odd}),
            bob.post(f"/api/vms/{mine}/branch", json={"point": odd}),
        ]  # fmt: skip
    for answer in answers:
        assert answer.status_code in {307, 400, 403, 404, 405, 409}, (answer.request.method, answer.url, answer.text)
        assert vm not in answer.text
    assert [one["id"] for one in done(bob.get("/api/vms"))["vms"]] == [mine]


@pytest.mark.parametrize("agent", ["", "a\0b", "a\nb", "\x7f", "x" * 100_000])
@pytest.mark.parametrize("path", ["llm/execute", "llm/parse-execute", "v2/execute", "v2/vms/allocate", "vms"])
def test_agents_have_names_that_can_be_shown(world: World, agent: str, path: str) -> None:
    """One rule for all entries: the name stands in logs, in the history and in tokens."""
    body: dict[str, Any] = {"agent_id": agent}
    if "parse" in path:
        body["llm_response"] = "Run:\n```bash\necho hi\n```"
    elif "execute" in path:
        body |= {"language": "bash", "code": "echo hi"}
    answer = world["admin"].post(f"/api/{path}", json=body)
    assert answer.status_code == 400, answer.text[:500]


@pytest.mark.parametrize("key", ["emberbox:name", "emberbox:session", "emberbox:"])
def test_the_servers_own_words_are_not_for_callers(world: World, key: str) -> None:
    assert code_of(world["ada"].post("/api/vms", json={"metadata": {key: "s"}})) == (403, "forbidden")


def test_words_that_only_look_like_the_servers_name_no_session(world: World) -> None:
    for key in ("Emberbox:session", " emberbox:session", "emberbox\u200b:session", "session"):
        vm = done(world["ada"].post("/api/vms", json={"metadata": {key: "hers"}}), 201)["id"]
        assert code_of(world["ada"].get("/sessions/hers/info")) == (404, "session_not_found")
        done(world["ada"].delete(f"/api/vms/{vm}"))


def test_a_session_is_itself_also_when_it_has_copies(world: World) -> None:
    """Forks and branches are other machines; they have not its name."""
    ada = world["ada"]
    vm = done(ada.post("/sessions", json={"name": "s"}), 201)["vm_id"]
    done(ada.post("/sessions/s/execute", json={"command": "X=1"}))
    snapshot = done(ada.post("/sessions/s/snapshots", json={}), 201)["snapshot_id"]
    done(ada.post(f"/api/vms/{vm}/fork", json={}), 201)
    done(ada.post(f"/api/vms/{vm}/branch", json={"point": snapshot}), 201)
    assert done(ada.post("/sessions/s/execute", json={"command": "echo $X"}))["stdout"] == "1\n"
    assert done(ada.get("/sessions"))["total"] == 1
    assert done(ada.delete("/sessions/s"))["vm_id"] == vm


def test_followers_see_only_their_own(world: World, vm: str) -> None:
    assert code_of(world["bob"].get(f"/api/vms/{vm}/events")) == (404, "session_not_found")
    with pytest.raises(ConnectionClosed), world.connect(f"/ws/{vm}", "bob") as socket:
        socket.recv(timeout=10)


def test_a_requests_own_settings_do_not_widen(world: World, vm: str) -> None:
    """Time, languages, rules: each is asked for, none is had."""
    answer = "Run:\n```bash\nrm -rf /\n```\n\nRun:\n```python\nimport time; time.sleep(60)\n```\n"
    body: dict[str, Any] = {"llm_response": answer, "auto_execute_threshold": 0.0, "vm_config": {
        "enabled": True, "execution_timeout_ms": 10**9, "code_validation": False, "max_code_length": 10**9,
        "allowed_languages": ["python", "bash", "rust", "javascript"], "policy": {"disabled": ["*"]},
        "security_settings": {"dangerous_patterns_check": False, "resource_limits": {
            "max_execution_time_seconds": 999,
        }},
    }}  # fmt: skip
    assert code_of(world["ada"].post("/api/llm/parse-execute", json=body)) == (400, "validation_failed"), "time"
    body["vm_config"]["execution_timeout_ms"] = 1000
    found = done(world["ada"].post("/api/llm/parse-execute", json=body))
    assert [error["code"] for error in found["errors"]] == ["blocked_by_policy"]
    assert [one["termination_reason"] for one in found["execution_results"]] == ["timeout"]


# --- people -----------------------------------------------------------------------------------------------------------


def test_who_may_only_approve_reads_no_history(world: World, vm: str) -> None:
    """By HTTP it is 403; so it is by the socket."""
    done(run(world["ada"], vm, "echo private"))
    assert code_of(world["approver"].get(f"/api/vms/{vm}/history")) == (403, "forbidden")
    with world.connect(f"/ws/{vm}", "approver") as socket:
        tell(socket, "QueryHistory")
        kind, data = hear(socket, "HistoryResponse", "Error")
    assert (kind, data.get("code")) == ("Error", "forbidden")


def test_questions_of_others_cannot_be_answered(world: World, vm: str) -> None:
    mine = done(world["other"].post("/api/vms", json={}), 201)["id"]
    with world.connect(f"/ws/{vm}", "ada") as hers, world.connect(f"/ws/{mine}", "other") as his:
        tell(hers, "LlmExecuteCode", language="python", code=ASKS, execution_id="q")
        until(lambda: done(world["admin"].get("/api/approvals"))["total"] == 1, "the question")
        approval = done(world["admin"].get("/api/approvals"))["approvals"][0]["approval_id"]
        assert done(world["other"].get("/api/approvals"))["total"] == 0
        assert code_of(world["other"].post(f"/api/approvals/{approval}", json={"approve": True}))[0] == 404
        tell(his, "ApprovalResponse", approval_id=approval, approve=True)
        assert hear(his, "Error")[1]["code"] == "session_not_found"
        assert done(world["admin"].get("/api/approvals"))["total"] == 1
        done(world["admin"].post(f"/api/approvals/{approval}", json={"approve": False}))
        assert hear(hers, "LlmExecutionComplete")[1]["status"] == "refused"


def test_no_more_than_64_things_at_once_on_a_socket(world: World, vm: str) -> None:
    """Each waits for a person, who does not come. One too many is told so by name; the others wait on, others on the
    machine are asked all the same, and all of them end with the socket."""
    admin = world["admin"]
    with world.connect(f"/ws/{vm}", "asked") as full, world.connect(f"/ws/{vm}", "asked") as free:
        for number in range(63):
            tell(full, "LlmExecuteCode", language="python", code=ASKS, execution_id=f"e{number}")
        until(lambda: done(admin.get("/api/approvals"))["total"] == 63, "all questions")
        tell(free, "LlmExecuteCode", language="python", code=ASKS, execution_id="free")
        until(lambda: done(admin.get("/api/approvals"))["total"] == 64, "one more question", 5)
        for _ in range(64):
            approval = hear(free, "ApprovalRequest", seconds=5)[1]["approval_id"]
        tell(free, "ApprovalResponse", approval_id=approval, approve=False)
        told = hear(free, "LlmExecutionComplete", seconds=5)[1]
        assert (told["execution_id"], told["status"]) == ("free", "refused")
        tell(full, "LlmExecuteCode", language="bash", code="echo", execution_id="e0")
        assert "e0" in hear(full, "Error", seconds=5)[1]["message"]
    until(lambda: gauge(admin, "emberbox_executions_running") == 0, "the end of all")
    assert gauge(admin, "emberbox_approvals_waiting") == 0


def test_one_full_socket_spoils_no_question(world: World, vm: str) -> None:
    """64 questions wait on one socket, and the caller has one place more: it is another's on the same machine."""
    admin = world["admin"]
    with world.connect(f"/ws/{vm}", "asked") as full:
        for number in range(64):
            tell(full, "LlmExecuteCode", language="python", code=ASKS, execution_id=f"e{number}")
        until(lambda: done(admin.get("/api/approvals"))["total"] == 64, "all of them to be asked")
        body = {"vm_id": vm, "language": "python", "code": ASKS}
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(world["ada"].post("/api/llm/execute", json=body)))
        thread.start()
        until(lambda: done(admin.get("/api/approvals"))["total"] == 65 or bool(answers), "the question")
        assert answers == [], answers[0].text if answers else ""
        newest = done(admin.get("/api/approvals"))["approvals"][-1]["approval_id"]
        done(admin.post(f"/api/approvals/{newest}", json={"approve": True}))
        thread.join(20)
        assert done(answers[0])["stdout"].strip() == "ran"


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_revoked_token_counts_no_more_on_what_is_open(world: World, vm: str) -> None:
    """Neither a socket nor a stream goes on for it."""
    with world.connect(f"/ws/{vm}", "leaving") as socket, world.server.client(world.tokens["leaving"]) as client:
        tell(socket, "LlmExecuteCode", language="bash", code="echo before", execution_id="a")
        assert hear(socket, "LlmExecutionComplete")[1]["status"] == "completed"
        with connect_sse(client, "GET", f"/api/vms/{vm}/events") as source:
            events = source.iter_sse()
            done(run(world["ada"], vm, "echo x"))
            assert next(events).event == "followed"
            assert world.server.cli("token", "revoke", "leaving").returncode == 0
            assert client.get("/api/vms").status_code == 401
            heard = None
            try:
                tell(socket, "LlmExecuteCode", language="bash", code="echo after > after", execution_id="b")
                heard = hear(socket, "LlmExecutionComplete", "Error", seconds=10)
            except ConnectionClosed:
                pass
            assert heard is None or heard[0] == "Error" or heard[1]["status"] == "refused", heard
    assert world["ada"].get(f"/api/vms/{vm}/files", params={"path": "after"}).status_code == 404


def test_sockets_and_streams_of_one_token(world: World, vm: str) -> None:
    """Four at once; the fifth is told to come later, others are not concerned, and all are given back."""
    with contextlib.ExitStack() as sockets:
        for _ in range(4):
            sockets.enter_context(world.connect("/ws", "ada"))
        until(lambda: gauge(world["admin"], "emberbox_streams") == 4, "all four")
        with pytest.raises(ConnectionClosed) as closed, world.connect("/ws", "ada") as fifth:
            fifth.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
        stream = world["ada"].get(f"/api/vms/{vm}/events")
        assert stream.status_code == 429 or "too_many_requests" in stream.text
        done(run(world["ada"], vm, "echo"))
        with world.connect("/ws", "bob"):
            pass
    until(lambda: gauge(world["admin"], "emberbox_streams") == 0, "all places to be given back")
    assert gauge(world["admin"], "emberbox_websockets") == 0


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_of_one_agent_does_not_answer_for_another(world: World) -> None:
    """The session that is meant is named beside the address."""
    both = world["both"]
    for agent in ("ada", "bob"):
        done(both.post("/sessions", json={"name": "s", "agent_id": agent}), 201)
        done(both.post("/sessions/s/execute", params={"agent_id": agent}, json={"command": f"X={agent}"}))
    key = {"Idempotency-Key": "one"}
    body = {"command": "echo $X"}
    first = both.post("/sessions/s/execute", params={"agent_id": "ada"}, json=body, headers=key)
    assert done(first)["stdout"] == "ada\n"
    second = both.post("/sessions/s/execute", params={"agent_id": "bob"}, json=body, headers=key)
    assert second.status_code == 409 or second.json()["stdout"] == "bob\n", second.text


def test_keys_of_two_callers_have_nothing_to_do_with_each_other(world: World, vm: str) -> None:
    key = {"Idempotency-Key": "same"}
    done(run(world["ada"], vm, "echo x >> n; wc -l < n", **key))
    assert done(run(world["second"], vm, "echo x >> n; wc -l < n", **key))["stdout"].strip() == "2"
    assert done(run(world["ada"], vm, "echo x >> n; wc -l < n", **key))["stdout"].strip() == "1"


def test_a_key_cancels_only_what_was_asked_for_with_it_by_the_same_caller(world: World, vm: str) -> None:
    answers: list[httpx.Response] = []
    wait = "touch on; while ! test -e go; do sleep 0.02; done; echo done"
    thread = threading.Thread(target=lambda: answers.append(run(world["ada"], vm, wait, **{"Idempotency-Key": "mine"})))
    thread.start()
    there = {"path": "on"}
    until(lambda: world["second"].get(f"/api/vms/{vm}/files/info", params=there).is_success, "the execution")
    told = done(world["second"].post("/api/v2/executions/cancel", json={"idempotency_key": "mine"}))
    world["second"].put(f"/api/vms/{vm}/files", params={"path": "go"}, content=b"")
    thread.join(20)
    assert told == {"cancelled": False}
    assert done(answers[0])["stdout"] == "done\n"


def test_two_bodies_for_one_key_at_once(world: World, vm: str) -> None:
    """One of them runs; the other is told, and has not run."""
    answers: list[httpx.Response] = []
    start = threading.Barrier(6)

    def ask(number: int) -> None:
        with world.server.client(world.tokens["ada"]) as client:
            start.wait(10)
            answers.append(run(client, vm, f"echo {number % 2} >> both; sleep 0.2", **{"Idempotency-Key": "both"}))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 409, 409, 409]
    assert len(done(run(world["ada"], vm, "cat both"))["stdout"].split()) == 1


def test_an_error_that_is_known_is_told_again(world: World, vm: str) -> None:
    """The server did not stop while it ran: to say so sends people looking for a crash."""
    body = {"vm_id": vm, "language": "bash", "code": "echo", "working_dir": "/nowhere"}
    key = {"Idempotency-Key": "wrong"}
    first = world["ada"].post("/api/llm/execute", json=body, headers=key)
    again = world["ada"].post("/api/llm/execute", json=body, headers=key)
    assert first.status_code == 404
    assert "stopped" not in again.json()["error"]["message"], again.text


# --- what ran is not said to have never run ---------------------------------------------------------------------------


def test_a_batch_whose_snapshot_fails_has_run(world: World, vm: str) -> None:
    """Code of another context is running, so that no snapshot can be taken; the blocks have run all the same."""
    wait = "touch on; while ! test -e go; do sleep 0.02; done"
    thread = threading.Thread(target=lambda: run(world["second"], vm, wait))
    thread.start()
    there = {"path": "on"}
    until(lambda: world["ada"].get(f"/api/vms/{vm}/files/info", params=there).is_success, "the execution")
    body = {"vm_id": vm, "snapshot": True, "code_blocks": [{"language": "python", "code": "open('n', 'a').write('x')"}]}
    answers = [world["ada"].post("/api/v2/execute/batch", json=body, headers={"Idempotency-Key": "b"}) for _ in "ab"]
    world["ada"].put(f"/api/vms/{vm}/files", params={"path": "go"}, content=b"")
    thread.join(20)
    assert world["ada"].get(f"/api/vms/{vm}/files", params={"path": "n"}).text == "x", "it ran twice"
    assert answers[0].is_success or answers[0].json()["error"]["retryable"] is False


def test_output_that_is_withheld_was_printed_by_code_that_ran(world: World) -> None:
    """A key that is asked for again must not run it again, and nobody may be told to try again."""
    client = world["guarded"]
    vm = done(client.post("/api/vms", json={}), 201)["id"]
    code = "echo x >> n; echo 'ghp_" + "a1B2" * 9 + "'"
    key = {"Idempotency-Key": "leak"}
    first, second = run(client, vm, code, **key), run(client, vm, code, **key)
    assert (first.status_code, first.json()["error"]["code"]) == (422, "blocked_by_policy")
    assert "ghp_" not in first.text + second.text
    assert client.get(f"/api/vms/{vm}/files", params={"path": "n"}).text == "x\n", "it ran twice"
    assert first.json()["error"]["retryable"] is False


# --- figures that are too large ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["1e300", "1e12", "Infinity", "-Infinity", "NaN", "1" + "0" * 400])
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/vms", "timeout_seconds"), ("/api/vms/{vm}/timeout", "seconds"),
        ("/api/vms/{vm}/fork", "timeout_seconds"),
        ("/api/llm/execute", "timeout_seconds"), ("/api/v2/execute", "timeout_ms"),
        ("/api/vms/{vm}/run", "timeout_seconds"), ("/api/vms/{vm}/commands", "timeout_seconds"),
    ],
)  # fmt: skip
def test_times_without_end_are_bad_input(world: World, vm: str, path: str, field: str, number: str) -> None:
    """No defect, and the machine lives on."""
    body: dict[str, Any] = {}
    if "execute" in path:
        body = {"language": "bash", "code": "echo", "vm_id": vm}
    elif path.endswith(("/run", "/commands")):
        body = {"code": "1"} if path.endswith("/run") else {"cmd": "echo"}
    sent = json.dumps(body | {field: "@"}).replace('"@"', number)
    headers = {"Content-Type": "application/json"}
    with quiet(world.server):
        answer = world["ada"].post(path.format(vm=vm), content=sent, headers=headers)
        stream = answer.headers["content-type"].startswith("text/event-stream")
        assert answer.status_code == 400 or (stream and "event: error" in answer.text), answer.text
        assert done(run(world["ada"], vm, "echo alive"))["stdout"] == "alive\n"


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00"])
@pytest.mark.parametrize("side", ["start_date", "end_date"])
def test_moments_at_the_ends_of_time(world: World, moment: str, side: str) -> None:
    with quiet(world.server):
        assert world["ada"].get("/api/history", params={side: moment}).status_code in {200, 400}


def test_an_environment_that_cannot_be_is_refused_at_once(world: World) -> None:
    """It must not keep a place in the server until the time for a start is over, which would be another answer."""
    answers: list[httpx.Response] = []

    def ask(envs: dict[str, str]) -> None:
        with world.server.client(world.tokens["ada"]) as client:
            answers.append(client.post("/api/vms", json={"envs": envs}))

    wrong: list[dict[str, str]] = [{"": "x"}, {"a=b": "x"}, {"a\0": "x"}, {"a": "x\0"}]
    threads = [threading.Thread(target=ask, args=(envs,)) for envs in wrong]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [400] * 4, [answer.text for answer in answers]
