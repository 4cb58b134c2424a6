"""A real QEMU with full emulation for the tests of its back end: one booted machine to copy.

The template's snapshot is kept in the cache, keyed as those of all templates, so that only the first run boots. Where
QEMU or a guest kernel cannot be had, these tests are skipped, and the reason says what was missing. Modules that use it
import its fixtures by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from backends import BOOT_SECONDS, need_qemu, need_root_disks, qemu_kernel, snapshots_of
from emberbox import Engine, Settings, load_settings
from emberbox.host.cgroups import find_cgroup_root
from emberbox.host.rundir import processes_of
from emberbox.images.builder import ensure_image
from emberbox.images.store import Image
from emberbox.images.template import load_template
from emberbox.machines.contract import Snapshot
from emberbox.machines.qemu import QemuFactory, QemuOptions
from emberbox.machines.qemu.machine import QemuMachine
from emberbox.sandbox.snapshots.store import digests_of
from small_machines import start


@dataclass(frozen=True, slots=True)
class World:
    """What the tests share."""

    settings: Settings
    image: Image
    snapshot: Snapshot
    """Of a machine that has just been configured, itself a copy."""

    def factory(self, **changes: object) -> QemuFactory:
        options = replace(QemuOptions.of(self.settings), **changes)  # type: ignore[arg-type]
        return QemuFactory(self.settings, options)


def _settings(run_dir: Path, folder: Path, **changes: object) -> Settings:
    return load_settings(
        backend="qemu",
        qemu_accel="tcg",
        kernel=qemu_kernel(),
        run_dir=run_dir,
        snapshot_dir=snapshots_of("qemu"),
        state_dir=folder / "state",
        boot_timeout_seconds=BOOT_SECONDS,
        vm_execution={"enabled": True, "vm_pool_size": 0, "code_validation": False},
        **changes,
    )


@contextlib.contextmanager
def making_of_world(folder: Path) -> Iterator[World]:
    """Boots the one machine of which all others are copies, unless the cache has it. For `qemu_world` of conftest.py,
    by which the modules of a process share it."""
    need_root_disks()
    need_qemu()
    run_dir = Path(tempfile.mkdtemp(prefix="ebq-", dir="/tmp"))
    try:
        yield asyncio.run(_made(_settings(run_dir, folder), folder))
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


async def _made(settings: Settings, folder: Path) -> World:
    image = await ensure_image(load_template("minimal", settings), settings)
    async with Engine(settings) as engine:
        for _ in range(2):  # the first may be the one that was booted
            session = await start(engine)
        snapshot, _ = await session.checkpoint(folder / "template")
    return World(settings, image, replace(snapshot, digests=digests_of(folder / "template")))


@pytest.fixture
def world(qemu_world: World) -> World:
    return qemu_world


def _left(settings: Settings) -> list[str]:
    """All that machines of these settings have on the host."""
    files = [str(path) for path in settings.run_dir.iterdir()]
    processes = [f"process {pid}" for pid in processes_of(f"{settings.run_dir}/")]
    owners = {Path(file).name for file in files}
    root = find_cgroup_root()
    groups = sorted(name for owner in owners for name in root.names(f"{owner}-")) if root else []
    return files + processes + groups


def _descriptors() -> list[str]:
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(path))  # noqa: PTH115 (Path would read it as a path)
    return found


@pytest_asyncio.fixture(loop_scope="module")
async def clean(world: World) -> AsyncIterator[None]:
    """After the test nothing of it is left: no file, process, cgroup, descriptor, memory."""
    before = _descriptors()
    yield
    assert _left(world.settings) == []
    after = _descriptors()
    assert len(after) <= len(before) + 1
    memories, had = (sum("emberbox-ram" in name for name in names) for names in (after, before))
    assert memories == had  # those of `shared_machines` stay


@pytest_asyncio.fixture(loop_scope="module")
async def factory(world: World, clean: None) -> AsyncIterator[QemuFactory]:
    factory = world.factory()
    try:
        yield factory
    finally:
        await factory.close()


@pytest_asyncio.fixture(loop_scope="module")
async def engine(world: World, clean: None) -> AsyncIterator[Engine]:
    """An engine that finds the template's snapshot."""
    async with Engine(world.settings) as engine:
        yield engine


async def woken(factory: QemuFactory, snapshot: Snapshot) -> QemuMachine:
    machine = await factory.fork(snapshot)
    assert isinstance(machine, QemuMachine)
    await machine.channel.call("wake", fork=True, env={})
    return machine


def pid_of(machine: QemuMachine) -> int:
    assert machine._process is not None
    return machine._process.pid
