"""Boots of QEMU machines that fail, with the real QEMU and full emulation: what is said, and what is tried again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from emberbox.errors import ExecutionTimeout, VmExecutionError, VmNotAvailable
from emberbox.machines.qemu import QemuFactory
from emberbox.machines.qemu.command import command as real
from qemus import World, clean, factory, world
from small_machines import LIMITS

__all__ = ["clean", "factory", "world"]  # pytest finds fixtures by their names in the module
_FACTORY = "emberbox.machines.qemu.factory"
pytestmark = pytest.mark.asyncio(loop_scope="module")


def _without(argv: list[str], *wanted: str) -> list[str]:
    """A command line without these devices: a kernel that lacks their drivers finds none either."""
    left: list[str] = []
    words = iter(argv)
    for word in words:
        if word in ("-device", "-serial"):
            value = next(words)
            left += [] if value.startswith(wanted) else [word, value]
        else:
            left.append(word)
    return left


async def _failed_boot(
    world: World, monkeypatch: pytest.MonkeyPatch, *missing: str, seconds: int = 6
) -> VmExecutionError:
    def command(*args: Any, **options: Any) -> list[str]:
        return _without(real(*args, **options), *missing)

    monkeypatch.setattr(f"{_FACTORY}.command", command)
    factory = QemuFactory(world.settings.model_copy(update={"boot_timeout_seconds": seconds}))
    try:
        with pytest.raises((VmNotAvailable, ExecutionTimeout)) as error:
            await asyncio.wait_for(factory.boot(world.image, LIMITS), seconds + 60)
    finally:
        await factory.close()
    return error.value


async def test_a_kernel_without_a_driver_of_disks(world: World, clean: None, monkeypatch: pytest.MonkeyPatch) -> None:
    error = await _failed_boot(world, monkeypatch, "virtio-blk", seconds=60)
    # the kernel's own words, or those of the first programs of Debian's
    assert "Unable to mount root fs" in error.message or "there is no root disk" in error.message
    assert "may lack what it needs" in error.remediation


async def test_a_kernel_without_a_driver_of_ports(world: World, clean: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first process waits for them; what the console said last comes with the error."""
    # it boots emulated, maybe on a busy host, and waits for PORTS_SECONDS
    error = await _failed_boot(world, monkeypatch, "virtio-serial", "virtserialport", seconds=90)
    assert "no port emberbox.agent" in error.message
    assert "boot_timeout_seconds" in error.remediation or "docs/qemu.md" in error.remediation


async def test_a_kernel_without_a_console(world: World, clean: None, monkeypatch: pytest.MonkeyPatch) -> None:
    error = await _failed_boot(world, monkeypatch, "chardev:log")
    assert "console stayed silent" in error.message
    assert "may lack what it needs" in error.remediation


async def test_a_boot_that_hangs_is_tried_once_more(
    world: World, factory: QemuFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor of the first one stands still, as that of an emulated machine whose timer was lost."""
    tried: list[str] = []

    def command(*args: Any, **options: Any) -> list[str]:
        argv = real(*args, **options)
        if not options["copy"]:
            tried.append(args[0])
        return [*argv, "-S"] if tried == [args[0]] else argv

    monkeypatch.setattr(f"{_FACTORY}.command", command)
    monkeypatch.setattr(f"{_FACTORY}._first_seconds", lambda _: 3.0)
    machine = await factory.boot(world.image, LIMITS)
    assert tried == [tried[0], machine.id], "the first one was given up"
    await asyncio.wait_for(asyncio.shield(machine.channel.hello), 60)
    await machine.channel.call("ping")
    assert list(factory._machines) == [machine.id]


async def test_a_boot_that_always_hangs_ends_within_its_time(
    world: World, clean: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{_FACTORY}.command", lambda *args, **options: [*real(*args, **options), "-S"])
    factory = QemuFactory(world.settings.model_copy(update={"boot_timeout_seconds": 2}))
    try:
        with pytest.raises(ExecutionTimeout, match=r"did not start in time\. Its console stayed silent") as error:
            await asyncio.wait_for(factory.boot(world.image, LIMITS), 60)
        assert "boot_timeout_seconds" in error.value.remediation
    finally:
        await factory.close()
