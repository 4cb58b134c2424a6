"""Who may do what on a server: tokens, scopes, agents, limits, and where requests come from."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from emberbox.server.tokens import TokenStore
from served import Served

CODE = {"language": "python", "code": "print('ran')"}


class Tokens:
    """Tokens of one server."""

    def __init__(self, server: Served) -> None:
        self.admin = server.token("admin", "--scope", "admin")
        self.ada = server.token("ada", "--agent", "ada")
        self.bob = server.token("bob", "--agent", "bob")
        self.both = server.token("both", "--agent", "ada", "--agent", "bob")
        self.reader = server.token("reader", "--scope", "read", "--agent", "ada")
        self.approver = server.token("approver", "--scope", "approve", "--scope", "read", "--agent", "ada")
        self.runner = server.token("runner", "--scope", "execute", "--agent", "ada")
        self.slow = server.token("slow", "--rate", "2", "--agent", "ada")
        self.narrow = server.token("narrow", "--concurrency", "1", "--agent", "ada")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server with tokens; rules that ask; small requests."""
    server = Served({"SERVER__MAX_BODY_BYTES": "20000", "SERVER__ALLOWED_HOSTS": '["sandbox.example.com"]'})
    server.config.write_text(
        '[vm_execution.policy]\nask = ["python.subprocess"]\n[server]\nallowed_origins = ["https://ok.example.com"]\n'
    )
    server.tokens = Tokens(server)  # type: ignore[attr-defined]
    server.start()
    yield server
    server.finish()


@pytest.fixture(scope="module")
def tokens(server: Served) -> Tokens:
    found: Tokens = server.tokens  # type: ignore[attr-defined]
    return found


@pytest.fixture(autouse=True)
def _end_machines(server: Served, tokens: Tokens) -> Iterator[None]:
    yield
    server.end_machines(tokens.admin)


def code_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer nonsense", "Basic YTpi", "Bearer ebx_000000000000_" + "a" * 43,
        "bearer " + "x" * 5000,
    ],
)  # fmt: skip
def test_nobody_gets_in_without_a_token(server: Served, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    with server.client() as client:
        for path in ("/api/vms", "/metrics", "/api/history", "/nowhere"):
            answer = client.get(path, headers=headers)
            assert code_of(answer) == (401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert code_of(client.post("/api/llm/execute", json=CODE, headers=headers)) == (401, "unauthorized")
        assert client.get("/health").status_code == 200


def test_another_secret_with_a_right_id_is_refused(server: Served, tokens: Tokens) -> None:
    forged = tokens.ada[:17] + ("a" if tokens.ada[17] != "a" else "b") + tokens.ada[18:]
    with server.client(forged) as client:
        assert code_of(client.get("/api/vms")) == (401, "unauthorized")
    with server.client(tokens.ada) as client:
        assert client.get("/api/vms").status_code == 200


def test_revoked_and_expired_tokens_count_no_more_at_once(server: Served) -> None:
    token = server.token("passing", "--agent", "ada")
    with server.client(token) as client:
        assert client.get("/api/vms").status_code == 200
        done = server.cli("token", "revoke", "passing", "--json")
        assert json.loads(done.stdout)["state"] == "revoked"
        assert code_of(client.get("/api/vms")) == (401, "unauthorized")
    store = TokenStore(server.state / "tokens.json")
    expired, _ = store.create("expired", ["read"], ["*"], expires_in=timedelta(microseconds=1))
    with server.client(expired) as client:
        assert code_of(client.get("/api/vms")) == (401, "unauthorized")


def test_only_hashes_are_kept_and_only_for_the_owner(server: Served, tokens: Tokens) -> None:
    path = server.state / "tokens.json"
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert tokens.ada not in text
    assert tokens.ada.split("_", 2)[2] not in text
    listed = json.loads(server.cli("token", "list", "--json").stdout)
    assert {"ada", "admin"} <= {one["name"] for one in listed}
    assert all("hash" not in one for one in listed)
    table = server.cli("token", "list").stdout
    assert "ada" in table
    assert tokens.ada not in table


def test_tokens_that_others_may_read_let_nobody_in(server: Served, tokens: Tokens) -> None:
    path = server.state / "tokens.json"
    path.chmod(0o644)
    try:
        with server.client(tokens.admin) as client:
            answer = client.get("/api/vms")
        assert code_of(answer) == (400, "config_error") or not answer.is_success
    finally:
        path.chmod(0o600)


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["create", "x", "--scope", "root"], "root"),
        (["create", "x", "--expires", "soon"], "soon"),
        (["create", ""], "name"),
        (["revoke", "nobody"], "nobody"),
    ],
)
def test_bad_words_of_the_token_command(server: Served, args: list[str], what: str) -> None:
    done = server.cli("token", *args)
    assert done.returncode == 2
    assert what in done.stderr


