"""The agent and its channel."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from .conftest import PACKAGE_PARENT, PATIENCE, Client, agent_argv, configuration


def test_it_says_hello_and_answers_before_it_is_configured(bare_agent: Client) -> None:
    assert bare_agent.outcomes[0].final == {"id": 0, "ev": "hello", "protocol": 1}
    assert bare_agent.call("ping").final["ev"] == "done"
    assert bare_agent.call("sync", nonce="n1").final["nonce"] == "n1"


def test_nothing_else_works_before_it_is_configured(bare_agent: Client) -> None:
    assert bare_agent.call("stat", path="x").final["kind"] == "bad_request"


def test_it_is_configured_once(agent: Client, tmp_path: Path) -> None:
    assert agent.call("configure", **configuration(tmp_path)).final["kind"] == "bad_request"


@pytest.mark.parametrize("op", ["nonsense", None, 3, ["ping"]])
def test_unknown_operations_are_refused(agent: Client, op: str) -> None:
    assert agent.call(op).final["kind"] == "bad_request"


def test_a_malformed_frame_ends_it(bare_agent: Client) -> None:
    os.write(bare_agent.fd_out, b"\x7f" * 64)
    with pytest.raises(EOFError):
        bare_agent.receive()
    assert bare_agent.process.wait(PATIENCE) == 0


def test_a_hang_up_ends_it_and_what_it_runs(tmp_path: Path) -> None:
    client = Client(agent_argv(), PACKAGE_PARENT)
    client.wait(0, "hello")
    client.call("configure", **configuration(tmp_path))
    ident = client.begin_exec("/bin/sleep", "1000")
    child = os.pidfd_open(client.wait(ident, "started").events[0][0]["pid"])
    try:
        client.close()
        assert select.select([child], [], [], PATIENCE)[0] == [child]  # readable when it has ended
    finally:
        os.close(child)


def test_a_failing_warm_up_is_reported(bare_agent: Client, tmp_path: Path) -> None:
    final = bare_agent.call("configure", **configuration(tmp_path, warmup="import no_such_module")).final
    assert final["ev"] == "error"
    assert "no_such_module" in final["message"]


def test_many_requests_are_under_way_at_once(agent: Client) -> None:
    slow = agent.begin_exec("/bin/sleep", "1000")
    agent.wait(slow, "started")
    assert agent.call("ping").final["ev"] == "done"
    agent.call("signal", target=slow, signal=9)
    assert agent.finish(slow).reason == "killed"


def test_metrics(agent: Client) -> None:
    final = agent.call("metrics").final
    assert final["disk_total"] >= final["disk_used"] > 0
    assert final["memory_used"] > 0
