"""Taking over one machine that an Emberbox left running when it died (machines/adoption.py).

Its connection ended with that. Firecracker and the relay in the guest take a new one at any time.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable

from emberbox.errors import VmNotAvailable
from emberbox.host.cgroups import CgroupRoot
from emberbox.host.rundir import RunDir
from emberbox.host.spawner import Spawner
from emberbox.machines.firecracker.jail_layout import JailLayout
from emberbox.machines.firecracker.machine import FirecrackerMachine
from emberbox.machines.firecracker.snapshot_files import Fingerprint

_ANSWER_SECONDS = 10.0


async def take_machine(
    spawner: Spawner, run_dir: RunDir, name: str, cgroups: CgroupRoot | None, on_dead: Callable[[str], None]
) -> FirecrackerMachine:
    """Connect to it again; `on_dead` is told its id when it ends. Raises VmNotAvailable, VmConnectionError."""
    (pid,), fds, info = await spawner.take(name)
    for fd in fds[1:]:
        os.close(fd)
    place = JailLayout.of(run_dir.path, name, None if info["uid"] < 0 else info["uid"])
    group = None if cgroups is None else cgroups.group(f"{run_dir.owner}-{name}")
    try:
        fingerprint = Fingerprint.read(place.directory)
    except VmNotAvailable as exc:
        os.close(fds[0])
        raise VmNotAvailable(f"Machine {name} cannot be taken over: {exc}.") from exc
    machine = FirecrackerMachine(place, spawner, group, fingerprint, on_dead)
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
