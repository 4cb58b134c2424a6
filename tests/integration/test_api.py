"""The HTTP API, by plain HTTP, on a real server process with real machines."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse

from emberbox.server.examples import EXAMPLES
from served import Served
from waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")
ANSWER = """Run this:

```python
x = 6
print(x * 7)
```

and then:

```bash
echo from bash
```

Never run this:

```python
print("no")
```
"""


@pytest.fixture
def api(served: Served) -> Iterator[httpx.Client]:
    """A client; all machines end with the test."""
    with served.client() as client:
        yield client
    served.end_machines()


@pytest.fixture
def vm(api: httpx.Client) -> str:
    """A machine of agent ada's."""
    made = api.post("/api/vms", json={"vm_type": "minimal", "agent_id": "ada", "vm_name": "bench"})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def done(response: httpx.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of an answer; every one has all of its parts."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert error["remediation"]
    assert set(error) == {"code", "message", "remediation", "retryable", "details"}
    return error


def python(api: httpx.Client, code: str, **more: Any) -> Any:
    return done(api.post("/api/llm/execute", json={"agent_id": "ada", "language": "python", "code": code, **more}))


# --- operations -------------------------------------------------------------------------------------------------------


def test_health_readiness_and_figures(api: httpx.Client) -> None:
    assert done(api.get("/health"))["status"] == "ok"
    ready = done(api.get("/ready"))
    assert (ready["status"], ready["backend"]) == ("ready", "gvisor")
    python(api, "1 / 0")
    text = api.get("/metrics").text
    assert 'emberbox_executions_total{language="python",outcome="failure"}' in text
    assert 'emberbox_http_requests_total{method="POST",route="/api/llm/execute",status="200"}' in text
    assert 'emberbox_sandboxes{state="running"} 1.0' in text


def test_the_documentation_needs_nothing_from_elsewhere(api: httpx.Client) -> None:
    page = api.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    assert api.get("/docs/assets/swagger-ui-bundle.js").status_code == 200
    document = done(api.get("/openapi.json"))
    assert document["openapi"].startswith("3.")
    assert document["components"]["schemas"]["ExecuteV2Request"]["examples"]


def test_the_examples_of_the_document_are_taken(api: httpx.Client, vm: str) -> None:
    """Each is sent where the document says."""
    sent: set[str] = set()
    for pattern, methods in done(api.get("/openapi.json"))["paths"].items():
        body = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        name = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
        if name not in EXAMPLES or name in sent or "approval" in pattern or "{snapshot_id}" in pattern:
            continue
        path = pattern.replace("{vm_id}", vm).replace("{name}", EXAMPLES["SessionCreateRequest"]["name"])
        answer = api.post(path, json=EXAMPLES[name])
        assert answer.is_success, (name, answer.text)
        sent.add(name)
    assert sent == set(EXAMPLES) - {"ApprovalAnswer", "RollbackV2Request"}


def test_request_ids_are_taken_over_into_answer_and_log(api: httpx.Client, served: Served) -> None:
    answer = api.get("/api/vms", headers={"X-Request-ID": "mine-1"})
    assert answer.headers["X-Request-ID"] == "mine-1"
    evil = api.get("/api/vms", headers={"X-Request-ID": 'a"b c'}).headers["X-Request-ID"]
    assert evil != 'a"b c'

    def logged() -> list[str]:  # written when the answer is out, read by a thread
        return [line["path"] for line in served.logs() if line.get("request_id") == "mine-1"]

    until(logged, "the line of the log")
    assert logged() == ["/api/vms"]


# --- /api/llm ---------------------------------------------------------------------------------------------------------


def test_code_runs_in_the_agents_own_machine_which_stays(api: httpx.Client) -> None:
    first = python(api, "x = 41\nprint('hi')")
    assert (first["stdout"], first["stderr"], first["exit_code"], first["error"]) == ("hi\n", "", 0, None)
    second = python(api, "x + 1")
    assert second["results"][0]["text"] == "42"
    assert second["vm_id"] == first["vm_id"]
    assert first["execution_id"] != second["execution_id"]
    assert first["started_at"] <= first["completed_at"]


def test_failing_code_is_no_error_of_the_request(api: httpx.Client) -> None:
    run = python(api, "import sys\nprint('a')\nprint('b', file=sys.stderr)\n1 / 0")
    assert run["exit_code"] == 1
    assert run["error"] == "ZeroDivisionError: division by zero"
    assert run["stdout"] == "a\n"
    assert run["stderr"].startswith("b\n")


def test_timeouts_directories_and_requirements(api: httpx.Client) -> None:
    run = python(api, "import time; time.sleep(60)", timeout_seconds=0.3)
    assert run["termination_reason"] == "timeout"
    assert python(api, "import os; print(os.getcwd())", working_dir="/tmp")["stdout"] == "/tmp\n"
    body = {"language": "python", "code": "1", "requirements": ["no-such-package-at-all"]}
    error = refused(api.post("/api/llm/execute", json=body), 400, "validation_failed")
    assert "no-such-package-at-all" in error["message"]


def test_what_policy_refuses_is_422_and_names_the_rule(api: httpx.Client) -> None:
    body = {"agent_id": "ada", "language": "bash", "code": "rm -rf /"}
    error = refused(api.post("/api/llm/execute", json=body), 422, "blocked_by_policy")
    assert error["retryable"] is True
    assert error["details"]["findings"][0]["line"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"language": "python"}, "code"),
        ({"language": "cobol", "code": "x"}, "cobol"),
        ({"language": "python", "code": "1", "colour": "red"}, "colour"),
        ({"language": "python", "code": "1", "timeout_seconds": -1}, "timeout_seconds"),
        ({"language": "python", "code": "1", "timeout_seconds": 1e6}, "timeout"),
    ],
)
def test_bad_input_is_400_and_names_the_field(api: httpx.Client, body: dict[str, Any], field: str) -> None:
    answer = api.post("/api/llm/execute", json=body)
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]


