"""docs/api.md is true: its tables are those of the server, its examples run, its scopes are asked for. And what the
dashboard and the alert rules ask for is what a server exports."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import emberbox.errors
from emberbox import load_settings
from emberbox.errors import VmExecutionError
from emberbox.models import Model
from emberbox.server import messages
from emberbox.server.app import create_app
from emberbox.server.error_handlers import status_of
from emberbox.server.examples import EXAMPLES
from emberbox.server.machine_protocol import MachineProtocol
from served import Served

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/api.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (GET|POST|PUT|DELETE) \| (/\S*) \| ([^|]+) \|", re.MULTILINE)
SCOPES = {(method, path): scope.strip() for method, path, scope in ROW.findall(PAGE)}
Operation = tuple[str, str]


def section(head: str) -> str:
    """The text below a headline, up to the next one of its level."""
    level = "#" * (len(head) - len(head.lstrip("#")))
    return PAGE.partition(f"\n{head}\n")[2].partition(f"\n{level} ")[0]


def table(text: str) -> dict[str, set[str]]:
    """Rows of the tables in a text: the names in the first column, with those of the second."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        for name in re.findall(r"`([^`]+)`", cells[0]) if cells else []:
            found[name] = set(re.findall(r"`([^`]+)`", cells[1]))
    return found


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return create_app(load_settings()).openapi()


@pytest.fixture(scope="module")
def own_server() -> Iterator[Served]:
    """A server with tokens, which asks a hook and redacts."""
    settings = {
        "VM_EXECUTION__DEFAULT_VM_TYPE": "minimal",
        "HOOKS__USE": '["output-sanitizer"]',
        "VM_EXECUTION__POLICY__ASK": '["python.os-system"]',
        "HOOKS__APPROVAL_TIMEOUT_SECONDS": "0.2",
    }
    server = Served(settings)
    server.token("first")
    try:
        yield server.start()
    finally:
        server.finish()


# --- tables -----------------------------------------------------------------------------------------------------------


def operations(schema: dict[str, Any]) -> set[Operation]:
    return {(method.upper(), path) for path, methods in schema["paths"].items() for method in methods}


def test_the_tables_of_endpoints_are_complete(schema: dict[str, Any]) -> None:
    assert set(SCOPES) == operations(schema)
    assert len(ROW.findall(PAGE)) == len(SCOPES), "one stands there twice"


def test_what_makes_something_is_said_to_answer_201(schema: dict[str, Any]) -> None:
    told = {(m, p) for m, p in SCOPES if re.search(rf"^\| {m} \| {re.escape(p)} \|.*\b201\b", PAGE, re.MULTILINE)}
    assert told == {(m, p) for m, p in operations(schema) if "201" in schema["paths"][p][m.lower()]["responses"]}


def wire_name(model: type[Model]) -> str:
    """What a message is called: the first word of its description, where that is a name, else its class."""
    first = re.match(r"([A-Z]\w+)[.:]", model.__doc__ or "")
    return first[1] if first else model.__name__


MODELS = {
    wire_name(model): set(model.model_fields)
    for model in vars(messages).values()
    if isinstance(model, type) and issubclass(model, Model) and model.__module__ == messages.__name__
}


def sent_by_the_server() -> set[str]:
    text = (ROOT / "src/emberbox/server/machine_protocol.py").read_text(encoding="utf-8")
    return set(re.findall(r'self\._send\("(\w+)"', text))


def test_the_tables_of_messages_are_complete() -> None:
    incoming, _, outgoing = section("## WebSocket /ws/{vm_id}").partition("From the server:")
    taken = MachineProtocol(cast(Any, None), cast(Any, None), cast(Any, None), "vm")._handlers
    assert table(incoming) == {name: MODELS[name] for name in taken}
    assert table(outgoing) == {name: MODELS[name] for name in sent_by_the_server()}


def test_the_tables_of_the_workflow_socket_are_those_of_its_models() -> None:
    text = section("## WebSocket /ws")
    fields = table(text.partition("| `response_type` |")[0])
    assert fields["execute_code"] == set(messages.WorkflowCode.model_fields)
    assert re.findall(r'"(\w+)": …', text)[:3] == list(messages.WorkflowCommand.model_fields)[:3]
    source = (ROOT / "src/emberbox/server/sockets.py").read_text(encoding="utf-8")
    answers = table(text.partition("| `response_type` |")[2])
    assert set(answers) == set(re.findall(r'self\._send\(command, "(\w+)"', source))


def test_the_table_of_errors_is_that_of_the_server() -> None:
    kinds = [kind for kind in vars(emberbox.errors).values() if isinstance(kind, type)]
    wanted = {kind.code: status_of(kind("x")) for kind in kinds if issubclass(kind, VmExecutionError)}
    told: dict[str, int] = {}
    for line in section("## Errors").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[1].isdigit():
            told |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), int(cells[1]))
    assert told == wanted


