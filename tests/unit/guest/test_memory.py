"""The memory watch, on real processes; which memory is used up is made up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from emberbox.guest import memory
from emberbox.guest.loop import Loop
from emberbox.guest.memory import MemoryWatch, resident

SIZE = 64 << 20


class Running:
    """An execution, as far as the watch looks at it."""

    def __init__(self, loop: Loop, root: int) -> None:
        self.began = loop.time()
        self.starved = self.held = False
        self.root = root
        self.killed = False

    def pids(self) -> list[int]:
        return [self.root]

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def shell() -> Iterator[subprocess.Popen[str]]:
    """A shell with a child that has 64 MiB, as the root of an execution."""
    allocate = f"import signal; data = b'x' * {SIZE}; print('ready', flush=True); signal.pause()"
    with subprocess.Popen(
        ["bash", "-c", '"$0" -c "$1" & echo $!; wait $!; echo $?; read -r', sys.executable, allocate],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        yield process
        os.killpg(process.pid, signal.SIGKILL)


def watch(loop: Loop, limit: int, running: list[Any]) -> MemoryWatch:
    settings: Any = SimpleNamespace(uid=os.getuid(), memory=limit, nproc=-1)
    return MemoryWatch(loop, settings, lambda: running)


def test_the_largest_process_of_what_runs_is_killed_and_then_the_rest(
    shell: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell.stdout is not None
    child = int(shell.stdout.readline())
    loop = Loop()
    running = Running(loop, shell.pid)
    limit = SIZE // 2
    looked = watch(loop, limit, [running])
    while resident(child) < SIZE:
        pass
    monkeypatch.setattr(memory, "left", lambda *_, **__: 1)
    looked._look()
    assert not running.starved, "there is some left"
    monkeypatch.setattr(memory, "left", lambda *_, **__: -SIZE)
    looked._look()
    lines = iter(shell.stdout.readline, "")
    assert str(128 + signal.SIGKILL) in (line.strip() for line in lines)
    assert (running.starved, running.killed) == (True, False), "the shell lives, and goes on"
    monkeypatch.setattr(memory, "SMALL", 1 << 30)
    looked._look()
    assert running.killed, "it did not help"


def test_it_looks_only_while_something_runs() -> None:
    loop = Loop()
    looked = watch(loop, 1 << 60, [])
    assert not loop._timers
    looked.begin()
    looked.begin()
    assert len(loop._timers) == 1
    looked._look()
    looked.end()
    looked.end()
    assert len(loop._timers) == 1, "a last look at what has been left behind"
    (last,) = loop._timers.values()
    loop._timers.clear()
    last[1]()
    assert not loop._timers


def test_without_a_limit_it_never_looks() -> None:
    loop = Loop()
    watch(loop, -1, []).begin()
    assert not loop._timers
