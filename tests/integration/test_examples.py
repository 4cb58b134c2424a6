"""Every program under examples/ runs and says what it promises; those that need a server get one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from served import Served

EXAMPLES = Path(__file__).parents[2] / "examples"
ALONE = {
    "agent.py": ["10 7"],
    "bridge.py": ["ZeroDivisionError", "total 15", "recorded: 4"],
    "custom_hook.py": ["agents work on copies", "[REDACTED:email]", "refused"],
    "several_languages.py": ["55", '{"total": 55} apples', "rust agrees: 55", "10"],
}
ON_A_SERVER = {
    "batch.py": ["completed [1, 2, 3]", "completed 6", "completed 3", "failed NameError"],
    "bridge.py": ["ZeroDivisionError", "total 15", "recorded: 4"],
    "client.py": ["failed: AssertionError", "balance: 100", "the answer is 42"],
    "session_adapter.py": ["exit 127", "/home/user/project\nv1", "/ws/sb-"],
    "several_languages.py": ["55", "rust agrees: 55"],
    "websocket.py": ["hello", "short    ended: completed", "endless  ended: cancelled"],
}
pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("nothing_left")]


def output(name: str, *args: str) -> str:
    argv = [sys.executable, "-W", "error", str(EXAMPLES / name), *args]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ALONE)
def test_examples_that_need_no_server(name: str) -> None:
    said = output(name)
    for words in ALONE[name]:
        assert words in said


@pytest.mark.parametrize("name", ON_A_SERVER)
def test_examples_on_a_server(name: str, served: Served) -> None:
    said = output(name, served.url)
    for words in ON_A_SERVER[name]:
        assert words in said
    served.end_machines()


@pytest.mark.parametrize("name", sorted(ON_A_SERVER))
def test_without_a_server_they_say_what_to_do(name: str) -> None:
    argv = [sys.executable, str(EXAMPLES / name), "http://127.0.0.1:9"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "emberbox serve" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ALONE) | set(ON_A_SERVER)
