"""Values that no text, number or JSON can be: in each field of each route, in addresses and heads, and in each field of
each message of the WebSockets. They are refused with words, never with a defect."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from forms import OPERATIONS, Operation
from websockets.sync.client import ClientConnection, connect
from wire import defects

from emberbox.models import Model
from emberbox.server import messages
from served import Served

REFUSED = {
    "half of a pair": '"\\ud800"',
    "other half": '"a\\uDFFFb"',
    "half in a list": '["\\ud83d"]',
    "half in a key": '{"\\ud800": 1}',
    "no number": "NaN",
    "no end": "-Infinity",
    "too large": "1e999",
    "many digits": "9" * 5000,
    "deep list": "[" * 200 + "]" * 200,
    "deeper": '{"a":' * 5000 + "1" + "}" * 5000,
    "deeper than the parser goes": "[" * 200_000 + "]" * 200_000,
    "twice": '{"a": 1, "a": 2}',
}
"""JSON that stands nowhere in a request."""
ODD = {
    "NUL": '"a\\u0000b"', "large": str(10**300), "null": "null", "list": "[[]]", "long": json.dumps("x" * 100_000),
}  # fmt: skip
"""JSON that is right in some place, and wrong in most."""
BODIES = {
    "nothing": b"", "half": b"{", "no UTF-8": b'{"code": "\xff"}', "UTF-16": '{"code": "1"}'.encode("utf-16"),
    "text": b'"x"',
    "list": b"[1]", "null": b"null", "mark": b"\xef\xbb\xbf{}", "two": b"{} {}", "digits": b"1" * 10_000, "NUL": b"\0",
    "twice": b'{"code": "1", "code": "2"}', "CESU": b'{"code": "\xed\xa0\x80"}',
}  # fmt: skip
KINDS = ["application/json", "application/json; charset=utf-16", "text/plain", "multipart/form-data; boundary=x",
         "application/x-www-form-urlencoded", "application/vnd.x+json", "", "\xff"]  # fmt: skip
PARTS = ["%ff", "%ed%a0%80", "%00", "%c0%af", "a%00b", "\u202e", "%F0%9F", "NaN", "1e999", "9" * 5000, "-1", "%0a"]
BODIED = [one for one in OPERATIONS if one.schema is not None]


class World:
    """A server without tokens, and one machine with a session."""

    def __init__(self) -> None:
        self.server = Served({
            "VM_EXECUTION__DEFAULT_VM_TYPE": "minimal", "SERVER__REQUESTS_PER_SECOND": "100000", "MAX_SANDBOXES": "6",
            "CAPACITY_TIMEOUT_SECONDS": "0.2", "VM_EXECUTION__EXECUTION_TIMEOUT_MS": "2000",
        }).start()  # fmt: skip
        self.api = self.server.client()
        self._vm = ""

    def names(self) -> dict[str, str]:
        """Of what is there."""
        if not self._vm or not self.api.get(f"/api/vms/{self._vm}").is_success:
            self.server.end_machines()
            made = self.api.post("/sessions", json={"name": "s", "agent_id": "ada"})
            assert made.status_code == 201, made.text
            self._vm = made.json()["vm_id"]
        return {
            "vm_id": self._vm, "name": "s", "snapshot_id": "none", "approval_id": "none", "execution_id": "none",
            "agent_id": "ada", "context_id": "python", "pid": "4711",
        }  # fmt: skip

    def tidy(self) -> None:
        for vm in self.api.get("/api/vms").json()["vms"]:
            if vm["id"] != self._vm:
                self.api.delete(f"/api/vms/{vm['id']}")

    def close(self) -> None:
        self.api.close()
        self.server.finish()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture(autouse=True)
def _no_defect(world: World) -> Iterator[None]:
    before = defects(world.server)
    yield
    assert defects(world.server) == before
    assert not [line for line in world.server.lines if line.startswith("Traceback")]
    world.tidy()


def no_defect(answer: httpx.Response, what: object) -> None:
    """It is an answer with words; capacity may be short."""
    if answer.status_code >= 500:
        assert answer.json()["error"]["code"] in {"no_capacity", "fork_failed"}, (what, answer.text[:500])
    elif answer.status_code >= 400:
        assert answer.json()["error"]["message"], (what, answer.text[:500])


def put(body: dict[str, Any], name: str, literal: str) -> bytes:
    """The body with this JSON in a field."""
    mark = "\N{REPLACEMENT CHARACTER}mark"
    return json.dumps(body | {name: mark}).replace(json.dumps(mark), literal).encode()


@pytest.mark.parametrize("operation", BODIED, ids=str)
def test_each_field_of_each_body(world: World, operation: Operation) -> None:
    headers = {"Content-Type": "application/json"}
    for name in [*operation.fields, "no such field"]:
        for what, literal in (REFUSED | ODD).items():
            url = operation.url(world.names())
            answer = world.api.request(
                operation.method, url, content=put(operation.body, name, literal), headers=headers
            )
            no_defect(answer, (name, what))
            if what in REFUSED and "{approval_id}" in operation.path:
                assert answer.status_code == 404, "no such question waits: that counts before the body"
            elif what in REFUSED:
                assert answer.status_code == 400, (name, what, answer.text[:300])
                assert answer.json()["error"]["code"] == "validation_failed", (name, what, answer.text[:300])


@pytest.mark.parametrize("operation", BODIED, ids=str)
def test_bodies_that_are_none(world: World, operation: Operation) -> None:
    for kind in KINDS:
        for what, body in BODIES.items():
            headers = [(b"Content-Type", kind.encode("latin-1"))]
            answer = world.api.request(operation.method, operation.url(world.names()), content=body, headers=headers)
            no_defect(answer, (kind, what))


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if "{" in one.path or one.query], ids=str)
def test_addresses_that_are_no_text(world: World, operation: Operation) -> None:
    """What is percent-encoded is UTF-8 without NUL, or the request is refused; nothing is put in its place."""
    content = json.dumps(operation.body).encode() if operation.schema is not None else b""
    headers = {"Content-Type": "application/json"}
    for part in PARTS:
        names = dict.fromkeys(world.names(), part)
        addresses = [operation.url(names)] if "{" in operation.path else []
        base = operation.path.format(**world.names())
        addresses += [f"{base}?{name}={part}" for name in operation.query]
        for address in addresses:
            with world.api.stream(operation.method, address, content=content, headers=headers) as answer:
                if answer.headers.get("content-type", "").startswith("text/event-stream"):
                    continue
                answer.read()
                no_defect(answer, address[:300])
                if "%" in part and part not in ("%0a", "%E2%80%AE"):
                    assert answer.status_code == 400, (address, answer.text)


@pytest.mark.parametrize("header", ["Idempotency-Key", "X-Request-ID", "Authorization", "Accept", "Origin", "Cookie"])
def test_heads_that_are_no_text(world: World, header: str) -> None:
    body = {"agent_id": "ada", "language": "python", "code": "1"}
    for value in (b"\xff", b"\xed\xa0\x80", b"", b"x" * 10_000, b"\xc2\x80", b"a\tb", b"%00"):
        answer = world.api.post("/api/llm/execute", json=body, headers=[(header.encode(), value)])
        no_defect(answer, value)
        if header == "Idempotency-Key" and value != b"%00":
            assert answer.status_code == 400, (value, answer.text)


# --- WebSockets -------------------------------------------------------------------------------------------------------

TYPES: dict[str, tuple[type[Model], dict[str, Any]]] = {
    "LlmExecuteCode": (messages.ExecuteCode, {"language": "python", "code": "1"}),
    "LlmParseExecute": (messages.ParseExecute, {"llm_response": "hi"}),
    "CancelExecution": (messages.Cancel, {"execution_id": "x"}),
    "QueryHistory": (messages.QueryHistory, {}),
    "CreateSnapshot": (messages.CreateSnapshot, {}),
    "RollbackToSnapshot": (messages.RollbackToSnapshot, {"snapshot_id": "none"}),
    "ApprovalResponse": (messages.ApprovalAnswered, {"approval_id": "x", "approve": False}),
}


def opened(world: World, path: str) -> ClientConnection:
    return connect(world.server.url.replace("http", "ws") + path, proxy=None, close_timeout=2)


def refused_before_the_next(socket: ClientConnection, text: str, field: str, after: str) -> bool:
    """Send it, and a message of no type after it; whether the first answer that comes is an error of validation."""
    socket.send(text)
    socket.send(after)
    told: list[Any] = []
    while not told or "no_such_type" not in json.dumps(told[-1]):
        told.append(json.loads(socket.recv(timeout=20)))
    first = told[0]
    return bool(len(told) > 1 and first[field] in {"Error", "error"} and first["data"]["code"] == "validation_failed")


@pytest.mark.parametrize("kind", TYPES)
def test_each_field_of_each_message(world: World, kind: str) -> None:
    model, right = TYPES[kind]
    after = json.dumps({"message_type": "no_such_type"})
    fields = [*model.model_fields, "no such field"]
    for values in (REFUSED, ODD):  # what is taken is answered later than what is refused: each has a socket of its own
        with opened(world, f"/ws/{world.names()['vm_id']}") as socket:
            for name, (what, literal) in itertools.product(fields, values.items()):
                data = put(right, name, literal).decode()
                text = f'{{"message_type": "{kind}", "data": {data}}}'
                refused = refused_before_the_next(socket, text, "message_type", after)
                assert refused or values is ODD, (name, what)


@pytest.mark.parametrize("name", ["message_type", "data", "no such field"])
def test_each_field_around_a_message(world: World, name: str) -> None:
    after = json.dumps({"message_type": "no_such_type"})
    with opened(world, f"/ws/{world.names()['vm_id']}") as socket:
        for what, literal in REFUSED.items():
            text = put({"message_type": "QueryHistory", "data": {}}, name, literal).decode()
            assert refused_before_the_next(socket, text, "message_type", after), what
        for text in ("", "x", "[]", '"x"', "null", "1", '{"message_type": "QueryHistory"} x', "\0"):
            assert refused_before_the_next(socket, text, "message_type", after), text


@pytest.mark.parametrize(
    "place", ["command_type", "session_id", "workflow_id", "data", *messages.WorkflowCode.model_fields]
)
def test_each_field_of_a_workflow(world: World, place: str) -> None:
    after = json.dumps({"command_type": "no_such_type"})
    code = {"language": "python", "code": "1", "agent_id": "ada"}
    with opened(world, "/ws") as socket:
        for what, literal in REFUSED.items():
            if place in code or place == "timeout_seconds":
                text = f'{{"command_type": "execute_code", "data": {put(code, place, literal).decode()}}}'
            else:
                text = put({"command_type": "execute_code", "data": code}, place, literal).decode()
            assert refused_before_the_next(socket, text, "response_type", after), what
