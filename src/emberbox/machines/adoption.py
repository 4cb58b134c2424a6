"""What an Emberbox left running when it died: its spawner spares it for a while (host/spawner_main.py), and the next
Emberbox with the same key takes it over."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from emberbox.errors import VmConnectionError, VmNotAvailable
from emberbox.host.cgroups import CgroupRoot
from emberbox.host.rundir import CGROUPS, LOCK, RunDir
from emberbox.host.spawner import Spawner
from emberbox.host.spawner_main import ADOPT
from emberbox.machines.process_machine import ProcessMachine

_M = TypeVar("_M", bound=ProcessMachine)
_KEY = "adopt.key"
"""In the run directory: whose machines these are."""
_AT_ONCE = 32
"""Machines that are taken over at the same time."""
_NOTICE_SECONDS = 3.0
"""In which a spawner notices that its Emberbox is gone."""

Adopter = Callable[[Spawner, RunDir, str, CgroupRoot | None], Awaitable[_M]]
"""Takes over the machine of a name."""


def write_key(run_dir: Path, key: str) -> None:
    """Say whose machines are below a run directory; raises OSError."""
    (run_dir / _KEY).write_text(key, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class AdoptedHost(Generic[_M]):
    """What was taken over: the spawner, its directory, and the machines that run."""

    spawner: Spawner
    run_dir: RunDir
    machines: Sequence[_M]


async def adopt(
    base: Path, key: str, take: Adopter[_M], folders: Callable[[Path], Iterable[Path]]
) -> AdoptedHost[_M] | None:
    """Take over from the dead Emberbox of this key; None if none has left anything.

    Args:
        base: where run directories are.
        key: whose machines are wanted.
        take: takes one over; a machine for which it raises VmNotAvailable or VmConnectionError is left out.
        folders: those of machines below a run directory; what is left of others is removed.
    """
    for path in _candidates(base, key):
        with contextlib.suppress(VmNotAvailable):
            spawner, lock_fd, names = await _connect(path)
            machines: list[_M] = []
            try:
                run_dir = RunDir(path, lock_fd)
                cgroups = CgroupRoot.load(path / CGROUPS)
                await _take_all(names, partial(_call, take, spawner, run_dir, cgroups), machines)
                ours = {machine.id for machine in machines}
                await asyncio.to_thread(_clear_others, run_dir, ours, cgroups, folders)
            except BaseException:  # the next attempt may find them all
                for machine in machines:
                    await machine.let_go("not taken over")
                spawner.let_go()
                os.close(lock_fd)
                raise
            return AdoptedHost(spawner, run_dir, machines)
    return None


async def _call(take: Adopter[_M], spawner: Spawner, run_dir: RunDir, cgroups: CgroupRoot | None, name: str) -> _M:
    return await take(spawner, run_dir, name, cgroups)


async def _take_all(names: Iterable[str], take: Callable[[str], Awaitable[_M]], into: list[_M]) -> None:
    """Some at a time: one that does not answer holds up few others."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def take_one(name: str) -> None:
        async with gate:
            with contextlib.suppress(VmNotAvailable, VmConnectionError):
                into.append(await take(name))

    try:
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(take_one(name))
    except BaseExceptionGroup as exc:
        raise exc.exceptions[0] from None
    into.sort(key=lambda machine: machine.id)


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


def _clear_others(
    run_dir: RunDir, ours: set[str], cgroups: CgroupRoot | None, folders: Callable[[Path], Iterable[Path]]
) -> None:
    """Remove what is left of machines that did not outlive their Emberbox."""
    for path in folders(run_dir.path):
        if path.name not in ours:
            shutil.rmtree(path, ignore_errors=True)
    if cgroups is not None:
        prefix = f"{run_dir.owner}-"
        for name in cgroups.names(prefix):
            if name.removeprefix(prefix) not in ours:
                cgroups.group(name).remove()