# --- scopes -----------------------------------------------------------------------------------------------------------

BODIES: dict[str, object] = {
    **EXAMPLES,
    "KeepRequest": {},
    "RollbackRequest": {"target": "x"},
    "ContextCreateRequest": {},
    "InterruptRequest": {},
    "ForkRequest": {},
    "PointRequest": {"point": "x"},
    "DiffRequest": {"before": "x"},
    "TimeoutRequest": {"seconds": 1},
    "PathRequest": {"path": "x"},
    "RenameRequest": {"path": "x", "new_path": "y"},
    "StdinRequest": {},
    "CancelRequest": {"execution_id": "x"},
    "SessionSnapshotRequest": {},
    "SessionRollbackRequest": {"snapshot_id": "x"},
}


def request_to(schema: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    """What `httpx` is told to send something valid there."""
    body = schema["paths"][path][method.lower()].get("requestBody", {}).get("content", {})
    asked: dict[str, Any] = {"method": method, "url": path.replace("{pid}", "1").replace("{agent_id}", "nobody")}
    asked["url"] = re.sub(r"\{\w+\}", "none", asked["url"])
    if "{path}" not in path and "/files" in path:
        asked["params"] = {"path": "x"}
    if "application/json" in body and body["application/json"]["schema"].get("$ref"):
        asked["json"] = BODIES[body["application/json"]["schema"]["$ref"].rpartition("/")[2]]
    return asked


def test_each_endpoint_wants_the_scope_that_the_page_says(own_server: Served, schema: dict[str, Any]) -> None:
    tokens: dict[str | None, str | None] = {
        scope: own_server.token(scope, "--scope", scope, "--agent", "nobody")
        for scope in ("read", "execute", "approve")
    }
    tokens["metrics"] = own_server.token("metrics", "--scope", "metrics")
    tokens["all"] = own_server.token("all", "--scope", "read")
    for (method, path), told in SCOPES.items():
        scope, _, all_agents = told.partition(", ")
        wanted: dict[str | None, bool] = {
            "all": scope == "-" or "read" in scope.split(" or "),
            "metrics": scope == "-" or "metrics" in scope.split(" or "),
        }
        if not all_agents:
            wanted |= {"read": scope in {"-", "read"}, "approve": scope in {"-", "approve"}}
        for holder, may in wanted.items():
            with own_server.client(tokens[holder]) as client:
                answer = client.request(**request_to(schema, method, path))
            assert answer.status_code != 400, answer.text
            assert (answer.status_code != 403) == may, f"{method} {path} for {holder}: {answer.text}"
        with own_server.client() as client:
            answer = client.request(**request_to(schema, method, path))
        assert (answer.status_code == 401) == (scope != "-"), f"{method} {path} without a token"


def test_who_may_execute_may_look(own_server: Served, schema: dict[str, Any]) -> None:
    with own_server.client(own_server.token("runs", "--scope", "execute", "--agent", "nobody")) as client:
        for (method, path), scope in SCOPES.items():
            if scope == "read":
                assert client.request(**request_to(schema, method, path)).status_code in {200, 404}, path


def test_a_socket_is_refused_before_it_opens(own_server: Served) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(own_server.url.replace("http", "ws") + "/ws", proxy=None):
        pass
    assert refused.value.response.status_code == 401
    assert b'"unauthorized"' in refused.value.response.body


# --- examples ---------------------------------------------------------------------------------------------------------

BLOCK = re.compile(r"^```(sh|python) run\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_examples_run(own_server: Served, tmp_path: Path) -> None:
    script = ["set -euo pipefail"]
    for number, (language, code) in enumerate(BLOCK.findall(PAGE)):
        path = tmp_path / f"{number}.py"
        if language == "python":
            path.write_text(code, encoding="utf-8")
        command = f"{shlex.quote(sys.executable)} -W error {path}" if language == "python" else code
        script += [f"echo; echo '#{number}'", command]
    token = own_server.token("ada", "--scope", "read", "--scope", "execute", "--scope", "approve", "--agent", "ada")
    environment = own_server.environment() | {"SERVER": own_server.url, "TOKEN": token, "no_proxy": "*"}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.split(r"\n#\d+\n", done.stdout)[1:]
    assert json.loads(said[0])["stdout"] == "42\n"
    assert '"stdout":"a,b\\n1,2\\n' in said[1]
    assert "executions_undone" in said[1]
    assert '"execution_results":[{' in said[2]
    assert "}/tmp\n" in said[2]
    assert '"code":"blocked_by_policy"' in said[3].replace(": ", ":")
    assert [line for line in said[4].splitlines() if line.startswith("event")] == [
        "event: stdout", "event: result", "event: complete",
    ]  # fmt: skip
    once = said[5].strip()
    assert once[: len(once) // 2] == once[len(once) // 2 :], "the second answer is that of the first"
    assert json.loads(once[: len(once) // 2])["stdout"] == "2\n"
    assert said[6].splitlines()[-1] == "completed 0"


# --- figures ----------------------------------------------------------------------------------------------------------

NAME = re.compile(r"\b((?:emberbox|process)_\w+)(?:\{([^}]*)\})?")


def asked_for() -> dict[str, set[str]]:
    """Each figure in the expressions of the dashboard and the alert rules, with the labels that it is asked for."""
    dashboard = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    rules = (ROOT / "deploy/alerts.yml").read_text(encoding="utf-8")
    expressions += re.findall(r"(?ms)^ {8}expr: (.*?)(?=^ {8}\w)", rules)
    found: dict[str, set[str]] = {}
    for expression in expressions:
        grouped = {one.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for one in by.split(",")}
        for name, matchers in NAME.findall(expression):
            found.setdefault(name, set()).update(re.findall(r'(\w+)(?:=~|!~|!=|=)"', matchers or ""))
            if expression.count(name) == len(NAME.findall(expression)):  # the groups are its own
                found[name] |= grouped
    return found


def test_the_dashboard_and_the_alerts_ask_for_what_there_is(own_server: Served) -> None:
    with own_server.client(own_server.token("busy", "--agent", "busy")) as client:
        for code in ("print('mail ada@example.com')", "1 / 0", "import os; os.system('ls')", "eval('1')"):
            client.post("/api/llm/execute", json={"language": "python", "code": code})
        vms = [client.post("/api/vms", json={}).json()["id"] for _ in range(3)]  # from the second on, there is a pool
        client.post(f"/api/vms/{vms[0]}/snapshots", json={})
        for vm in vms:
            client.delete(f"/api/vms/{vm}")
    with own_server.client(own_server.token("prometheus", "--scope", "read")) as client:
        client.get("/ready")
        text = client.get("/metrics").text
    exported: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            exported.setdefault(sample.name, set()).update(sample.labels)
    for name, labels in asked_for().items():
        assert name in exported, f"{name} is not exported"
        assert labels - {"job", "instance"} <= exported[name], name
    assert {"emberbox_pool_ready", "emberbox_executions_waiting", "process_resident_memory_bytes"} <= set(asked_for())
    own = {name for name in exported if name.startswith("emberbox_") and not re.search(r"_(created|count|sum)$", name)}
    assert own <= set(asked_for()), "the dashboard leaves something out"
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(emberbox_\w+)`", page))
    assert told == {name.removesuffix("_bucket") for name in own}, "the table of figures is not the server's"
