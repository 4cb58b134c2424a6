"""No answer tells what is another's: every route, with bodies that are right, wrong, malformed and too long, answers
about another agent's machine, session, question or snapshot as about one that is not there. It is decided by the token
and the address, before the body is read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from forms import OPERATIONS, Operation
from wire import defects

from served import Served
from waiting import until

LONGEST = 20_000
NOTHING = {
    "vm_id": "sb-000000000000", "name": "nobodys", "snapshot_id": "snap-000000000000",
    "approval_id": "ap-0000000000000000",
    "execution_id": "ex-0000000000000000", "agent_id": "nobody",
}  # fmt: skip
SAME = {"context_id": "python", "pid": "4711"}
ASKS = "import subprocess; subprocess.run(['true'])"


class World:
    """A server on which ada has one of each."""

    def __init__(self) -> None:
        self.server = Served({
            "VM_EXECUTION__DEFAULT_VM_TYPE": "minimal",
            "SERVER__MAX_BODY_BYTES": str(LONGEST),
            "SERVER__REQUESTS_PER_SECOND": "100000",
        })  # fmt: skip
        self.server.config.write_text('[vm_execution.policy]\nask = ["python.subprocess"]\n')
        ada, bob = self.server.token("ada", "--agent", "ada"), self.server.token("bob", "--agent", "bob")
        none = self.server.token("none", "--scope", "metrics", "--agent", "ada")
        both = ("--scope", "approve", "--scope", "execute")
        judge = self.server.token("judge", *both, "--agent", "ada")
        other = self.server.token("other", *both, "--agent", "bob")
        self.server.start()
        client = self.server.client
        self.ada, self.judge = client(ada), client(judge)
        self.callers = {"bob": client(bob), "no scope": client(none), "another judge": client(other)}
        run = self._made("/api/llm/execute", {"language": "python", "code": "1"}, 200)
        vm = run["vm_id"]
        kept = self._made(f"/api/vms/{vm}/snapshots", {"snapshot_type": "kept"})
        self._made("/sessions", {"name": "hers"})
        asked = {"language": "python", "code": ASKS, "vm_id": vm}
        self._asking = threading.Thread(target=lambda: self.ada.post("/api/llm/execute", json=asked))
        self._asking.start()
        until(lambda: self.judge.get("/api/approvals").json()["approvals"] != [], "a question waits")
        question = self.judge.get("/api/approvals").json()["approvals"][0]["approval_id"]
        self.names = {
            "vm_id": vm, "name": "hers", "snapshot_id": kept["snapshot_id"], "approval_id": question,
            "execution_id": run["execution_id"], "agent_id": "ada",
        }  # fmt: skip

    def _made(self, path: str, body: Any, status: int = 201) -> Any:
        answer = self.ada.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def close(self) -> None:
        self.judge.post(f"/api/approvals/{self.names['approval_id']}", json={"approve": False})
        self._asking.join(20)
        for client in (self.ada, self.judge, *self.callers.values()):
            client.close()
        self.server.finish()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def bodies(operation: Operation, names: dict[str, str]) -> dict[str, tuple[Any, dict[str, str]]]:
    """Right and wrong ones, and their headers."""
    right = json.dumps(operation.body).encode()
    naming = {key: value for key, value in names.items() if key in operation.fields}
    kind = {"Content-Type": "application/json"}
    found: dict[str, tuple[Any, dict[str, str]]] = {
        "right": (right, kind),
        "empty": (b"", {}),
        "wrong": (b'{"no such key": 1}', kind),
        "no object": (b"[]", kind),
        "malformed": (b"{", kind),
        "no text": (b'{"code": "\\ud800"}', kind),
        "no UTF-8": (b'"\xff"', kind),
        "form": (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}),
        "too long": (b" " * (LONGEST + 1), kind),
        "too long, in pieces": (iter([b" " * LONGEST] * 2), kind),
    }
    if naming:
        found["naming"] = (json.dumps(operation.body | naming).encode(), kind)
    return found


def answer_to(client: httpx.Client, operation: Operation, names: dict[str, str], which: str) -> tuple[int, str]:
    """The answer, without the names."""
    content, headers = bodies(operation, names)[which]
    answer = client.request(operation.method, operation.url(names | SAME), content=content, headers=headers)
    text = answer.text
    for place, name in names.items():
        text = text.replace(name, f"<{place}>")
    return answer.status_code, text


OWNED = [one for one in OPERATIONS if "{" in one.path or {"vm_id", "snapshot_id"} & set(one.fields)]


@pytest.mark.parametrize("operation", OWNED, ids=str)
def test_what_is_anothers_is_answered_as_what_is_not_there(world: World, operation: Operation) -> None:
    for caller, client in world.callers.items():
        for which in bodies(operation, world.names):
            theirs = answer_to(client, operation, world.names, which)
            nothing = answer_to(client, operation, NOTHING, which)
            if theirs[0] in {200, 201}:  # one that names nothing, and makes something of the caller's own
                assert which == "right", (caller, which, theirs)
                assert theirs[0] == nothing[0], (caller, which)
                continue
            assert theirs == nothing, (caller, which)
            assert theirs[0] in {400, 403, 404, 413}, (caller, which, theirs)


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.path not in {"/health", "/ready"}], ids=str)
def test_a_token_without_the_scope_learns_nothing_from_bodies(world: World, operation: Operation) -> None:
    """All its requests have the same answer, whatever the body is; but for a length that the head tells."""
    client = world.callers["no scope"]
    for which in bodies(operation, world.names):
        status, text = answer_to(client, operation, world.names, which)
        assert status == (413 if which == "too long" and operation.method != "PUT" else 403), (which, text)


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if "{vm_id}" in one.path], ids=str)
def test_the_address_counts_before_the_body(world: World, operation: Operation) -> None:
    for which in bodies(operation, world.names):
        if which != "too long":
            status, text = answer_to(world.callers["bob"], operation, world.names, which)
            assert status == 404, (which, text)


def test_nothing_of_hers_has_changed(world: World) -> None:
    assert world.ada.get(f"/api/vms/{world.names['vm_id']}").status_code == 200
    assert world.ada.get("/sessions/hers/info").status_code == 200
    assert [one["approval_id"] for one in world.judge.get("/api/approvals").json()["approvals"]] == [
        world.names["approval_id"]
    ]
    assert defects(world.server) == {}
