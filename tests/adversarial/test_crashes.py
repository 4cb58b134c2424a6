"""Whoever dies, and whenever: the caller is told, and nothing stays on the host."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from commandline import PROGRAM
from emberbox import AsyncSandbox, Engine, Settings, TerminationReason, load_settings
from emberbox.engine import ExecuteRequest
from emberbox.errors import ExecutionTimeout, VmNotAvailable
from emberbox.host.cgroups import find_cgroup_root
from emberbox.host.rundir import processes_of
from emberbox.sandbox.listeners import Listeners
from waiting import until

MINIMAL = "minimal"
DEADLINE = 60.0

pytestmark = pytest.mark.usefixtures("nothing_left")


def groups_of(owner: str) -> set[str]:
    root = find_cgroup_root()
    return root.names(f"{owner}-") if root else set()


def found(run_dir: Path, word: str) -> list[psutil.Process]:
    """Processes that belong to this run directory and have `word` in their command line."""
    processes = []
    for pid in processes_of(f"{run_dir}/"):
        try:
            process = psutil.Process(pid)
            if any(word in part for part in process.cmdline()):
                processes.append(process)
        except psutil.NoSuchProcess:
            continue
    return processes


class Child:
    """A program that owns sandboxes: it evaluates the lines it is sent, each in all of them."""

    CODE = """
import sys
from emberbox import Sandbox
sandboxes = [Sandbox.create("minimal") for _ in range(int(sys.argv[1]))]
print("ready", flush=True)
for line in sys.stdin:
    print(*[sandbox.run_code(line).text for sandbox in sandboxes], flush=True)
for sandbox in sandboxes:
    sandbox.kill()
