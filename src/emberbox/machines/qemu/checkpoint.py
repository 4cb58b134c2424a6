"""How QEMU writes down a machine that stands still: into what it is given, because it may open no file.

The state of the devices alone comes from a command that is meant for Xen (xen-save-devices-state of
qapi/migration.json) and works without it; a waiting QEMU takes it as the state of a machine whose memory is there
already. That leans on what QEMU does not promise, so that it is tried out where a template boots; the other way is a
migration, memory and all.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

from emberbox.machines.qemu.qmp import Qmp, QmpError

_MIGRATE_SECONDS = 120.0
MOST_DEVICES = 16 << 20
"""Bytes; some 100 kB are usual."""
_MOST_STREAM = 64 << 30
_SET_PIPE_SIZE, _PIPE_SIZE = 1031, 1 << 20
_BANDWIDTH = 1 << 40
"""Bytes a second: no limit."""


async def save_devices(qmp: Qmp, target: Path) -> None:
    """The state of the devices; raises QmpError, VmConnectionError, OSError."""
    fd = os.memfd_create("emberbox-state", os.MFD_CLOEXEC)  # QEMU cuts it to nothing first, which a pipe refuses
    try:
        writable = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)  # QEMU takes no other for writing
        try:
            added = await qmp.call("add-fd", fds=[writable])
        finally:
            os.close(writable)
        number = int(added["fdset-id"])
        try:
            await qmp.call("xen-save-devices-state", filename=f"/dev/fdset/{number}", live=False)
        finally:
            await qmp.call("remove-fd", fdset_id=number)
        size = os.fstat(fd).st_size
        if size > MOST_DEVICES:
            raise OSError(errno.EFBIG, "QEMU writes too much")
        target.write_bytes(os.pread(fd, size, 0))
    finally:
        os.close(fd)


async def migrate(qmp: Qmp, target: Path) -> None:
    """All of the machine, its memory as well; raises QmpError, VmConnectionError, OSError, TimeoutError."""
    async with asyncio.timeout(_MIGRATE_SECONDS), _file_through_pipe(target, _MOST_STREAM) as pipe:
        await qmp.call("getfd", fds=[pipe.fd], fdname="state")
        pipe.close()
        await qmp.call("migrate-set-parameters", max_bandwidth=_BANDWIDTH)
        with qmp.watch("MIGRATION") as events:
            await qmp.call("migrate", uri="fd:state")
            while (status := (await events.get()).get("status")) not in ("completed", "failed"):
                pass
        if status == "failed":
            raise QmpError("QEMU did not write down the machine.")


class _WriteEnd:
    """Of a pipe: closed once."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@contextlib.asynccontextmanager
async def _file_through_pipe(target: Path, most: int) -> AsyncIterator[_WriteEnd]:
    """What is written to the pipe within the block goes into a new file, all of it when the block is left."""
    read_fd, write_fd = os.pipe()
    pipe = _WriteEnd(write_fd)
    with contextlib.suppress(OSError):  # more than this user may have
        fcntl.fcntl(write_fd, _SET_PIPE_SIZE, _PIPE_SIZE)
    copying = asyncio.ensure_future(_copy(read_fd, target, most))
    try:
        yield pipe
        pipe.close()
        await copying
    finally:
        pipe.close()
        if not copying.done():
            copying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await copying


async def _copy(read_fd: int, target: Path, most: int) -> None:
    """Copy what comes on a pipe into a new file; raises OSError (also: it is more than `most` bytes)."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    os.set_blocking(read_fd, False)
    loop.add_reader(read_fd, readable.set)
    try:
        with target.open("xb") as file:
            while True:
                await readable.wait()
                readable.clear()
                try:
                    data = os.read(read_fd, _PIPE_SIZE)
                except BlockingIOError:
                    continue
                if not data:
                    return
                most -= len(data)
                if most < 0:
                    raise OSError(errno.EFBIG, "QEMU writes too much")
                file.write(data)
    finally:
        loop.remove_reader(read_fd)
        os.close(read_fd)
