"""Adopting one machine that an Emberbox left running when it died (machines/adoption.py).

Its sockets were held meanwhile by its spawner.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Callable, Sequence

from emberbox.errors import VmNotAvailable
from emberbox.host.cgroups import CgroupRoot
from emberbox.host.rundir import RunDir
from emberbox.host.spawner import Spawner
from emberbox.machines.qemu.machine import QemuMachine, close_all, memory_fd_of
from emberbox.machines.qemu.shared_memory import SharedMemory
from emberbox.machines.qemu.snapshot_files import Fingerprint
from emberbox.machines.threads import claimed

_ANSWER_SECONDS = 10.0


async def take_machine(
    spawner: Spawner, run_dir: RunDir, name: str, cgroups: CgroupRoot | None, on_dead: Callable[[str], None]
) -> QemuMachine:
    """Connect to it again; `on_dead` is told its id when it ends. Raises VmNotAvailable, VmConnectionError."""
    pids, fds, info = await spawner.take(name)
    streams: list[socket.socket] = []
    directory = run_dir.path / name
    group = None if cgroups is None else cgroups.group(f"{run_dir.owner}-{name}")
    try:
        for fd in fds:
            streams.append(socket.socket(fileno=fd))  # noqa: PERF401 (those before one that fails are closed)
        (pid,), memory, (_, _, _, _) = pids, info["memory"], streams
        fingerprint = Fingerprint.read(directory)
    except (ValueError, KeyError, OSError, VmNotAvailable) as exc:
        close_all(streams)
        for fd in fds[len(streams) :]:
            os.close(fd)
        await _end(spawner, pids, name)
        raise VmNotAvailable(f"Machine {name} cannot be taken over: what was kept of it is damaged ({exc}).") from exc
    machine = QemuMachine(directory, spawner, group, fingerprint, None, memory, on_dead)
    machine.attach(streams, secrets.randbits(40))
    try:
        machine.taken_over(await spawner.own(pid))
        machine.use(await claimed(lambda: _memory(pid, memory, fingerprint.base), _close))
        async with asyncio.timeout(_ANSWER_SECONDS):
            await machine.go_on_after_another()
            await machine.connect(_ANSWER_SECONDS, secrets.randbits(60))
    except BaseException as exc:
        await machine.kill()
        if isinstance(exc, OSError):  # a time-out is one as well
            raise VmNotAvailable(f"Machine {name} cannot be taken over: {exc}.") from exc
        raise
    return machine


def _memory(pid: int, size: int, base: str) -> SharedMemory | int:
    if base:
        return SharedMemory(memory_fd_of(pid, size, os.O_RDONLY), base)
    return memory_fd_of(pid, size, os.O_RDWR)


def _close(memory: SharedMemory | int) -> None:
    if isinstance(memory, SharedMemory):
        memory.release()
    else:
        os.close(memory)


async def _end(spawner: Spawner, pids: Sequence[int], name: str) -> None:
    """Nobody can use it any more, so it must not run on."""
    for pid in pids:
        with contextlib.suppress(VmNotAvailable):  # it has ended
            await spawner.signal(await spawner.own(pid), signal.SIGKILL)
    await spawner.drop(name)
