"""Text that cannot be encoded is refused by name, wherever it enters the SDK; the sandbox goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emberbox import Sandbox
from emberbox.errors import ValidationFailed

HALF = "\ud800"
ENTRIES: dict[str, Callable[[Sandbox], object]] = {
    "code": lambda sandbox: sandbox.run_code(f"print('{HALF}')"),
    "bash": lambda sandbox: sandbox.run_code(f"echo '{HALF}'", "bash"),
    "cwd": lambda sandbox: sandbox.run_code("1", cwd=HALF),
    "envs": lambda sandbox: sandbox.run_code("1", envs={"A": HALF}),
    "path": lambda sandbox: sandbox.files.write(HALF, "x"),
    "data": lambda sandbox: sandbox.files.write("x", HALF),
    "read": lambda sandbox: sandbox.files.read(HALF),
    "command": lambda sandbox: sandbox.commands.run("echo " + HALF),
    "argument": lambda sandbox: sandbox.commands.run(["echo", HALF]),
    "environment": lambda sandbox: sandbox.commands.run("env", envs={HALF: "x"}),
    "snapshot": lambda sandbox: sandbox.snapshot(HALF),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_halves_of_surrogate_pairs_are_refused(sandbox: Sandbox, entry: str) -> None:
    with pytest.raises(ValidationFailed, match="surrogate"):
        ENTRIES[entry](sandbox)
    assert sandbox.run_code("6 * 7").text == "42"


@pytest.mark.parametrize("field", ["envs", "metadata"])
def test_also_when_a_sandbox_is_made(field: str, nothing_left: None) -> None:
    with pytest.raises(ValidationFailed, match="surrogate"):
        Sandbox.create("minimal", **{field: {"A": HALF}})  # type: ignore[arg-type]