def test_machines_that_are_not_there_are_404(api: httpx.Client) -> None:
    body = {"language": "python", "code": "1", "vm_id": "sb-000000000000"}
    refused(api.post("/api/llm/execute", json=body), 404, "session_not_found")
    refused(api.get("/api/vms/sb-000000000000"), 404, "session_not_found")
    refused(api.get("/api/vms/sb-000000000000/history"), 404, "session_not_found")
    refused(api.get("/nowhere"), 404, "session_not_found")
    assert api.put("/health").status_code == 405


def test_an_answer_is_searched_and_run(api: httpx.Client) -> None:
    found = done(api.post("/api/llm/parse-execute", json={"agent_id": "ada", "llm_response": ANSWER}))
    assert [block["language"] for block in sorted(found["code_blocks"], key=lambda b: b["start_pos"])] == [
        "python", "bash", "python",
    ]  # fmt: skip
    assert [run["stdout"] for run in found["execution_results"]] == ["42\n", "from bash\n"]
    assert python(api, "x")["results"][0]["text"] == "6"
    body = {"agent_id": "ada", "llm_response": ANSWER, "auto_execute": False}
    assert done(api.post("/api/llm/parse-execute", json=body))["execution_results"] == []


def test_a_requests_own_configuration_only_narrows(api: httpx.Client) -> None:
    body: dict[str, Any] = {
        "agent_id": "ada",
        "llm_response": ANSWER,
        "vm_config": {"allowed_languages": ["bash"], "policy": {"disabled": ["*"]}},
    }
    found = done(api.post("/api/llm/parse-execute", json=body))
    assert [run["stdout"] for run in found["execution_results"]] == ["from bash\n"]
    assert [error["code"] for error in found["errors"]] == ["unsupported_language"]
    body = {"agent_id": "ada", "llm_response": "Run:\n```bash\nrm -rf /\n```", "auto_execute_threshold": 0.0} | {
        "vm_config": {"policy": {"disabled": ["*"]}}
    }
    found = done(api.post("/api/llm/parse-execute", json=body))
    assert [error["code"] for error in found["errors"]] == ["blocked_by_policy"]


def test_the_pool_of_an_agent(api: httpx.Client, vm: str) -> None:
    pool = done(api.get("/api/llm/vm-pool/ada"))
    assert [one["id"] for one in pool["available_vms"]] == [vm]
    assert (pool["agent_id"], pool["in_use_vms"]) == ("ada", [])
    assert pool["pool_config"]["default_vm_type"] == "default"
    assert done(api.get("/api/llm/vm-pool/somebody"))["available_vms"] == []