# --- scopes -----------------------------------------------------------------------------------------------------------


def test_scopes(server: Served, tokens: Tokens) -> None:
    with server.client(tokens.reader) as reader, server.client(tokens.runner) as runner:
        assert code_of(reader.post("/api/llm/execute", json=CODE)) == (403, "forbidden")
        assert code_of(reader.post("/api/vms", json={"vm_type": "minimal"})) == (403, "forbidden")
        vm = runner.post("/api/vms", json={"vm_type": "minimal"}).json()
        assert vm["agent_id"] == "ada"
        assert reader.get(f"/api/vms/{vm['id']}").json()["id"] == vm["id"]
        for method, path in (
            ("DELETE", ""), ("POST", "/pause"), ("POST", "/rollback/last-success"), ("DELETE", "/snapshots/x"),
        ):  # fmt: skip
            assert code_of(reader.request(method, f"/api/vms/{vm['id']}{path}")) == (403, "forbidden")
        assert code_of(reader.get("/metrics")) == (403, "forbidden")
        assert code_of(runner.get("/api/v2/vm-pool/status")) == (403, "forbidden")
    with server.client(tokens.admin) as admin:
        assert admin.get("/metrics").status_code == 200
        assert admin.get("/api/v2/vm-pool/status").status_code == 200


def test_a_token_for_answers_reads_nothing(server: Served, tokens: Tokens) -> None:
    only = server.token("only", "--scope", "approve", "--agent", "ada")
    scraper = server.token("scraper", "--scope", "metrics")
    with server.client(tokens.ada) as ada, server.client(only) as client, server.client(scraper) as prometheus:
        vm = ada.post("/api/vms", json={"vm_type": "minimal"}).json()["id"]
        assert code_of(client.get(f"/api/vms/{vm}/history")) == (403, "forbidden")
        url = f"{server.url.replace('http', 'ws')}/ws/{vm}"
        sent: dict[str, dict[str, Any]] = {
            "QueryHistory": {},
            "CreateSnapshot": {},
            "RollbackToSnapshot": {"snapshot_id": "x"},
            "LlmExecuteCode": {"language": "python", "code": "1"},
            "LlmParseExecute": {"llm_response": "x"},
        }
        with connect(url, additional_headers={"Authorization": f"Bearer {only}"}, proxy=None) as socket:
            for kind, data in sent.items():
                socket.send(json.dumps({"message_type": kind, "data": data}))
                assert json.loads(socket.recv(timeout=30))["data"]["code"] == "forbidden", kind
        assert prometheus.get("/metrics").status_code == 200
        assert code_of(prometheus.get("/api/vms")) == (403, "forbidden")


