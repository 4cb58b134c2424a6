"""The first sandbox of a template boots; the ones after it are forked from what it was before any user code."""

from __future__ import annotations

from pathlib import Path

import pytest

from emberbox import MachineLimits, Sandbox
from emberbox.machines.gvisor.factory import GvisorFactory

LIMITS = MachineLimits(memory_mb=256, disk_mb=32, tmp_mb=16)


@pytest.fixture(autouse=True)
def snapshots(nothing_left: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBERBOX_SNAPSHOT_DIR", str(tmp_path))
    return tmp_path / "templates"


@pytest.fixture
def boots(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each machine came to be, in order; the real factory does the work."""
    seen: list[str] = []
    for verb in ("boot", "fork"):
        original = getattr(GvisorFactory, verb)

        async def counted(self, *args, verb=verb, original=original):  # type: ignore[no-untyped-def]
            seen.append(verb)
            return await original(self, *args)

        monkeypatch.setattr(GvisorFactory, verb, counted)
    return seen


def create(**options: object) -> Sandbox:
    return Sandbox.create("minimal", limits=LIMITS, **options)  # type: ignore[arg-type]


def test_the_second_sandbox_is_a_fork(boots: list[str], snapshots: Path) -> None:
    for _ in range(3):
        with create() as sandbox:
            assert sandbox.run_code("40 + 2").text == "42"
            assert sandbox.run_code("echo $((40 + 2))", "bash").stdout == "42\n"
    assert boots == ["boot", "fork", "fork"]
    (kept,) = snapshots.iterdir()
    assert kept.stat().st_mode & 0o077 == 0, "nobody else may change what sandboxes start from"


def test_nothing_of_the_first_sandbox_reaches_the_second(boots: list[str]) -> None:
    with create(envs={"TOKEN": "of the first"}) as first:
        assert first.run_code("import os; os.environ['TOKEN']").text == "'of the first'"
        first.run_code("x = 1")
        first.files.write("f", "x")
    with create() as second:
        assert second.run_code("import os; os.environ.get('TOKEN'), 'x' in globals()").text == "(None, False)"
        assert second.run_code("echo -$TOKEN-", "bash").stdout == "--\n"
        assert second.commands.run("echo -$TOKEN-").stdout == "--\n"
        assert second.files.list() == []
    assert boots == ["boot", "fork"]


def test_a_fork_gets_its_own_environment(boots: list[str]) -> None:
    for name in ("one", "two"):
        with create(envs={"NAME": name}) as sandbox:
            assert sandbox.run_code("import os; os.environ['NAME']").text == f"'{name}'"
            assert sandbox.run_code("echo $NAME", "bash").stdout == f"{name}\n"
            assert sandbox.commands.run("echo $NAME").stdout == f"{name}\n"
            other = sandbox.create_code_context("python", envs={"MORE": "yes"})
            run = sandbox.run_code("import os; os.environ['NAME'], os.environ['MORE']", context=other)
            assert run.text == f"('{name}', 'yes')"
    assert boots == ["boot", "fork"]


def test_forks_of_a_template_draw_different_numbers(boots: list[str]) -> None:
    code = "import random, uuid; random.random(), str(uuid.uuid4())"
    drawn = set()
    for _ in range(3):
        with create() as sandbox:
            drawn.add(sandbox.run_code(code).text)
            drawn.add(sandbox.run_code("echo $RANDOM$RANDOM", "bash").stdout)
    assert len(drawn) == 6


def test_other_limits_are_another_snapshot(boots: list[str], snapshots: Path) -> None:
    for limits in (LIMITS, LIMITS.model_copy(update={"disk_mb": 64}), LIMITS):
        with Sandbox.create("minimal", limits=limits) as sandbox:
            metrics = sandbox.get_metrics()
            assert metrics.disk_total_bytes == limits.disk_mb << 20
    assert boots == ["boot", "boot", "fork"]
    assert len(list(snapshots.iterdir())) == 2


@pytest.mark.parametrize("name", ["pages.img", "checkpoint.img", "pages_meta.img", "snapshot.json"])
def test_a_damaged_snapshot_is_replaced(boots: list[str], snapshots: Path, name: str) -> None:
    with create():
        pass
    (kept,) = snapshots.iterdir()
    path = kept / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    for _ in range(2):
        with create() as sandbox:
            assert sandbox.run_code("40 + 2").text == "42"
    assert boots[0] == "boot"
    assert boots[-2:] == ["boot", "fork"]