# --- streams ----------------------------------------------------------------------------------------------------------


def test_output_comes_as_events_while_it_runs(api: httpx.Client, vm: str) -> None:
    """The code waits for a file that is written when its first line has come: so it was not sent at the end."""
    code = (
        "import pathlib, time\nprint('first', flush=True)\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('second')\n6 * 7"
    )
    body = {"agent_id": "ada", "vm_id": vm, "language": "python", "code": code}
    seen: list[tuple[str, Any]] = []
    with connect_sse(api, "POST", "/api/v2/execute?stream=true", json=body) as source:
        assert source.response.headers["content-type"].startswith("text/event-stream")
        for event in source.iter_sse():
            seen.append((event.event, json.loads(event.data)))
            if len(seen) == 1:
                done(api.put(f"/api/vms/{vm}/files", params={"path": "go"}, content=b""))
    assert seen[0] == ("stdout", {"content": "first\n"})
    assert seen[1] == ("stdout", {"content": "second\n"})
    assert (seen[2][0], seen[2][1]["result"]["text"]) == ("result", "42")
    assert seen[3][0] == "complete"
    assert (seen[3][1]["status"], seen[3][1]["stdout"]) == ("completed", "first\nsecond\n")


def test_an_error_of_a_stream_is_its_last_event(api: httpx.Client) -> None:
    body = {"agent_id": "ada", "language": "bash", "code": "rm -rf /"}
    with connect_sse(api, "POST", "/api/llm/execute?stream=true", json=body) as source:
        events = [(event.event, json.loads(event.data)) for event in source.iter_sse()]
    assert [name for name, _ in events] == ["error"]
    assert events[0][1]["error"]["code"] == "blocked_by_policy"


def test_whoever_watches_a_machine_sees_what_others_run(api: httpx.Client, vm: str, served: Served) -> None:
    with served.client() as other, connect_sse(other, "GET", f"/api/vms/{vm}/events") as source:
        events = source.iter_sse()
        python(api, "print('seen')", vm_id=vm)
        kinds = [json.loads(next(events).data) for _ in range(3)]
    assert [kind["kind"] for kind in kinds] == ["started", "stdout", "ended"]
    assert (kinds[1]["content"], kinds[2]["exit_code"]) == ("seen\n", 0)


# --- /api/vms ---------------------------------------------------------------------------------------------------------


def test_machines_are_made_listed_and_ended(api: httpx.Client, vm: str) -> None:
    info = done(api.get(f"/api/vms/{vm}"))
    assert (info["name"], info["vm_type"], info["status"], info["agent_id"]) == ("bench", "minimal", "ready", "ada")
    assert [one["id"] for one in done(api.get("/api/vms"))["vms"]] == [vm]
    assert done(api.get(f"/api/vms/{vm}/info"))["metadata"] == {}
    assert done(api.delete(f"/api/vms/{vm}"))["status"] == "stopped"
    refused(api.get(f"/api/vms/{vm}"), 404, "session_not_found")
    refused(api.delete(f"/api/vms/{vm}"), 404, "session_not_found")
    refused(api.post("/api/vms", json={"vm_type": "no-such-template"}), 400, "validation_failed")
    refused(api.post("/api/vms", json={"metadata": {"emberbox:name": "x"}}), 403, "forbidden")
    refused(api.post("/api/vms", json={"vm_name": "../etc"}), 400, "validation_failed")


def test_the_history_of_a_machine_stays_when_it_ends(api: httpx.Client, vm: str) -> None:
    python(api, "print(1)", vm_id=vm)
    python(api, "1 / 0", vm_id=vm)
    found = done(api.get(f"/api/vms/{vm}/history"))
    assert ([entry["command"] for entry in found["history"]], found["total"]) == (["1 / 0", "print(1)"], 2)
    failures = done(api.get(f"/api/vms/{vm}/history", params={"failures_only": True, "limit": 1}))
    assert [entry["success"] for entry in failures["history"]] == [False]
    assert done(api.get(f"/api/vms/{vm}/history", params={"agent_id": "bob"}))["total"] == 0
    assert done(api.get(f"/api/vms/{vm}/history", params={"end_date": "2020-01-01T00:00:00Z"}))["total"] == 0
    done(api.delete(f"/api/vms/{vm}"))
    assert done(api.get(f"/api/vms/{vm}/history"))["total"] == 2
    entry = found["history"][0]["execution_id"]
    assert done(api.get(f"/api/history/{entry}"))["history"][0]["command"] == "1 / 0"
    assert done(api.get("/api/history", params={"vm_id": vm}))["total"] == 2
    assert done(api.get("/api/history/verify"))["intact"] is True
    refused(api.get("/api/history/ex-nothing"), 404, "session_not_found")


