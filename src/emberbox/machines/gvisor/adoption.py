"""Taking over one sandbox that an Emberbox left running when it died (machines/adoption.py)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from emberbox.errors import VmNotAvailable
from emberbox.host.cgroups import CgroupRoot
from emberbox.host.rundir import RunDir
from emberbox.host.spawner import Spawner
from emberbox.machines.gvisor.machine import GvisorMachine


async def take_machine(
    spawner: Spawner, run_dir: RunDir, name: str, cgroups: CgroupRoot | None, command: Sequence[str]
) -> GvisorMachine:
    """Its pipes were held meanwhile; `command` is runsc's, up to the verb. Raises VmNotAvailable."""
    pids, fds, info = await spawner.take(name)
    group = None if cgroups is None else cgroups.group(f"{run_dir.owner}-{name}")
    machine = GvisorMachine(name, run_dir.path / name, spawner, group, info["memory"], command)
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