def test_who_runs_code_may_not_approve_it(server: Served, tokens: Tokens) -> None:
    code = "import subprocess; print(subprocess.run(['echo', 'ran'], capture_output=True, text=True).stdout)"
    url = server.url.replace("http", "ws")
    with server.client(tokens.runner) as runner, server.client(tokens.approver) as approver:
        vm = runner.post("/api/vms", json={"vm_type": "minimal"}).json()["id"]
        headers = {"Authorization": f"Bearer {tokens.runner}"}
        with connect(f"{url}/ws/{vm}", additional_headers=headers, proxy=None) as socket:
            message = {"message_type": "LlmExecuteCode", "data": {"language": "python", "code": code}}
            socket.send(json.dumps(message))
            waiting: list[Any] = []
            while not waiting:
                waiting = approver.get("/api/approvals").json()["approvals"]
            path = f"/api/approvals/{waiting[0]['approval_id']}"
            assert code_of(runner.post(path, json={"approve": True})) == (403, "forbidden")
            told = {"message_type": "ApprovalResponse", "data": {"approve": True} | {
                "approval_id": waiting[0]["approval_id"]}}  # fmt: skip
            socket.send(json.dumps(told))
            assert json.loads(socket.recv(timeout=30))["data"]["code"] == "forbidden"
            assert approver.post(path, json={"approve": False, "reason": "not today"}).status_code == 200
            end = json.loads(socket.recv(timeout=30))
            assert end["message_type"] == "LlmExecutionComplete"
            assert "not today" in end["data"]["error"]["message"]
        entry = runner.get(f"/api/vms/{vm}/history").json()["history"][0]
        assert entry["decisions"][0]["approved_by"] == "approver"


# --- agents -----------------------------------------------------------------------------------------------------------


def test_what_is_anothers_is_not_there(server: Served, tokens: Tokens) -> None:
    """404, as for what has never been: every path with a machine's id."""
    with server.client(tokens.ada) as ada, server.client(tokens.bob) as bob:
        vm = ada.post("/api/vms", json={"vm_type": "minimal"}).json()["id"]
        run = ada.post("/api/llm/execute", json=CODE | {"vm_id": vm}).json()
        snapshot = ada.post(f"/api/vms/{vm}/snapshots", json={}).json()["snapshot_id"]
        ada.post("/sessions", json={"name": "hers", "vm_type": "minimal"})
        document = ada.get("/openapi.json").json()
        tried = 0
        for pattern, methods in document["paths"].items():
            if "{vm_id}" not in pattern:
                continue
            path = pattern.replace("{vm_id}", vm).replace("{snapshot_id}", snapshot)
            path = path.replace("{pid}", "7").replace("{context_id}", "c")
            for method in methods:
                body = {
                    "code": "1", "target": snapshot, "cmd": "ls", "point": snapshot, "before": snapshot, "path": "x",
                    "new_path": "y", "seconds": 1, "name": "n", "data": "",
                }  # fmt: skip
                fields = _fields(document, methods[method])
                sent = {name: value for name, value in body.items() if name in fields}
                answer = bob.request(method.upper(), path, json=sent, params={"path": "x"})
                assert code_of(answer) == (404, "session_not_found"), (method, pattern, answer.text)
                tried += 1
        assert tried > 30
        assert code_of(bob.post("/api/llm/execute", json=CODE | {"vm_id": vm})) == (404, "session_not_found")
        assert code_of(bob.get("/sessions/hers/info")) == (404, "session_not_found")
        assert code_of(bob.get(f"/api/history/{run['execution_id']}")) == (404, "session_not_found")
        assert bob.get("/api/vms").json()["total"] == 0
        assert bob.get("/sessions").json()["total"] == 0
        assert bob.get("/api/history").json()["total"] == 0
        assert bob.get("/api/history", params={"agent_id": "ada"}).json()["total"] == 0
        assert not bob.post("/api/v2/executions/cancel", json={"execution_id": run["execution_id"]}).json()["cancelled"]
        assert ada.get("/api/vms").json()["total"] == 2
        assert code_of(bob.get("/api/llm/vm-pool/ada")) == (403, "forbidden")
        for body in (CODE | {"agent_id": "ada"}, {"agent_id": "ada", "llm_response": "x"}):
            path = "/api/llm/execute" if "code" in body else "/api/llm/parse-execute"
            assert code_of(bob.post(path, json=body)) == (403, "forbidden")
    headers = {"Authorization": f"Bearer {tokens.bob}"}
    url = f"{server.url.replace('http', 'ws')}/ws/{vm}"
    with connect(url, additional_headers=headers, proxy=None) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def _fields(document: dict[str, Any], operation: dict[str, Any]) -> set[str]:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    name = json.dumps(body).rpartition("schemas/")[2].partition('"')[0]
    return set(document["components"]["schemas"].get(name, {}).get("properties", {}))