def test_snapshots_and_rollback(api: httpx.Client, vm: str) -> None:
    python(api, "x = 1; open('f', 'w').write('one')", vm_id=vm)
    snapshot = done(api.post(f"/api/vms/{vm}/snapshots", json={"name": "one", "description": "first"}), 201)
    assert snapshot["name"] == "one"
    assert snapshot["size_mb"] > 0
    python(api, "x = 2; open('f', 'w').write('two')", vm_id=vm)
    listed = done(api.get(f"/api/vms/{vm}/snapshots"))["snapshots"]
    assert [one["snapshot_id"] for one in listed] == [snapshot["snapshot_id"]]
    body = {"create_pre_rollback_snapshot": True}
    back = done(api.post(f"/api/vms/{vm}/rollback/{snapshot['snapshot_id']}", json=body))
    assert (back["vm_id"], back["snapshot_id"]) == (vm, snapshot["snapshot_id"])
    assert python(api, "x, open('f').read()", vm_id=vm)["results"][0]["text"] == "(1, 'one')"
    done(api.post(f"/api/vms/{vm}/rollback/{back['pre_rollback_snapshot_id']}"))
    assert python(api, "x, open('f').read()", vm_id=vm)["results"][0]["text"] == "(2, 'two')"
    refused(api.post(f"/api/vms/{vm}/rollback/sn-nothing"), 404, "snapshot_not_found")
    left = done(api.delete(f"/api/vms/{vm}/snapshots/one"))["snapshots"]
    assert "one" not in [one["name"] for one in left]


def test_kept_snapshots_start_other_machines(api: httpx.Client, vm: str) -> None:
    python(api, "x = 42", vm_id=vm)
    body = {"name": "kept", "snapshot_type": "kept"}
    kept = done(api.post(f"/api/vms/{vm}/snapshots", json=body), 201)["snapshot_id"]
    done(api.delete(f"/api/vms/{vm}"))
    again = done(api.post("/api/vms", json={"snapshot_id": kept, "agent_id": "ada"}), 201)["id"]
    assert python(api, "x", vm_id=again)["results"][0]["text"] == "42"


# --- /sessions --------------------------------------------------------------------------------------------------------


def test_a_sessions_shell_stays(api: httpx.Client) -> None:
    made = done(api.post("/sessions", json={"name": "build", "vm_type": "minimal", "memory_mb": 512}), 201)
    assert (made["name"], made["memory_mb"], made["status"]) == ("build", 512, "ready")
    refused(api.post("/sessions", json={"name": "build", "vm_type": "minimal"}), 409, "conflict")
    done(api.post("/sessions/build/execute", json={"command": "cd /tmp; X=1; echo one > f"}))
    run = done(api.post("/sessions/build/execute", json={"command": "echo $PWD $X; echo bad >&2; false"}))
    assert (run["stdout"], run["stderr"], run["output"], run["exit_code"]) == ("/tmp 1\n", "bad\n", "/tmp 1\nbad\n", 1)
    snapshot = done(api.post("/sessions/build/snapshots", json={"name": "s"}), 201)["snapshot_id"]
    done(api.post("/sessions/build/execute", json={"command": "rm f; X=2"}))
    done(api.post("/sessions/build/rollback", json={"snapshot_id": snapshot}))
    assert done(api.post("/sessions/build/execute", json={"command": "cat f; echo $X"}))["stdout"] == "one\n1\n"
    assert done(api.get("/sessions/build/info"))["snapshots"] == 1
    assert [one["name"] for one in done(api.get("/sessions"))["sessions"]] == ["build"]
    done(api.delete("/sessions/build"))
    refused(api.get("/sessions/build/info"), 404, "session_not_found")


