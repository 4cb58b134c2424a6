"""Requests made from the server's own OpenAPI document, good and bad ones, to a real server with real machines: no
defect, no status and no body that the document does not tell of, and bad ones are refused.

The same requests in each run (`derandomize`), and few of each: a machine's name is put in where one is wanted, so that
most of them come as far as a machine.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from wire import defects

from emberbox.config import load_settings
from emberbox.server.app import create_app
from served import Served

DOCUMENT = create_app(load_settings()).openapi()
OPERATIONS = [
    (path, method) for path, methods in DOCUMENT["paths"].items() for method in methods
    if path != "/api/vms/{vm_id}/events"  # never ends by itself: `test_a_followed_machine` has it
]  # fmt: skip
CHECKS = [
    status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance,
]  # fmt: skip
GOOD, ANY_PATH, BAD = 5, 2, 4
SECONDS = 20.0
LANGUAGES = ("python", "bash")
CAPACITY = {"no_capacity", "fork_failed", "vm_not_available"}
"""What a server with five places may say to much that is asked for at once."""


class World:
    """A server with few resources, and something of each kind that a request may name."""

    def __init__(self) -> None:
        self.server = Served({
            "VM_EXECUTION__DEFAULT_VM_TYPE": "minimal",
            "VM_EXECUTION__EXECUTION_TIMEOUT_MS": "1000",
            "VM_EXECUTION__VM_POOL_SIZE": "2",
            "VM_EXECUTION__SECURITY_SETTINGS__RESOURCE_LIMITS__MAX_EXECUTION_TIME_SECONDS": "2",
            "VM_EXECUTION__SECURITY_SETTINGS__RESOURCE_LIMITS__MAX_MEMORY_MB": "1024",
            "MAX_SANDBOXES": "5",
            "MAX_SNAPSHOTS": "8",
            "CAPACITY_TIMEOUT_SECONDS": "0.2",
            "BOOT_TIMEOUT_SECONDS": "5",
            "SERVER__REQUESTS_PER_SECOND": "100000",
        }).start()  # fmt: skip
        self.api = self.server.client()
        document = self.api.get("/openapi.json").json()
        del document["security"]  # this server has no tokens; test_access has one that has
        self.schema = schemathesis.openapi.from_dict(document)
        self._vm = self._snapshot = ""

    def vm(self) -> str:
        """A machine of the agent's that lives."""
        if not self._vm or not self.api.get(f"/api/vms/{self._vm}").is_success:
            self.server.end_machines()
            self._vm = str(self._made("/api/vms", {"agent_id": "ada"})["id"])
            self._snapshot = ""
        self.api.post(f"/api/vms/{self._vm}/resume")
        return self._vm

    def snapshot(self) -> str:
        """One of its snapshots."""
        path = f"/api/vms/{self.vm()}/snapshots"
        found = [one["snapshot_id"] for one in self.api.get(path).json()["snapshots"]]
        if self._snapshot not in found:
            for one in found:  # there may be eight
                self.api.delete(f"{path}/{one}")
            self._snapshot = str(self._made(path, {})["snapshot_id"])
        return self._snapshot

    def session(self) -> str:
        """A session's name."""
        if not self.api.get("/sessions/s/info").is_success:
            self._made("/sessions", {"name": "s", "agent_id": "ada"})
        return "s"

    def tidy(self) -> None:
        """End what a request has made."""
        for vm in self.api.get("/api/vms").json()["vms"]:
            if vm["id"] != self._vm:
                self.api.delete(f"/api/vms/{vm['id']}")

    def _made(self, path: str, body: Any) -> Any:
        answer = self.api.post(path, json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def close(self) -> None:
        self.api.close()
        self.server.finish()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def few(examples: int) -> Any:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def known(world: World, path: str) -> dict[str, str]:
    """Values for the places of a path, of things that are there."""
    found = {}
    if "{vm_id}" in path:
        found["vm_id"] = world.vm()
    if "{snapshot_id}" in path:
        found["snapshot_id"] = world.snapshot()
    if "{name}" in path:
        found["name"] = world.session()
    return found


def put_in(world: World, body: Any, data: st.DataObject) -> None:
    """What the request names is there, most of the time; what it runs is code, and has an end."""
    if not isinstance(body, dict):
        return
    likely = data.draw(st.sampled_from([True, True, True, False]))
    wanted: dict[str, Any] = {
        "vm_id": world.vm, "target": world.snapshot, "point": world.snapshot, "before": world.snapshot,
        "language": lambda: data.draw(st.sampled_from(LANGUAGES)), "vm_type": lambda: "minimal",
        "snapshot_id": world.snapshot, "agent_id": lambda: "ada",
    }  # fmt: skip
    for name, value in wanted.items():
        if likely and isinstance(body.get(name), str):
            body[name] = value()
    for block in body.get("code_blocks") or ():
        if isinstance(block, dict) and isinstance(block.get("language"), str):
            block["language"] = data.draw(st.sampled_from(LANGUAGES))
    # a command has no time of its own unless it is told, and a stream of it would not end
    if "cmd" in body:
        body["timeout_seconds"] = 1.0
    # names that no environment can have keep a start busy for its whole time: test_server_hostile_callers has them
    if isinstance(body.get("envs"), dict):
        values = [value for value in body["envs"].values() if isinstance(value, str)]
        body["envs"] = {f"E{n}": value.replace("\0", "") for n, value in enumerate(values)}


def conforms(case: Any, response: Any, *more: Any) -> None:
    """It is as the document says. A stream is text there; its events are looked at here."""
    if "text/event-stream" not in response.headers.get("content-type", [""])[0]:
        case.validate_response(response, checks=[*CHECKS, *more])
        return
    case.validate_response(response, checks=CHECKS[:-1])
    events = [one.partition("\n") for one in response.text.split("\n\n") if one and not one.startswith(":")]
    names = [name.removeprefix("event: ") for name, _, _ in events]
    assert set(names) <= {"started", "stdout", "stderr", "result", "complete", "error"}
    assert names[-1] in {"complete", "error"}
    for _, _, data in events:
        assert isinstance(json.loads(data.removeprefix("data: ")), dict)


def send(world: World, case: Any) -> Any:
    """Send it. Never a defect, and "no capacity" only where there may be none."""
    response = case.call(base_url=world.server.url, timeout=SECONDS)
    if response.status_code >= 500:
        code = response.json()["error"]["code"] if "json" in response.headers.get("content-type", [""])[0] else "?"
        assert (response.status_code, code in CAPACITY) == (503, True), (case.as_curl_command(), response.text[:500])
    return response


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=str)
def test_good_requests(world: World, path: str, method: str) -> None:
    operation = world.schema[path][method]

    def check(case: Any, data: st.DataObject) -> None:
        put_in(world, case.body, data)
        conforms(case, send(world, case))

    @few(GOOD)  # type: ignore[untyped-decorator]
    @given(data=st.data())
    def named(data: st.DataObject) -> None:
        places = known(world, path) or None
        check(data.draw(operation.as_strategy(path_parameters=places)), data)

    @few(ANY_PATH)  # type: ignore[untyped-decorator]
    @given(data=st.data())
    def unnamed(data: st.DataObject) -> None:
        check(data.draw(operation.as_strategy()), data)

    try:
        named()
        if "{" in path:
            unnamed()
    finally:
        world.tidy()


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=str)
def test_bad_requests(world: World, path: str, method: str) -> None:
    """What is wrong with them is found before anything is done."""
    operation = world.schema[path][method]

    @few(BAD)  # type: ignore[untyped-decorator]
    @given(data=st.data())
    def bad(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        component = case.meta.components.get(ParameterLocation.PATH) if case.meta else None
        if component is not None and not component.mode.is_negative:
            case.path_parameters.update(known(world, path))
        conforms(case, send(world, case), negative_data_rejection)

    # an operation without parameters has nothing that could be wrong
    if not operation.body and not any(True for _ in operation.iter_parameters()):
        return
    try:
        with contextlib.suppress(Unsatisfiable):  # nothing but names in its path: any text is one
            bad()
    finally:
        world.tidy()


def test_a_followed_machine(world: World) -> None:
    """The one operation whose answer has no end: its beginning is as the document says."""
    vm = world.vm()
    with world.api.stream("GET", f"/api/vms/{vm}/events") as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        with world.server.client() as other:
            other.post(f"/api/vms/{vm}/run", json={"code": "1"})
        assert next(stream.iter_text()).startswith("event: followed\ndata: {")
    answer = world.api.get("/api/vms/sb-none/events")
    assert answer.status_code == 404


def test_the_document_is_the_one_that_the_tests_are_made_from(world: World) -> None:
    assert world.api.get("/openapi.json").json() == DOCUMENT


def test_the_document_says_where_no_token_is_needed() -> None:
    """A generated client would refuse to ask for them without one."""
    for path in ("/health", "/ready"):
        assert DOCUMENT["paths"][path]["get"].get("security") == [], path


def test_unknown_methods_are_refused(world: World) -> None:
    for path, methods in DOCUMENT["paths"].items():
        place = re.sub(r"\{\w+\}", "x", path)
        for method in {"get", "post", "put", "delete", "patch"} - set(methods):
            with contextlib.suppress(httpx.HTTPError):
                answer = world.api.request(method.upper(), place)
                if answer.status_code == 405:
                    assert answer.headers["allow"], (method, path)
                assert answer.status_code < 500, (method, path, answer.text)


def test_nothing_of_all_this_was_a_defect(world: World) -> None:
    """The last one of this file."""
    assert defects(world.server) == {}
