"""A real Firecracker for the tests of its back end: programs, guest kernel, and one booted machine to copy.

Where the host's KVM is emulated (kernel/README.md), the guest is the kernel that is built for such hosts; where it, KVM
or the programs cannot be had, these tests are skipped, and the reason says what was missing. Modules that use it import
its fixtures by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from backends import BOOT_SECONDS, firecracker_kernel, firecracker_programs, need_kvm, need_root_disks
from emberbox import Engine, Settings, load_settings
from emberbox.host.cgroups import find_cgroup_root
from emberbox.host.rundir import processes_of
from emberbox.images.builder import ensure_image
from emberbox.images.store import Image
from emberbox.images.template import load_template
from emberbox.machines.contract import Snapshot
from emberbox.machines.firecracker import FirecrackerFactory, FirecrackerOptions
from emberbox.machines.firecracker.machine import FirecrackerMachine
from emberbox.sandbox.snapshots.store import digests_of
from small_machines import start


@dataclass(frozen=True, slots=True)
class World:
    """What the tests share."""

    settings: Settings
    options: FirecrackerOptions
    image: Image
    snapshot: Snapshot
    """Of a machine that has just been configured."""

    def factory(self, **changes: object) -> FirecrackerFactory:
        return FirecrackerFactory(self.settings, replace(self.options, **changes))  # type: ignore[arg-type]


@contextlib.contextmanager
def making_of_world(folder: Path) -> Iterator[World]:
    """Boots the one machine of which all others are copies, unless the cache has it. For `firecracker_world` of
    conftest.py, by which the modules of a process share it."""
    need_kvm()
    need_root_disks()
    programs = firecracker_programs()
    options = FirecrackerOptions(
        programs / "firecracker", programs / "jailer", firecracker_kernel(), accept_emulated=True
    )
    run_dir = Path(tempfile.mkdtemp(prefix="ebf-", dir="/tmp"))
    with _own_cache() as cache:
        settings = load_settings(
            backend="firecracker",
            cache_dir=cache,
            run_dir=run_dir,
            snapshot_dir=cache / "snapshots",
            state_dir=folder / "state",
            firecracker=options.firecracker,
            jailer=options.jailer,
            kernel=options.kernel,
            boot_timeout_seconds=BOOT_SECONDS,
            vm_execution={"enabled": True, "vm_pool_size": 0, "code_validation": False},
        )
        try:
            yield asyncio.run(_made(settings, options, folder))
        finally:
            shutil.rmtree(run_dir, ignore_errors=True)


@contextlib.contextmanager
def _own_cache() -> Iterator[Path]:
    """A cache of this process alone, where it looks at what machines left in their jails; with the usual images, and
    the snapshots of earlier runs. It is below the usual cache, so that links work."""
    usual = load_settings().cache_dir
    base = usual / "firecracker-tests"
    base.mkdir(mode=0o700, exist_ok=True)
    for number in itertools.count():
        fd = os.open(base / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        break
    try:
        cache = base / str(number)
        cache.mkdir(exist_ok=True)
        shutil.rmtree(cache / "jails", ignore_errors=True)  # of a run that was killed
        (usual / "images").mkdir(exist_ok=True)
        if not (cache / "images").is_symlink():
            (cache / "images").symlink_to(usual / "images")
        yield cache
    finally:
        os.close(fd)


async def _made(settings: Settings, options: FirecrackerOptions, folder: Path) -> World:
    image = await ensure_image(load_template("minimal", settings), settings)
    async with Engine(settings) as engine:
        session = await start(engine)
        snapshot, _ = await session.checkpoint(folder / "template")
    return World(settings, options, image, replace(snapshot, digests=digests_of(folder / "template")))


@pytest.fixture
def world(firecracker_world: World) -> World:
    return firecracker_world


def _left(settings: Settings) -> list[str]:
    """All that machines of these settings have on the host."""
    bases = [settings.run_dir, settings.cache_dir / "jails"]
    files = [str(path) for base in bases if base.exists() for path in base.iterdir()]
    processes = [f"process {pid}" for base in bases for pid in processes_of(f"{base}/")]
    owners = {Path(file).name for file in files}
    root = find_cgroup_root()
    groups = sorted(name for owner in owners for name in root.names(f"{owner}-")) if root else []
    return files + processes + groups


@pytest_asyncio.fixture(loop_scope="module")
async def clean(world: World) -> AsyncIterator[None]:
    """After the test nothing of it is left."""
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert _left(world.settings) == []
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 1


@pytest_asyncio.fixture(loop_scope="module")
async def factory(world: World, clean: None) -> AsyncIterator[FirecrackerFactory]:
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


async def woken(factory: FirecrackerFactory, snapshot: Snapshot) -> FirecrackerMachine:
    machine = await factory.fork(snapshot)
    assert isinstance(machine, FirecrackerMachine)
    await machine.channel.call("wake", fork=True, env={})
    return machine