# --- /api/v2 ----------------------------------------------------------------------------------------------------------


def test_snapshot_strategies_of_one_execution(api: httpx.Client, vm: str) -> None:
    def run(code: str, strategy: str) -> Any:
        body = {"agent_id": "ada", "vm_id": vm, "language": "python", "code": code, "snapshot_strategy": strategy}
        return done(api.post("/api/v2/execute", json=body))

    assert run("x = 1", "none")["snapshot_before"] is None
    before = run("x = 2", "pre-execution")
    assert before["snapshot_before"]
    after = run("x = 3", "post-execution")
    assert after["snapshot_id"]
    assert run("x = 4", "on-failure")["snapshot_id"] is None
    failed = run("x = 5; 1 / 0", "on-failure")
    assert (failed["status"], bool(failed["snapshot_id"]), bool(failed["snapshot_before"])) == ("failed", True, True)
    for snapshot, value in ((before["snapshot_before"], 1), (after["snapshot_id"], 3), (failed["snapshot_before"], 4)):
        done(api.post(f"/api/vms/{vm}/rollback/{snapshot}"))
        assert python(api, "x", vm_id=vm)["results"][0]["text"] == str(value)


def test_limits_of_one_execution(api: httpx.Client, vm: str) -> None:
    body = {"agent_id": "ada", "vm_id": vm, "language": "python", "code": "print('x' * 5000)"}
    run = done(api.post("/api/v2/execute", json=body | {"resource_limits": {"output_bytes": 1024}}))
    assert (len(run["stdout"]), run["stdout_truncated"], run["status"]) == (1024, True, "completed")
    wide = {"resource_limits": {"output_bytes": 64 << 20}}
    assert "output_bytes" in done(api.post("/api/v2/execute", json=body | wide), 400)["error"]["message"]
    body["code"] = "while True: pass"
    run = done(api.post("/api/v2/execute", json=body | {"timeout_ms": 60000, "resource_limits": {"timeout_ms": 300}}))
    assert run["status"] == "timeout"


def test_a_sequential_batch_carries_state_over(api: httpx.Client) -> None:
    blocks = [{"language": "python", "code": "x = 1"}, {"language": "python", "code": "print(x)"}]
    body = {"agent_id": "ada", "code_blocks": blocks, "snapshot": True}
    done_ = done(api.post("/api/v2/execute/batch", json=body))
    assert [one["execution"]["stdout"] for one in done_["results"]] == ["", "1\n"]
    assert done_["batch_id"]
    assert done_["snapshot_id"]
    body = {
        "agent_id": "ada",
        "stop_on_failure": True,
        "code_blocks": [{"language": "python", "code": "1 / 0"}, {"language": "bash", "code": "echo no"}],
    }
    assert [one["status"] for one in done(api.post("/api/v2/execute/batch", json=body))["results"]] == [
        "failed", "skipped",
    ]  # fmt: skip


def test_a_parallel_batch_runs_each_in_a_fork(api: httpx.Client) -> None:
    machine = python(api, "x = 1")["vm_id"]
    blocks = [{"language": "python", "code": f"x += {n}; print(x)"} for n in (10, 20)]
    blocks.append({"language": "bash", "code": "rm -rf /"})
    body = {"agent_id": "ada", "vm_id": machine, "code_blocks": blocks, "execution_mode": "parallel"}
    found = done(api.post("/api/v2/execute/batch", json=body))
    assert [one["status"] for one in found["results"]] == ["completed", "completed", "refused"]
    assert [one["execution"]["stdout"] for one in found["results"][:2]] == ["11\n", "21\n"]
    assert python(api, "x")["results"][0]["text"] == "1"
    assert [one["id"] for one in done(api.get("/api/vms"))["vms"]] == [machine]


def test_many_ideas_at_once_begin_with_the_same_state(api: httpx.Client) -> None:
    machine = python(api, "x = 1")["vm_id"]
    blocks = [{"language": "python", "code": f"x += {n}; print(x)"} for n in range(25)]
    body = {"agent_id": "ada", "vm_id": machine, "code_blocks": blocks, "execution_mode": "parallel"}
    found = done(api.post("/api/v2/execute/batch", json=body))
    assert [one["execution"]["stdout"] for one in found["results"]] == [f"{1 + n}\n" for n in range(25)]
    assert done(api.get(f"/api/vms/{machine}/snapshots"))["snapshots"] == []


