"""Snapshots, rollback, fork and branch: files, memory and processes. What the SDK promises, wherever the machine is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from backends import LIFE_SECONDS
from emberbox import Sandbox
from emberbox.errors import ExecutionFailed, SnapshotNotFound, ValidationFailed
from waiting import until

CONTRACT = True
"""On gVisor, here and on a server; what is marked so on every back end (conftest.py)."""
TEMPLATE = "minimal"


_SLEEPING = """
from pathlib import Path
found = [path.read_bytes().replace(b"\\0", b" ").decode().strip() for path in Path("/proc").glob("[0-9]*/cmdline")]
print(*sorted(line for line in found if line.startswith("sleep ")), sep="\\n")
"""


def sleeping(sandbox: Sandbox) -> list[str]:
    """The command lines of `sleep` that are there. Asked of the interpreter that runs already: to start a program takes
    many seconds where KVM is emulated."""
    return sandbox.run_code(_SLEEPING).stdout.splitlines()


@pytest.mark.every_backend
def test_rollback_takes_back_files_memory_and_processes(sandbox: Sandbox) -> None:
    sandbox.run_code("x = 'before'")
    sandbox.run_code("y=before; cd /tmp", "bash")
    sandbox.files.write("kept", "before")
    sleeper = sandbox.commands.run("sleep 4242", background=True)
    point = sandbox.snapshot("point")

    sandbox.run_code("x = 'after'; z = 1")
    sandbox.run_code("y=after; cd /", "bash")
    sandbox.files.write("kept", "after")
    sandbox.files.write("new", "")
    sleeper.kill()
    sandbox.commands.run("sleep 1717", background=True)

    sandbox.rollback(point)
    assert sandbox.run_code("x").text == "'before'"
    assert sandbox.run_code("z").error is not None
    assert sandbox.run_code("echo $y $PWD", "bash").stdout == "before /tmp\n"
    assert sandbox.files.read("kept") == "before"
    assert not sandbox.files.exists("new")
    assert sleeping(sandbox) == ["sleep 4242"]


@pytest.mark.every_backend(heavy=True)
def test_rollback_works_again_and_again(sandbox: Sandbox) -> None:
    sandbox.run_code("n = 0")
    point = sandbox.snapshot()
    for _ in range(3):
        assert sandbox.run_code("n += 1; n").text == "1"
        sandbox.rollback(point.snapshot_id)


@pytest.mark.every_backend(heavy=True)
@pytest.mark.own_machine
def test_snapshots_make_a_tree(sandbox: Sandbox) -> None:
    root = sandbox.snapshot("root", description="before anything")
    left = sandbox.snapshot("left")
    sandbox.rollback(root)
    right = sandbox.snapshot("right")
    assert [(s.name, s.parent_id) for s in sandbox.list_snapshots()] == [
        ("root", None),
        ("left", root.snapshot_id),
        ("right", root.snapshot_id),
    ]
    assert [s.description for s in sandbox.list_snapshots()] == ["before anything", "", ""]
    assert all(s.size_bytes > 1_000_000 and s.sandbox_id == sandbox.sandbox_id for s in sandbox.list_snapshots())
    sandbox.delete_snapshot(root)
    assert [(s.name, s.parent_id) for s in sandbox.list_snapshots()] == [("left", None), ("right", None)]
    sandbox.rollback(left)
    sandbox.rollback(right)


@contextmanager
def forked(sandbox: Sandbox, count: int) -> Iterator[list[Sandbox]]:
    """Copies that end with the test, however it ends."""
    children = sandbox.fork(count, timeout=LIFE_SECONDS)
    try:
        yield children
    finally:
        for child in children:
            child.kill()


@pytest.mark.every_backend
@pytest.mark.own_machine
def test_forks_go_on_from_here_each_on_its_own(sandbox: Sandbox) -> None:
    sandbox.run_code("x = 1")
    sandbox.files.write("f", "shared")
    sleeper = sandbox.commands.run("sleep 4242", background=True)
    with forked(sandbox, 2) as children:
        for number, child in enumerate(children):
            child.run_code(f"x += {number}")
            child.files.write("f", str(number))
        assert [child.run_code("x").text for child in children] == ["1", "2"]
        assert [child.files.read("f") for child in children] == ["0", "1"]
        assert [sleeping(child) for child in children] == 2 * [["sleep 4242"]]
        assert len({sandbox.sandbox_id, *(child.sandbox_id for child in children)}) == 3
        assert sandbox.run_code("x").text == "1"
        assert sandbox.files.read("f") == "shared"
        assert sandbox.list_snapshots() == [], "what a fork needs does not stay"
        sleeper.kill()
        assert sleeping(children[0]) == ["sleep 4242"]


RANDOM = (
    "import os, random, ssl, uuid\n"
    "random.random(), random.randrange(10**9), os.urandom(8).hex(), str(uuid.uuid4()), ssl.RAND_bytes(8).hex()"
)


@pytest.mark.every_backend(heavy=True)
def test_two_forks_never_draw_the_same_numbers(sandbox: Sandbox) -> None:
    sandbox.run_code(RANDOM)
    sandbox.run_code("echo $RANDOM", "bash")
    with forked(sandbox, 2) as children:
        drawn = [[sandbox, *children][n].run_code(RANDOM).text for n in range(3)]
        assert len({part for text in drawn for part in str(text).strip("()").split(", ")}) == 15
        shells = [s.run_code("echo $RANDOM $RANDOM $RANDOM", "bash").stdout for s in [sandbox, *children]]
        assert len(set(shells)) == 3


WAITS = {
    "sleep": "sleep 4000",
    "pipe": "sleep 4001 | cat",
    "wait": "sleep 4002 & wait",
    "read": "sleep 4003 | (read x)",
    "fifo": "mkfifo one; read x < one",
    "tail": "touch log; tail -f log",
    "python's sleep": "python3 -c 'import time; time.sleep(4004)'",
    "python's fifo": 'python3 -c \'import os; os.mkfifo("two"); open("two")\'',
    "python's accept": "python3 -c 'import socket; socket.create_server((\"127.0.0.1\", 0)).accept()'",
}


def test_what_waits_goes_on_waiting_over_snapshots_and_in_copies(sandbox: Sandbox) -> None:
    """docs/undo.md says which system calls do not, and of which programs."""
    commands = [sandbox.commands.run(f"{code}; echo over", background=True) for code in WAITS.values()]
    until(lambda: sandbox.get_metrics().processes > len(WAITS) + 3, "all of them")
    for _ in range(3):
        sandbox.snapshot()
    with sandbox.fork(1)[0] as copy:
        for one in (sandbox, copy):
            there = {command.pid for command in one.commands.list()}
            assert {command.pid for command in commands} <= there, "they wait"


@pytest.mark.every_backend(heavy=True)
def test_branch_leaves_the_sandbox_alone(sandbox: Sandbox) -> None:
    sandbox.run_code("x = 'then'")
    point = sandbox.snapshot()
    sandbox.run_code("x = 'now'")
    branch = sandbox.branch(point)
    assert branch.run_code("x").text == "'then'"
    assert sandbox.run_code("x").text == "'now'"
    branch.kill()
    assert sandbox.run_code("x").text == "'now'"


@pytest.mark.every_backend
def test_pause_refuses_and_resume_goes_on(sandbox: Sandbox) -> None:
    sandbox.run_code("x = 1")
    sandbox.pause()
    sandbox.pause()
    assert sandbox.get_info().state == "paused"
    with pytest.raises(ExecutionFailed, match="is paused"):
        sandbox.run_code("x")
    sandbox.resume()
    assert sandbox.run_code("x").text == "1"


def test_unknown_snapshots_and_counts(sandbox: Sandbox) -> None:
    for work in (sandbox.rollback, sandbox.delete_snapshot, sandbox.branch):
        with pytest.raises(SnapshotNotFound, match="snap-nope"):
            work("snap-nope")
    with pytest.raises(ValidationFailed, match="at least 1"):
        sandbox.fork(0)
