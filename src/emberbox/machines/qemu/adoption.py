"""Taking over one machine that an Emberbox left running when it died (estate.py): its sockets were held meanwhile."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable

from emberbox.errors import VmNotAvailable
from emberbox.host.cgroups import CgroupRoot
from emberbox.host.rundir import RunDir
from emberbox.host.spawner import Spawner
from emberbox.machines.qemu.base import Base
from emberbox.machines.qemu.machine import QemuMachine, close_all, memory_fd_of
from emberbox.machines.qemu.snapshot_files import read_marks

_ANSWER_SECONDS = 10.0


async def take_machine(
    spawner: Spawner, run_dir: RunDir, name: str, cgroups: CgroupRoot | None, on_dead: Callable[[str], None]
) -> QemuMachine:
    """Connect to it again; `on_dead` is told its id when it ends. Raises VmNotAvailable, VmConnectionError."""
    (pid,), fds, info = await spawner.take(name)
    streams = [socket.socket(fileno=fd) for fd in fds]
    directory = run_dir.path / name
    group = None if cgroups is None else cgroups.group(f"{run_dir.owner}-{name}")
    try:
        marks = read_marks(directory)
    except BaseException:
        close_all(streams)
        raise
    machine = QemuMachine(directory, spawner, group, marks, None, info["memory"], on_dead)
    machine.attach(streams, secrets.randbits(40))
    try:
        machine.taken_over(await spawner.own(pid))
        machine.use(_memory(pid, marks.base))
        async with asyncio.timeout(_ANSWER_SECONDS):
            await machine.go_on_after_another()
            await machine.connect(_ANSWER_SECONDS, secrets.randbits(60))
    except BaseException as exc:
        await machine.kill()
        if isinstance(exc, OSError):  # a time-out is one as well
            raise VmNotAvailable(f"Machine {name} cannot be taken over: {exc}.") from exc
        raise
    return machine


def _memory(pid: int, base: str) -> Base | int:
    if base:
        return Base(memory_fd_of(pid, os.O_RDONLY), base)
    return memory_fd_of(pid, os.O_RDWR)
