"""Machines that an Emberbox left running when it died: its spawner spares them for a while (host/spawner_main.py)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emberbox.errors import VmNotAvailable
from emberbox.host.cgroups import CgroupRoot
from emberbox.host.rundir import CGROUPS, LOCK, RunDir
from emberbox.host.spawner import Spawner
from emberbox.host.spawner_main import ADOPT
from emberbox.machines.gvisor.machine import GvisorMachine

_KEY = "adopt.key"
"""In the run directory: whose machines these are."""
_NOTICE_SECONDS = 3.0
"""In which a spawner notices that its Emberbox is gone."""


def write_key(run_dir: Path, key: str) -> None:
    """Say whose machines are below a run directory; raises OSError."""
    (run_dir / _KEY).write_text(key, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Estate:
    """What was taken over: the spawner, its directory, and the machines that run."""

    spawner: Spawner
    run_dir: RunDir
    machines: list[GvisorMachine]


async def take_over(base: Path, key: str, command: Callable[[Path], list[str]]) -> Estate | None:
    """Take over from the dead Emberbox of this key; None if none has left anything.

    Args:
        base: where run directories are.
        key: whose machines are wanted.
        command: of runsc, for the directory of a machine.
    """
    for path in _candidates(base, key):
        with contextlib.suppress(VmNotAvailable):
            spawner, lock_fd, names = await _connect(path)
            run_dir = RunDir(path, lock_fd)
            cgroups = CgroupRoot.load(path / CGROUPS)
            machines = []
            try:
                for name in names:
                    with contextlib.suppress(VmNotAvailable):
                        machines.append(await _machine(spawner, run_dir, name, cgroups, command))
                await asyncio.to_thread(_clear_others, run_dir, {machine.id for machine in machines}, cgroups)
            except BaseException:  # the next attempt may find them all
                for machine in machines:
                    machine.channel.close("not taken over")
                spawner.let_go()
                os.close(lock_fd)
                raise
            return Estate(spawner, run_dir, machines)
    return None


def _candidates(base: Path, key: str) -> list[Path]:
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(base.iterdir()):
            with contextlib.suppress(OSError):
                if (path / _KEY).read_text(encoding="utf-8") == key and (path / ADOPT).is_socket():
                    found.append(path)
    return found


async def _connect(path: Path) -> tuple[Spawner, int, list[str]]:
    """Connect to a spawner. One whose Emberbox has just died does not listen yet."""
    end = asyncio.get_running_loop().time() + _NOTICE_SECONDS
    while True:
        try:
            return await Spawner.adopt(path)
        except VmNotAvailable:
            if _is_dead(path) or asyncio.get_running_loop().time() > end:
                raise
        await asyncio.sleep(0.05)


def _is_dead(path: Path) -> bool:
    """Nobody holds the lock of a run directory any more."""
    try:
        fd = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


async def _machine(
    spawner: Spawner, run_dir: RunDir, name: str, cgroups: CgroupRoot | None, command: Callable[[Path], list[str]]
) -> GvisorMachine:
    pids, fds, info = await spawner.take(name)
    directory = run_dir.path / name
    group = None if cgroups is None else cgroups.group(f"{run_dir.owner}-{name}")
    machine = GvisorMachine(name, directory, spawner, group, info["memory"], command(directory))
    machine.attach(*fds)
    machine.channel.resync(secrets.randbits(60))  # before anything of the stream is read
    machine.taken_over()
    try:
        processes = [await spawner.own(pid) for pid in pids]
    except VmNotAvailable:  # one of them has ended
        await machine.kill_strays()
        await machine.kill()
        raise
    machine.prepared(processes)
    await machine.go_on_after_another()
    return machine


def _clear_others(run_dir: RunDir, ours: set[str], cgroups: CgroupRoot | None) -> None:
    """Remove what is left of machines that did not outlive their Emberbox."""
    for path in run_dir.path.iterdir():
        if path.is_dir() and path.name not in ours:
            shutil.rmtree(path, ignore_errors=True)
    if cgroups is not None:
        prefix = f"{run_dir.owner}-"
        for name in cgroups.names(prefix):
            if name.removeprefix(prefix) not in ours:
                cgroups.group(name).remove()
