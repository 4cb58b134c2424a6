"""The names of the package."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

import emberbox.agent
from emberbox.agent import CommandInput, CommandType


def test_everything_that_is_promised_can_be_had() -> None:
    for name in emberbox.agent.__all__:
        assert getattr(emberbox.agent, name) is not None
    assert sorted(emberbox.agent.__all__) == emberbox.agent.__all__
    assert set(emberbox.agent._HOMES) == set(emberbox.agent.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Terraphin'"):
        emberbox.agent.Terraphin  # noqa: B018


def test_to_import_it_loads_nothing_much() -> None:
    code = "import sys, emberbox.agent; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert {"pydantic", "httpx", "emberbox.agent.agent"}.isdisjoint(done.stdout.split())


def test_a_command_needs_a_text() -> None:
    with pytest.raises(ValidationError, match="there is no text"):
        CommandInput(command=CommandType.CHAT, text=" \n")
    assert CommandInput(command=CommandType("execute"), text="\udc80x").text == "?x"
