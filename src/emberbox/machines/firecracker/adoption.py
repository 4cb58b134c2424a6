"""Machines that an Emberbox left running when it died: its spawner spares them for a while (host/spawner_main.py).

Their connections ended with it. Firecracker and the relay in the guest take a new one at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from emberbox.errors import VmConnectionError, VmNotAvailable
from emberbox.host.cgroups import CgroupRoot
from emberbox.host.rundir import CGROUPS, RunDir
from emberbox.host.spawner import Spawner
from emberbox.machines.firecracker.machine import FirecrackerMachine
from emberbox.machines.firecracker.place import Place, machines_below
from emberbox.machines.firecracker.snapshot_files import MARKS, Marks
from emberbox.machines.gvisor.adoption import _candidates, _connect

_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Estate:
    """What was taken over: the spawner, its directory, and the machines that run."""

    spawner: Spawner
    run_dir: RunDir
    machines: list[FirecrackerMachine]


async def take_over(base: Path, key: str, on_dead: Callable[[str], None]) -> Estate | None:
    """Take over from the dead Emberbox of this key; None if none has left anything.

    Args:
        base: where run directories are.
        key: whose machines are wanted.
        on_dead: told the id of each machine that ends.
    """
    for path in _candidates(base, key):
        with contextlib.suppress(VmNotAvailable):
            spawner, lock_fd, names = await _connect(path)
            run_dir = RunDir(path, lock_fd)
            cgroups = CgroupRoot.load(path / CGROUPS)
            machines: list[FirecrackerMachine] = []
            try:
                for name in names:
                    with contextlib.suppress(VmNotAvailable, VmConnectionError):
                        machines.append(await _machine(spawner, run_dir, name, cgroups, on_dead))
                await asyncio.to_thread(_clear_others, run_dir, {machine.id for machine in machines}, cgroups)
            except BaseException:  # the next attempt may find them all
                for machine in machines:
                    machine.channel.close("not taken over")
                    await machine.api.close()
                spawner.let_go()
                os.close(lock_fd)
                raise
            return Estate(spawner, run_dir, machines)
    return None


async def _machine(
    spawner: Spawner, run_dir: RunDir, name: str, cgroups: CgroupRoot | None, on_dead: Callable[[str], None]
) -> FirecrackerMachine:
    (pid,), fds, info = await spawner.take(name)
    for fd in fds[1:]:
        os.close(fd)
    place = Place.of(run_dir.path, name, None if info["uid"] < 0 else info["uid"])
    group = None if cgroups is None else cgroups.group(f"{run_dir.owner}-{name}")
    try:
        marks = Marks.model_validate_json((place.directory / MARKS).read_bytes())
    except (OSError, ValidationError) as exc:
        os.close(fds[0])
        raise VmNotAvailable(f"Machine {name} cannot be taken over: {exc}.") from exc
    machine = FirecrackerMachine(place, spawner, group, marks, on_dead)
    machine.attach(fds[0])
    try:
        machine.taken_over(await spawner.own(pid))
        await machine.resume()  # its owner may have stopped it, or died in the middle of a snapshot
        await machine.connect(_ANSWER_SECONDS, secrets.randbits(60))
        machine.channel.resync(machine.channel.last_request)
    except BaseException:
        await machine.kill()
        raise
    return machine


def _clear_others(run_dir: RunDir, ours: set[str], cgroups: CgroupRoot | None) -> None:
    """Remove what is left of machines that did not outlive their Emberbox."""
    for path in machines_below(run_dir.path):
        if path.name not in ours:
            shutil.rmtree(path, ignore_errors=True)
    if cgroups is not None:
        prefix = f"{run_dir.owner}-"
        for name in cgroups.names(prefix):
            if name.removeprefix(prefix) not in ours:
                cgroups.group(name).remove()
