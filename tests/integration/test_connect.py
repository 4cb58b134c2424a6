"""A second handle on a sandbox, by its id: what the SDK promises, wherever the machine is."""

from __future__ import annotations

import pytest

from emberbox import Sandbox
from emberbox.errors import SessionNotFound, VmNotAvailable

CONTRACT = True
"""On gVisor, here and on a server; what is marked so on every back end (conftest.py)."""
TEMPLATE = "minimal"


@pytest.mark.every_backend
@pytest.mark.own_machine
def test_two_handles_on_one_sandbox(sandbox: Sandbox, where: str | None) -> None:
    first = sandbox
    first.run_code("x = 1")
    second = Sandbox.connect(first.sandbox_id, base_url=where)
    assert second.run_code("x").text == "1"
    second.run_code("x = 2")
    assert first.run_code("x").text == "2"
    first.kill()
    assert not second.is_running()
    with pytest.raises((VmNotAvailable, SessionNotFound)):  # the latter by a server, which keeps no dead ones
        second.run_code("x")
    second.kill()
    with pytest.raises(SessionNotFound) as error:
        Sandbox.connect(first.sandbox_id, base_url=where)
    assert where is not None or "durable" in error.value.remediation


def test_a_paused_one_goes_on(sandbox: Sandbox, where: str | None) -> None:
    sandbox.run_code("x = 1")
    sandbox.pause()
    with Sandbox.connect(sandbox.sandbox_id, base_url=where) as again:
        assert again.run_code("x").text == "1"


def test_a_fork_is_found_by_its_own_id(sandbox: Sandbox, where: str | None) -> None:
    sandbox.run_code("x = 1")
    (child,) = sandbox.fork(1)
    child.run_code("x = 2")
    with Sandbox.connect(child.sandbox_id, base_url=where) as again:
        assert again.run_code("x").text == "2"
    assert sandbox.run_code("x").text == "1"
    child.kill()
