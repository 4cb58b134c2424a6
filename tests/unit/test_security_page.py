"""What SECURITY.md says of its own tests, and what it promises of the source as a whole."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAD = "## Promises and their tests"
NAME = re.compile(r"`([a-z_/0-9]+\.py)::(test_[a-z_0-9]+)`")
SOURCE = ROOT / "src" / "emberbox"
SHELLS = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
    "pty.spawn", "loop.subprocess_shell",
}  # fmt: skip


def rows() -> list[str]:
    table = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition(HEAD)[2].partition("\n## ")[0]
    return [line for line in table.splitlines() if line.startswith("|")][2:]


def functions_of(path: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, kinds)}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.split("|")[1].strip())
def test_each_promise_has_tests_that_exist(row: str) -> None:
    _, promise, tests, _ = row.split("|")
    assert promise.strip()
    named = NAME.findall(tests)
    assert len(named) == len(tests.split(",")), "each as `path::name`"
    missing = [f"{path}::{name}" for path, name in named if name not in functions_of(ROOT / "tests" / path)]
    assert missing == []


def test_there_is_a_table() -> None:
    assert len(rows()) > 40


def test_nothing_on_the_host_is_started_by_a_shell_string() -> None:
    """Code for a machine is another matter: the agent (guest/) runs what it is told, there."""
    found = []
    for path in SOURCE.rglob("*.py"):
        if (SOURCE / "guest") not in path.parents:
            found += [f"{path.relative_to(ROOT)}:{line}" for line in _shell_strings(path)]
    assert found == []


def _shell_strings(path: Path) -> list[int]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_shell(node)]


def _is_shell(call: ast.Call) -> bool:
    shell = any(
        word.arg == "shell" and not (isinstance(word.value, ast.Constant) and word.value.value is False)
        for word in call.keywords
    )
    listed = [part.value for part in ast.walk(call) if isinstance(part, ast.Constant)]
    run_by_one = any(word in {"sh", "bash", "/bin/sh", "/bin/bash"} for word in listed) and "-c" in listed
    return shell or ast.unparse(call.func) in SHELLS or run_by_one


@pytest.mark.parametrize(
    ("code", "is_one"),
    [
        ("subprocess.run(['ls'])", False), ("subprocess.run('ls', shell=True)", True), ("os.system('ls')", True),
        ("subprocess.run(['sh', '-c', text])", True), ("spawn(['bash', 'x'])", False),
    ],
)  # fmt: skip
def test_shell_strings_are_found(code: str, is_one: bool, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(code)
    assert bool(_shell_strings(tmp_path / "x.py")) is is_one
