"""The console of a guest: kept short, whatever it writes."""

from __future__ import annotations

import asyncio
import os

from emberbox.guest.vm_init import READY
from emberbox.machines.microvm.serial import SerialLog


async def test_the_end_is_kept_without_control_characters() -> None:
    read_fd, write_fd = os.pipe()
    log = SerialLog(read_fd)
    for _ in range(100):
        os.write(write_fd, b"x" * 1000 + b"\n")
        await asyncio.sleep(0)
    os.write(write_fd, b"\x1b[2J\x07Kernel panic\r\n\xff\n")
    await asyncio.sleep(0.01)
    assert len(log.text()) <= 1600
    assert log.text().endswith("[2JKernel panic / \ufffd")
    assert not log.ready.is_set()
    os.write(write_fd, READY)
    os.close(write_fd)
    await asyncio.wait_for(log.ready.wait(), 1)
    await asyncio.sleep(0.01)
    assert log.fileno() == -1
    log.close()


async def test_of_a_panic_the_reason_is_shown_and_not_the_registers() -> None:
    read_fd, write_fd = os.pipe()
    log = SerialLog(read_fd)
    os.write(
        write_fd,
        b"booting\n" * 500 + b"no port emberbox.agent\nKernel panic - not syncing: no init\n" + b"RAX: 0\n" * 999,
    )
    os.close(write_fd)
    await asyncio.sleep(0.01)
    assert "no port emberbox.agent / Kernel panic - not syncing: no init / RAX: 0" in log.text()
    assert len(log.text()) <= 3000
    log.close()