def test_the_pool_and_allocation(api: httpx.Client) -> None:
    made = done(api.post("/api/v2/vms/allocate", json={"agent_id": "ada", "vm_config": {"memory_mb": 512}}), 201)
    assert (made["status"], made["estimated_ready_time_ms"]) == ("ready", 0)
    assert done(api.get(f"/api/vms/{made['vm_id']}/info"))["limits"]["memory_mb"] == 512
    status = done(api.get("/api/v2/vm-pool/status"))
    assert status["pool_stats"]["in_use"] == 1
    assert status["resource_stats"]["sandboxes"] == 1
    too_much = {"vm_config": {"memory_mb": 1 << 19}}
    refused(api.post("/api/v2/vms/allocate", json=too_much), 400, "validation_failed")


def test_strategies_of_rollback(api: httpx.Client, vm: str) -> None:
    python(api, "x = 1; open('a', 'w').write('1'); open('b', 'w').write('1')", vm_id=vm)
    first = done(api.post(f"/api/v2/vms/{vm}/snapshots", json={"name": "good"}), 201)["snapshot_id"]
    python(api, "x = 2; open('a', 'w').write('2'); open('b', 'w').write('2')", vm_id=vm)
    path = f"/api/v2/vms/{vm}/snapshots/{first}/rollback"
    back = done(api.post(path, json={"strategy": "selective", "paths": ["a"]}))
    assert back["files_affected"] == ["/home/user/a"]
    text = "x, open('a').read(), open('b').read()"
    assert python(api, text, vm_id=vm)["results"][0]["text"] == "(2, '1', '2')"
    back = done(api.post(f"/api/v2/vms/{vm}/snapshots/-/rollback", json={"strategy": "to-last-success"}))
    assert back["snapshot_id"] == first
    assert python(api, text, vm_id=vm)["results"][0]["text"] == "(1, '1', '1')"
    body = {"agent_id": "ada", "vm_id": vm, "language": "python", "code": "x = 9", "snapshot_strategy": "pre-execution"}
    done(api.post("/api/v2/execute", json=body))
    done(api.post(f"/api/v2/vms/{vm}/snapshots/-/rollback", json={"strategy": "to-pre-execution"}))
    assert python(api, "x", vm_id=vm)["results"][0]["text"] == "1"
    refused(api.post(path, json={"strategy": "selective"}), 400, "validation_failed")


# --- inside -----------------------------------------------------------------------------------------------------------


def test_commands_take_standard_input(api: httpx.Client, vm: str) -> None:
    with connect_sse(api, "POST", f"/api/vms/{vm}/commands", json={"cmd": ["cat"], "background": True}) as source:
        events = source.iter_sse()
        pid = json.loads(next(events).data)["pid"]
        assert [one["pid"] for one in done(api.get(f"/api/vms/{vm}/commands"))["processes"]] == [pid]
        body = {"data": base64.b64encode("héllo".encode()).decode(), "eof": True}
        done(api.post(f"/api/vms/{vm}/commands/{pid}/stdin", json=body))
        rest = [(event.event, json.loads(event.data)) for event in events]
    assert rest[0] == ("stdout", {"content": "héllo"})
    assert (rest[1][0], rest[1][1]["exit_code"]) == ("complete", 0)
    error = refused(api.post(f"/api/vms/{vm}/commands/1/stdin", json={"data": "%"}), 400, "validation_failed")
    assert "base64" in error["message"]


def test_files_that_are_not_there_are_404(api: httpx.Client, vm: str) -> None:
    refused(api.get(f"/api/vms/{vm}/files", params={"path": "nothing"}), 404, "file_error")
    refused(api.put(f"/api/vms/{vm}/files", params={"path": "/etc/x"}, content=b"x"), 409, "file_error")


def test_a_file_may_be_longer_than_a_request(api: httpx.Client, vm: str) -> None:
    data = bytes(range(256)) * (20 << 12)
    done(api.put(f"/api/vms/{vm}/files", params={"path": "big"}, content=data))
    assert api.get(f"/api/vms/{vm}/files", params={"path": "big"}).content == data