"""

    def __init__(self, count: int) -> None:
        argv = [sys.executable, "-c", self.CODE, str(count)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def says(self, line: str = "") -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if line:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        """Let it end by itself, or kill it."""
        try:
            self.process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def children() -> Iterator[Callable[[int], Child]]:
    made: list[Child] = []

    def make(count: int = 1) -> Child:
        made.append(Child(count))
        return made[-1]

    yield make
    for child in made:
        child.end()


# --- the owner of the sandboxes dies ------------------------------------------------------------------------------


def test_a_killed_owner_takes_everything_along(run_dir: Path, children: Callable[[int], Child]) -> None:
    child = children(2)
    assert child.says() == "ready"
    assert child.says("40 + 2") == "42 42"
    (owner,) = [path.name for path in run_dir.iterdir()]
    processes = found(run_dir, "")
    assert len(processes) >= 5, "two sandboxes, two gofers, one spawner"
    child.process.kill()
    _, alive = psutil.wait_procs(processes, timeout=DEADLINE)
    assert alive == []
    assert list(run_dir.iterdir()) == []
    assert groups_of(owner) == set()


@pytest.mark.parametrize("moment", ["run directory", "spawner", "runsc", "sandbox"])
def test_an_owner_killed_while_it_starts(run_dir: Path, children: Callable[[int], Child], moment: str) -> None:
    conditions: dict[str, Callable[[], object]] = {
        "run directory": lambda: list(run_dir.iterdir()),
        "spawner": lambda: found(run_dir, "spawner_main"),
        "runsc": lambda: found(run_dir, "runsc"),
        "sandbox": lambda: found(run_dir, "boot"),
    }
    child = children(1)
    until(conditions[moment], moment)
    child.process.kill()
    child.process.wait()
    until(lambda: processes_of(f"{run_dir}/") == [], "the end of all processes")
    # a kill before the spawner came up leaves an empty directory to the next engine's sweep

    def swept() -> bool:
        """The spawner may just have been forked, and hold the lock without a name that tells it from others."""
        asyncio.run(_sweep())
        return [path for path in run_dir.iterdir() if not path.name.startswith(".")] == []

    until(swept, "an empty run directory")
    for path in run_dir.iterdir():  # cut short between mkdir and rename: swept a minute later, when it is surely dead
        os.utime(path, (0, 0))
    asyncio.run(_sweep())


async def _sweep() -> None:
    async with Engine(load_settings()) as engine:
        await engine.list_sandboxes()


async def test_a_sweep_clears_the_dead_and_spares_the_living(run_dir: Path, children: Callable[[int], Child]) -> None:
    """Owner and spawner are killed together, with sandboxes that are stopped and so cannot end by themselves."""
    living = children(1)
    assert living.says() == "ready"
    theirs = {path.name for path in run_dir.iterdir()}
    dying = children(2)
    assert dying.says() == "ready"
    (owner,) = {path.name for path in run_dir.iterdir()} - theirs
    folder = run_dir / owner
    (spawner,) = [p for p in found(run_dir, "spawner_main") if str(folder) in p.cmdline()]
    sandboxes = found(folder, "boot")
    assert len(sandboxes) == 2
    for process in [*sandboxes, psutil.Process(dying.process.pid)]:
        process.suspend()
    spawner.kill()
    dying.process.kill()
    dying.process.wait()
    until(lambda: not spawner.is_running() or spawner.status() == psutil.STATUS_ZOMBIE, "the end of the spawner")
    assert {p.pid for p in found(folder, "boot")} == {p.pid for p in sandboxes}, "nobody is left to clear them"

    async with await AsyncSandbox.create(MINIMAL) as sandbox:
        assert not folder.exists()
        assert groups_of(owner) == set()
        until(lambda: processes_of(f"{folder}/") == [], "the end of the dead owner's sandboxes")
        assert (await sandbox.run_code("1 + 1")).text == "2"
        assert living.says("6 * 7") == "42"


# --- a part of a machine dies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["sandbox", "gofer", "spawner"])
async def test_a_part_killed_from_outside_is_told_to_the_caller(engine: Engine, run_dir: Path, victim: str) -> None:
    session = await engine.create_sandbox(MINIMAL)
    bystander = await engine.create_sandbox(MINIMAL) if victim != "spawner" else None
    word = {"sandbox": "boot", "gofer": "gofer", "spawner": "spawner_main"}[victim]
    (process, *_) = found(run_dir / "" if victim == "spawner" else session.machine.directory, word)  # type: ignore[attr-defined]

    def kill(_: str) -> None:
        process.kill()

    code = "print('up', flush=True)\nwhile True: pass"
    run = await engine.execute(ExecuteRequest(session, "python", code), Listeners(on_stdout=kill))
    assert run.termination_reason in (TerminationReason.CRASHED, TerminationReason.KILLED)
    assert run.stdout == "up\n"
    assert run.error is not None
    assert run.error.value
    with pytest.raises(VmNotAvailable, match="is gone"):
        await engine.execute(ExecuteRequest(session, "python", "1"))
    if bystander is not None:
        assert (await engine.execute(ExecuteRequest(bystander, "python", "1"))).text == "1"
    fresh = await engine.create_sandbox(MINIMAL)
    assert (await engine.execute(ExecuteRequest(fresh, "python", "2"))).text == "2"


async def test_an_idle_sandbox_that_dies_is_noticed(engine: Engine, run_dir: Path) -> None:
    session = await engine.create_sandbox(MINIMAL)
    for process in found(run_dir, "boot"):
        process.kill()
    async with asyncio.timeout(DEADLINE):
        death = await session.machine.wait()
    assert death.reason is TerminationReason.CRASHED
    with pytest.raises(VmNotAvailable, match="is gone"):
        await session.files.read_bytes("x")
    async with asyncio.timeout(DEADLINE):
        while await engine.list_sandboxes():  # noqa: ASYNC110 (told a moment later, to nobody in particular)
            await asyncio.sleep(0)


# --- the command line is interrupted ------------------------------------------------------------------------------

ANSWER = "Run this:\n\n```python\nprint('it runs', flush=True)\nwhile True: pass\n```\n"


def interrupted(number: signal.Signals) -> tuple[int, str]:
    """Signal `emberbox run` in the middle of an execution; its exit code and stderr."""
    argv = [*PROGRAM, "run", "-", "--template", MINIMAL, "--timeout", "60"]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(ANSWER.encode())
        process.stdin.close()
        process.stdin = None
        while (line := process.stdout.readline()) and line.strip() != b"it runs":
            pass
        process.send_signal(number)
        _, stderr = process.communicate(timeout=DEADLINE)
    return process.returncode, stderr.decode()


def test_ctrl_c_ends_the_command_and_its_sandbox(run_dir: Path) -> None:
    code, words = interrupted(signal.SIGINT)
    assert code == 130, words
    assert "interrupted" in words
    assert "Traceback" not in words
    assert processes_of(f"{run_dir}/") == []
    assert list(run_dir.iterdir()) == []


def test_sigterm_leaves_nothing(run_dir: Path) -> None:
    code, words = interrupted(signal.SIGTERM)
    assert code in (-signal.SIGTERM, 128 + signal.SIGTERM), words
    until(lambda: processes_of(f"{run_dir}/") == [] and not list(run_dir.iterdir()), "the clean-up after SIGTERM")


# --- the host is full ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(run_dir: Path) -> Iterator[Path]:
    """A file system of 1 MB as the run directory."""
    folder = run_dir / "small"
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700,nr_inodes=100", "emberbox-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        folder.rmdir()
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield folder
    gc.collect()
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def fill(folder: Path, leave: int) -> None:
    """Use all space but `leave` bytes."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - leave))