def test_a_token_of_several_agents_has_to_say_for_whom(server: Served, tokens: Tokens) -> None:
    with server.client(tokens.both) as both:
        error = both.post("/api/llm/execute", json=CODE)
        assert code_of(error) == (403, "forbidden")
        assert "agent_id" in error.json()["error"]["remediation"]
        run = both.post("/api/llm/execute", json=CODE | {"agent_id": "bob"}).json()
        assert run["stdout"] == "ran\n"
        vm = both.get(f"/api/vms/{run['vm_id']}").json()
        assert vm["agent_id"] == "bob"


def test_agents_have_a_session_of_the_same_name_each(server: Served, tokens: Tokens) -> None:
    with server.client(tokens.ada) as ada, server.client(tokens.bob) as bob, server.client(tokens.both) as both:
        for client, word in ((ada, "a"), (bob, "b")):
            assert client.post("/sessions", json={"name": "s", "vm_type": "minimal"}).status_code == 201
            client.post("/sessions/s/execute", json={"command": f"X={word}"})
        for client, word in ((ada, "a"), (bob, "b")):
            assert client.post("/sessions/s/execute", json={"command": "echo $X"}).json()["stdout"] == f"{word}\n"
        assert code_of(both.get("/sessions/s/info")) == (409, "conflict")
        assert both.get("/sessions/s/info", params={"agent_id": "bob"}).json()["agent_id"] == "bob"


# --- limits -----------------------------------------------------------------------------------------------------------


def test_too_many_requests_are_told_when_to_come_again(server: Served, tokens: Tokens) -> None:
    with server.client(tokens.slow) as slow:
        answers = [slow.get("/api/vms") for _ in range(8)]
        refused = [one for one in answers if one.status_code == 429]
        assert answers[0].status_code == 200
        assert refused
        assert int(refused[0].headers["Retry-After"]) >= 1
        assert refused[0].json()["error"]["code"] == "too_many_requests"
    with server.client(tokens.ada) as ada:
        assert ada.get("/api/vms").status_code == 200


def test_too_much_at_once(server: Served, tokens: Tokens) -> None:
    headers = {"Authorization": f"Bearer {tokens.narrow}"}
    with server.client(tokens.narrow) as client:
        vm = client.post("/api/vms", json={"vm_type": "minimal"}).json()["id"]
        with connect(f"{server.url.replace('http', 'ws')}/ws/{vm}", additional_headers=headers, proxy=None) as socket:
            code = "import time; print('on', flush=True); time.sleep(60)"
            data = {"language": "python", "code": code, "execution_id": "e"}
            socket.send(json.dumps({"message_type": "LlmExecuteCode", "data": data}))
            socket.recv(timeout=30)
            answer = client.post("/api/llm/execute", json={"language": "bash", "code": "echo", "vm_id": vm})
            assert code_of(answer) == (429, "too_many_requests")
            assert answer.headers["Retry-After"] == "1"
            socket.send(json.dumps({"message_type": "CancelExecution", "data": {"execution_id": "e"}}))
            socket.recv(timeout=30)
        assert client.post("/api/llm/execute", json={"language": "bash", "code": "echo", "vm_id": vm}).is_success


def test_long_requests_are_refused_whether_they_say_so_or_not(server: Served, tokens: Tokens) -> None:
    body = json.dumps({"language": "python", "code": "#" * 30_000}).encode()
    with server.client(tokens.ada) as ada:
        headers = {"Content-Type": "application/json"}
        assert code_of(ada.post("/api/llm/execute", content=body, headers=headers)) == (413, "too_large")
        chunks = (body[at : at + 1000] for at in range(0, len(body), 1000))
        assert code_of(ada.post("/api/llm/execute", content=chunks, headers=headers)) == (413, "too_large")


@pytest.mark.parametrize(
    "body", [b"{", b'{"code": "\xff"}', b"[" * 15_000, b"null", b'"x"', b"\xff\xfe\x00", b'{"code": "\\ud800"}']
)
def test_bodies_that_make_no_sense_are_400(server: Served, tokens: Tokens, body: bytes) -> None:
    with server.client(tokens.ada) as ada:
        answer = ada.post("/api/llm/execute", content=body, headers={"Content-Type": "application/json"})
        assert code_of(answer) == (400, "validation_failed")
        assert ada.get("/api/vms").status_code == 200