@pytest.mark.parametrize("leave", [0, 4096])
async def test_run_directory_without_space(small_disk: Path, leave: int) -> None:
    fill(small_disk, leave)
    async with Engine(load_settings(run_dir=small_disk)) as engine:
        with pytest.raises(VmNotAvailable, match=r"(?i)no space left"):
            await engine.create_sandbox(MINIMAL)
        (small_disk / "filler").unlink()
        assert await engine.list_sandboxes() == []
        sandbox = await engine.create_sandbox(MINIMAL)
        assert (await engine.execute(ExecuteRequest(sandbox, "python", "1"))).text == "1", "it works again with space"
    assert list(small_disk.iterdir()) == []


async def test_run_directory_without_inodes(small_disk: Path) -> None:
    try:
        for number in range(200):
            (small_disk / f"filler-{number}").touch()
    except OSError:
        pass
    before = sorted(small_disk.iterdir())
    async with Engine(load_settings(run_dir=small_disk)) as engine:
        with pytest.raises(VmNotAvailable, match=r"(?i)no space left"):
            await engine.create_sandbox(MINIMAL)
    assert sorted(small_disk.iterdir()) == before


# --- runsc misbehaves ---------------------------------------------------------------------------------------------


def fake_runsc(folder: Path, does: str) -> Settings:
    """Settings with a runsc that says the right version and then does this."""
    program = folder / "runsc"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "runsc version 0.0~20240729.0" && exit 0\n{does}\n')
    program.chmod(0o755)
    return load_settings(runsc=program, boot_timeout_seconds=0.5)


@pytest.mark.parametrize("does", ["exec sleep N", "sleep N & sleep N", "setsid sleep N & wait"])
async def test_a_runsc_that_hangs_meets_the_deadline(tmp_path: Path, does: str) -> None:
    seconds = str(100_000 + os.getpid())  # nobody else on this host sleeps just so long
    async with Engine(fake_runsc(tmp_path, does.replace("N", seconds))) as engine:
        with pytest.raises(ExecutionTimeout, match="did not start in time") as error:
            await engine.create_sandbox(MINIMAL)
    assert error.value.retryable
    everything = [p.info for p in psutil.process_iter(["name", "cmdline"])]  # it passes over those that end meanwhile
    assert [one for one in everything if one["name"] == "sleep" and seconds in (one["cmdline"] or [])] == []


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ('echo "creating container: the moon is full" >&2; exit 128', "the moon is full"),
        ("exit 3", "status 3"),
        ("kill -9 $$", "status -9"),
        ("exit 0", "left no readable state file"),
        ("yes 'a long story' | head -c 3000000 >&2; exit 1", "a long story"),
    ],
)
async def test_a_runsc_that_fails_has_its_words_in_the_error(tmp_path: Path, does: str, words: str) -> None:
    async with Engine(fake_runsc(tmp_path, does)) as engine:
        with pytest.raises(VmNotAvailable, match=words) as error:
            await engine.create_sandbox(MINIMAL)
    assert len(error.value.message) < 5000


async def test_a_runsc_that_cannot_be_executed_is_named(tmp_path: Path) -> None:
    settings = fake_runsc(tmp_path, "exit 0")
    async with Engine(settings) as engine:
        await engine.list_sandboxes()
        assert settings.runsc is not None
        settings.runsc.write_text("not a program")
        with pytest.raises(VmNotAvailable, match="runsc"):
            await engine.create_sandbox(MINIMAL)


# --- nothing grows ------------------------------------------------------------------------------------------------


async def test_a_hundred_sandboxes_leave_no_trace(engine: Engine, run_dir: Path) -> None:
    me = psutil.Process()
    engine.settings.vm_execution.vm_pool_size = 0  # a machine of the pool is another one each time

    async def rounds(count: int) -> None:
        for _ in range(count):
            session = await engine.create_sandbox(MINIMAL)
            await session.kill()

    def figures() -> dict[str, object]:
        gc.collect()
        (spawner,) = found(run_dir, "spawner_main")
        return {
            "descriptors": me.num_fds(),
            "descriptors of the spawner": spawner.num_fds(),
            "processes": len(found(run_dir, "")),
            "files": sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob("*")),
            "tasks": len(asyncio.all_tasks()),
            "cgroups": [groups_of(path.name) for path in run_dir.iterdir()],
        }

    def memory() -> int:
        (spawner,) = found(run_dir, "spawner_main")
        return me.memory_info().rss + spawner.memory_info().rss

    await rounds(10)
    before, used = figures(), memory()
    await rounds(90)
    assert figures() == before
    assert memory() - used < 8 << 20