# --- where from -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Host": "evil.example.com"}, False),
        ({"Host": "sandbox.example.com"}, True),
        ({"Host": "sandbox.example.com:8443"}, True),
        ({"Host": "localhost:1"}, True),
        ({"Host": "10.0.0.5:8080"}, True),
        ({"Host": "[::1]:8080"}, True),
        ({"Host": ""}, False),
        ({"Host": "127.0.0.1.evil.example.com"}, False),
        ({"Origin": "https://evil.example.com"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "https://ok.example.com"}, True),
        ({"Origin": "https://ok.example.com.evil.com"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
    ],
)
def test_other_names_and_web_pages_are_refused(
    server: Served, tokens: Tokens, headers: dict[str, str], allowed: bool
) -> None:
    with server.client(tokens.ada) as ada:
        for path in ("/api/vms", "/health"):
            answer = ada.get(path, headers=headers)
            assert answer.status_code == (200 if allowed else 403), answer.text
    if "Host" in headers:
        return
    url = f"{server.url.replace('http', 'ws')}/ws"
    sent = headers | {"Authorization": f"Bearer {tokens.ada}"}
    if allowed:
        with connect(url, additional_headers=sent, proxy=None):
            return
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(url, additional_headers=sent, proxy=None),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_a_page_that_is_allowed_is_told_so(server: Served, tokens: Tokens) -> None:
    page = {"Origin": "https://ok.example.com"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with server.client() as browser, server.client(tokens.ada) as ada:
        may = browser.options("/api/llm/execute", headers=page | asks)
        assert may.status_code == 200
        assert may.headers["Access-Control-Allow-Origin"] == page["Origin"]
        answer = ada.get("/api/vms", headers=page)
        assert answer.headers["Access-Control-Allow-Origin"] == page["Origin"]
        evil = browser.options("/api/llm/execute", headers={"Origin": "https://evil.example.com"} | asks)
        assert evil.status_code == 403
        assert browser.options("/api/llm/execute", headers=asks).status_code == 401


def test_a_page_of_its_own_may_call_it(server: Served, tokens: Tokens) -> None:
    with server.client(tokens.ada) as ada:
        assert ada.get("/api/vms", headers={"Origin": server.url}).status_code == 200


def test_sockets_want_a_token_too(server: Served) -> None:
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(f"{server.url.replace('http', 'ws')}/ws", proxy=None),
    ):
        pass
    assert refused.value.response.status_code == 401


def test_it_does_not_listen_to_others_without_tokens(tmp_path: Path) -> None:
    server = Served()
    try:
        done = server.another("--host", "0.0.0.0", "--port", "0")  # noqa: S104
        assert done.returncode == 2
        assert "emberbox token create" in done.stderr
    finally:
        server.finish()


def test_a_port_that_is_taken_is_told() -> None:
    server = Served()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        try:
            done = server.another("--port", str(port))
            assert done.returncode == 2
            assert str(port) in done.stderr
        finally:
            server.finish()


def test_settings_of_a_file_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('[server]\nhost = "0.0.0.0"\n')
    server = Served()
    try:
        done = server.another("--port", "0", "--config", str(tmp_path / "other.toml"))
        assert done.returncode == 2
        assert "lets others in" in done.stderr
    finally:
        server.finish()


def test_tokens_of_a_file_that_is_named(tmp_path: Path) -> None:
    server = Served({}, None, "--token-file", str(tmp_path / "t.json"))
    try:
        token = server.cli("token", "create", "x", "--token-file", str(tmp_path / "t.json")).stdout.strip()
        server.start()
        with server.client() as client, server.client(token) as known:
            assert client.get("/api/vms").status_code == 401
            assert known.get("/api/vms").status_code == 200
            (tmp_path / "t.json").unlink()
            assert known.get("/api/vms").status_code == 401
    finally:
        server.finish()
