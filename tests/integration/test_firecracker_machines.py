"""Firecracker machines, with the real firecracker and jailer: the machine contract, and what can go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from emberbox import Engine
from emberbox.engine import ExecuteRequest
from emberbox.errors import ExecutionTimeout, SnapshotFailed, VmNotAvailable
from emberbox.machines.contract import MachineState, Snapshot
from emberbox.machines.firecracker import FirecrackerFactory
from emberbox.machines.firecracker.api import Body
from emberbox.machines.firecracker.jail_layout import kill_processes
from emberbox.machines.firecracker.machine import FirecrackerMachine
from emberbox.machines.firecracker.options import EMULATED
from emberbox.machines.firecracker.snapshot_files import Fingerprint as FirecrackerMarks
from emberbox.machines.microvm.fingerprint import FINGERPRINT
from emberbox.machines.microvm.processor import emulated
from emberbox.models import TerminationReason
from emberbox.sandbox.files import GuestFiles, HasChannel
from emberbox.sandbox.listeners import RunOptions
from microvms import World, clean, engine, factory, woken, world
from small_machines import LIMITS, run, start

__all__ = ["clean", "engine", "factory", "world"]  # pytest finds fixtures by their names in the module
pytestmark = pytest.mark.asyncio(loop_scope="module")


# --- the machine contract ---------------------------------------------------------------------------------------------


async def test_a_blank_is_filled(world: World, factory: FirecrackerFactory) -> None:
    blank = await factory.prepare(world.image, LIMITS)
    assert blank.state is MachineState.PREPARED
    started = time.monotonic()
    machine = await factory.fork(world.snapshot, blank)
    print(f"fill a blank: {(time.monotonic() - started) * 1000:.0f} ms")
    assert machine is blank
    await machine.channel.call("wake", fork=True, env={})
    fresh = time.monotonic()
    await woken(factory, world.snapshot)
    print(f"fork and wake: {(time.monotonic() - fresh) * 1000:.0f} ms")
    assert (machine.stats().memory_bytes or 1) > 0


async def test_a_crash_of_the_monitor_is_a_death_with_a_reason(world: World, factory: FirecrackerFactory) -> None:
    machine = await woken(factory, world.snapshot)
    assert machine._process is not None
    os.kill(machine._process.pid, signal.SIGKILL)
    death = await asyncio.wait_for(machine.wait(), 10)
    assert death.reason is TerminationReason.CRASHED
    assert "Firecracker ended with status" in death.message
    assert not machine.place.directory.exists()


async def test_a_guest_that_dies_is_a_death(world: World, factory: FirecrackerFactory) -> None:
    machine = await woken(factory, world.snapshot)
    os.write(machine.channel.fds[1], bytes(64))  # the agent ends when its host talks nonsense, and the guest with it
    death = await asyncio.wait_for(machine.wait(), 30)
    assert death.reason is TerminationReason.CRASHED
    assert not machine.place.directory.exists()


async def test_a_sandbox_whose_machine_dies_goes_back_to_its_snapshot(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "x = 1")
    await engine.checkpoints.snapshot(session)
    await run(engine, session, "x = 2")
    machine = session.machine
    assert isinstance(machine, FirecrackerMachine)
    assert machine._process is not None
    os.kill(machine._process.pid, signal.SIGKILL)
    await asyncio.wait_for(machine.wait(), 10)
    await session.settled()
    assert (await run(engine, session, "x")).text == "1"


async def test_machines_outlive_their_process_and_are_adopted(world: World, factory: FirecrackerFactory) -> None:
    machine = await woken(factory, world.snapshot)
    other = await woken(factory, world.snapshot)
    await machine.survive_owner(30)
    spawner = factory._spawner
    assert spawner is not None
    await _die(factory)
    heir = world.factory()
    try:
        adopted = await heir.adopt()
        assert set(adopted) == {machine.id}
        await adopted[machine.id].channel.call("wake", fork=True, env={})
        await adopted[machine.id].channel.call("ping")
        assert not other.place.directory.exists()
        assert await adopted[machine.id].checkpoint(world.snapshot.directory.parent / "adopted") > 0
    finally:
        await heir.close()
        await asyncio.to_thread(spawner._wait, 20)


async def _die(factory: FirecrackerFactory) -> None:
    """What the host sees when the process dies: its descriptors close, and nobody cleans up."""
    spawner, run_dir = factory._spawner, factory._run_dir
    assert spawner is not None
    assert run_dir is not None
    machines = list(factory._machines.values())
    for machine in machines:
        for task in machine._tasks:
            task.cancel()
        machine.channel.close("died")
        await machine.api.close()
        if machine.serial is not None:
            machine.serial.close()
    spawner._disconnect()
    os.close(run_dir.lock_fd)
    factory._machines.clear()
    factory._spawner = factory._run_dir = None


async def test_what_a_dead_owner_left_is_swept(world: World, factory: FirecrackerFactory) -> None:
    machine = await woken(factory, world.snapshot)
    assert machine._process is not None
    pid, spawner = machine._process.pid, factory._spawner
    assert spawner is not None
    os.kill(spawner.pid, signal.SIGKILL)
    await asyncio.to_thread(spawner._wait, 10)
    await _die(factory)
    assert Path(f"/proc/{pid}").exists()
    other = world.factory()
    assert await other.sweep() == 1
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # reaped, perhaps while we look
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    await other.close()


def _files(machine: FirecrackerMachine) -> GuestFiles:
    return GuestFiles(cast(HasChannel, SimpleNamespace(open_channel=lambda: machine.channel, touched=lambda: None)))


SOME = 100_000
"""Bytes: many pages, and no more, because an emulated processor takes ten seconds to receive a megabyte."""


# --- what can go wrong ------------------------------------------------------------------------------------------------


async def test_without_kvm_it_says_so(world: World) -> None:
    found = world.factory(kvm=Path("/dev/no-kvm")).capabilities()
    assert not found.usable
    assert "/dev/no-kvm is not there" in found.why
    assert "KVM" in found.remedy


async def test_an_emulated_kvm_is_used_on_request_only(world: World) -> None:
    if not emulated():
        pytest.skip("this host's KVM is real")
    refused, taken = (world.factory(accept_emulated=accept).capabilities() for accept in (False, True))
    assert (refused.usable, refused.why) == (False, EMULATED)
    assert (taken.usable, taken.why) == (True, EMULATED)
    assert any(text.startswith(EMULATED) for text in taken.limitations)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no kernel at all" * 1000, r"kernel is no kernel \(an ELF program"),
        (bytes(0x202) + b"HdrS" + bytes(1000), r"is compressed \(a bzImage\)"),
        (b"\x7fELF\x02\x01" + bytes(12) + b"\x3e\0" + bytes(4000), r"(?i)Firecracker refused PUT /\S+: .*kernel"),
        (None, "there is no guest kernel"),
    ],
)
async def test_a_wrong_kernel_is_named(
    world: World, clean: None, tmp_path: Path, content: bytes | None, said: str
) -> None:
    kernel = tmp_path / "kernel"
    if content is not None:
        kernel.write_bytes(content)
        kernel.chmod(0o444)
    factory = world.factory(kernel=kernel)
    try:
        with pytest.raises(VmNotAvailable, match=said) as error:
            await factory.boot(world.image, LIMITS)
        assert error.value.remediation
    finally:
        await factory.close()


async def test_a_boot_that_is_cancelled_leaves_nothing(world: World, factory: FirecrackerFactory) -> None:
    for seconds in (0.03, 0.2, 1.5):
        boot = asyncio.create_task(factory.boot(world.image, LIMITS))
        await asyncio.wait([boot], timeout=seconds)
        if boot.cancel():
            with pytest.raises(asyncio.CancelledError):
                await boot
        else:  # this host is fast
            await boot.result().kill()
    assert factory._machines == {}


async def test_a_guest_without_an_init_panics_and_says_so(
    world: World, factory: FirecrackerFactory, tmp_path: Path
) -> None:
    image = replace(world.image, directory=tmp_path / "image")
    (image.rootfs / "opt/emberbox/guest").mkdir(parents=True)
    (image.rootfs / "dev").mkdir()
    with pytest.raises(VmNotAvailable, match=r"(?s)died while it started: .*panic"):
        await factory.boot(image, LIMITS)


async def _is_whole(
    machine: FirecrackerMachine, factory: FirecrackerFactory, world: World, directory: Path, data: bytes
) -> None:
    """A snapshot has all that changed, also before others that failed, which Firecracker does not count any more."""
    last = machine.channel.last_request
    size = await machine.checkpoint(directory)
    copy = await woken(factory, Snapshot(directory, world.image, LIMITS, last, size))
    assert await _files(copy).read_bytes("/tmp/before") == data


async def test_a_snapshot_that_cannot_be_written_is_an_error_and_the_machine_goes_on(
    world: World, factory: FirecrackerFactory, tmp_path: Path
) -> None:
    machine = await woken(factory, world.snapshot)
    data = os.urandom(SOME)
    await _files(machine).write("/tmp/before", data)
    in_the_way = machine.place.root / machine.place.written("memory")
    in_the_way.mkdir()
    with pytest.raises(SnapshotFailed, match="Firecracker refused PUT /snapshot/create"):
        await machine.checkpoint(tmp_path / "snapshot")
    in_the_way.rmdir()
    with pytest.raises(SnapshotFailed, match="Cannot write a snapshot"):
        await machine.checkpoint(tmp_path / "none/snapshot")
    assert list(tmp_path.iterdir()) == []
    await machine.channel.call("ping")
    for name in ("first", "second"):
        await _is_whole(machine, factory, world, tmp_path / name, data)
    await machine.channel.call("ping")


async def test_a_guest_that_does_not_come_up_is_given_up(world: World, clean: None) -> None:
    """Far too little time, on any host: the kernel alone takes longer than that."""
    factory = FirecrackerFactory(world.settings.model_copy(update={"boot_timeout_seconds": 0.15}), world.options)
    try:
        with pytest.raises(ExecutionTimeout, match="did not start in time") as error:
            await factory.boot(world.image, LIMITS)
        assert error.value.retryable
        assert factory._machines == {}
    finally:
        await factory.close()


async def test_a_monitor_that_hangs_is_noticed_and_can_be_killed(
    world: World, factory: FirecrackerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await woken(factory, world.snapshot)
    assert machine._process is not None
    os.kill(machine._process.pid, signal.SIGSTOP)
    with pytest.raises(SnapshotFailed, match="Firecracker does not answer PATCH /vm"):
        await machine.checkpoint(tmp_path / "snapshot")
    assert list(tmp_path.iterdir()) == []
    death = await asyncio.wait_for(machine.kill(), 20)
    assert death.reason is TerminationReason.KILLED
    assert not machine.place.directory.exists()


async def test_a_sandbox_whose_machine_hangs_is_an_error_in_time(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "x = 1")
    machine = session.machine
    assert isinstance(machine, FirecrackerMachine)
    assert machine._process is not None
    os.kill(machine._process.pid, signal.SIGSTOP)
    request = ExecuteRequest(session, "python", "x", RunOptions(timeout=1))
    done = await asyncio.wait_for(engine.execute(request), 100)
    assert done.termination_reason is TerminationReason.TIMEOUT
    assert done.error is not None
    assert "did not stop its code after 1 s" in done.error.value
    death = await asyncio.wait_for(machine.wait(), 20)  # it was killed: nobody knows what still runs in it
    assert death.reason is TerminationReason.TIMEOUT
    assert not machine.place.directory.exists()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system that is soon full."""
    folder = Path(tempfile.mkdtemp(prefix="ebf-", dir="/tmp"))
    mounted = (
        os.getuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "emberbox-test", folder],
            capture_output=True,
            timeout=30,
            check=False,
        ).returncode
    )
    try:
        if not mounted:
            pytest.skip("wants root, to mount a small file system")
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True, timeout=30)
        folder.rmdir()


async def test_a_disk_that_is_full_under_a_snapshot_costs_the_snapshot_only(
    world: World, factory: FirecrackerFactory, small_disk: Path, tmp_path: Path
) -> None:
    machine = await woken(factory, world.snapshot)
    data = os.urandom(SOME)
    await _files(machine).write("/tmp/before", data)
    with pytest.raises(SnapshotFailed, match=r"Cannot write a snapshot to .*No space left on device") as error:
        await machine.checkpoint(small_disk / "snapshot")
    assert "space" in error.value.remediation
    assert list(small_disk.iterdir()) == []
    assert list((machine.place.root / "w").glob("[!v]*")) == []
    await machine.channel.call("ping")
    await _is_whole(machine, factory, world, tmp_path / "snapshot", data)


async def test_snapshots_may_be_on_another_file_system(world: World, factory: FirecrackerFactory) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        if Path(folder).stat().st_dev == world.snapshot.directory.stat().st_dev:
            pytest.skip("there is no other file system")
        machine = await woken(factory, world.snapshot)
        data = os.urandom(SOME)
        await _files(machine).write("/tmp/before", data)
        for name in ("first", "second"):
            await _is_whole(machine, factory, world, Path(folder) / name, data)


async def test_a_disk_that_is_full_under_firecracker_costs_the_snapshot_only(
    world: World, clean: None, small_disk: Path, tmp_path: Path
) -> None:
    factory = FirecrackerFactory(
        world.settings.model_copy(update={"run_dir": small_disk}), replace(world.options, jail=False)
    )
    try:
        machine = await woken(factory, world.snapshot)
        with pytest.raises(SnapshotFailed, match=r"Firecracker refused PUT /snapshot/create: .*No space left"):
            await machine.checkpoint(tmp_path / "snapshot")
        assert list(tmp_path.iterdir()) == []
        assert list((machine.place.root / "w").glob("[!v]*")) == []
        await machine.channel.call("ping")
    finally:
        await factory.close()
    assert list(small_disk.iterdir()) == []


def _copy(snapshot: Snapshot, target: Path) -> Snapshot:
    target.mkdir()
    for path in snapshot.directory.iterdir():
        if path.name == "memory":
            os.link(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)
    return replace(snapshot, directory=target, written=None)


async def test_a_damaged_snapshot_is_refused(world: World, factory: FirecrackerFactory, tmp_path: Path) -> None:
    copy = _copy(world.snapshot, world.snapshot.directory.parent / "damaged")
    state = copy.directory / "state"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 0xFF
    state.write_bytes(data)
    with pytest.raises(VmNotAvailable, match=r"state of snapshot .* is damaged") as error:
        await factory.fork(copy)
    assert not error.value.retryable
    with pytest.raises(VmNotAvailable, match="could not be started: Firecracker refused PUT /snapshot/load"):
        await factory.fork(replace(copy, digests=None))  # Firecracker looks, too


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("firecracker", "1.11.0", r"was taken by Firecracker 1\.11\.0, this is 1\.12\.1"),
        ("processor", "Other-6-1-1", "was taken on another processor"),
        ("disk", "0" * 64, "another root disk"),
    ],
)
async def test_a_snapshot_from_elsewhere_is_refused(
    world: World, factory: FirecrackerFactory, tmp_path: Path, field: str, value: str, said: str
) -> None:
    copy = replace(_copy(world.snapshot, world.snapshot.directory.parent / f"other-{field}"), digests=None)
    marks = FirecrackerMarks.model_validate_json((copy.directory / FINGERPRINT).read_bytes())
    (copy.directory / FINGERPRINT).write_text(marks.model_copy(update={field: value}).model_dump_json())
    with pytest.raises(VmNotAvailable, match=said) as error:
        await factory.fork(copy)
    assert not error.value.retryable


async def test_processes_are_found_by_the_name_of_their_machine(world: World, factory: FirecrackerFactory) -> None:
    """Where no cgroup names them, what is in a jail must still be found."""
    machine = await woken(factory, world.snapshot)
    await asyncio.to_thread(kill_processes, machine.id)
    death = await asyncio.wait_for(machine.wait(), 10)
    assert death.reason is TerminationReason.CRASHED


# --- how fast the disk may be read ------------------------------------------------------------------------------------


class MetricsFile(Body):
    metrics_path: str


class Flush(Body):
    action_type: str = "FlushMetrics"


async def _throttled(world: World, factory: FirecrackerFactory, snapshot: Snapshot) -> tuple[FirecrackerMachine, int]:
    """A copy that has read a large file of its root disk, and how often Firecracker says that the disk had to wait."""
    machine = await factory.prepare(world.image, LIMITS)  # a machine that runs is not asked for metrics any more
    assert isinstance(machine, FirecrackerMachine)
    file = machine.place.root / "w/metrics"
    file.touch()
    if machine.place.uid is not None:
        os.chown(file, machine.place.uid, machine.place.uid)
    await machine.api.put("/metrics", MetricsFile(metrics_path="w/metrics"))
    assert await factory.fork(snapshot, machine) is machine
    await machine.channel.call("wake", fork=True, env={})
    share = world.image.rootfs / "usr/share"  # nothing that runs has read this
    sizes = {path: path.stat().st_size for path in share.rglob("*") if path.is_file() and not path.is_symlink()}
    file_there = min((path for path, size in sizes.items() if size > 300_000), key=lambda path: sizes[path])
    assert await _files(machine).read_bytes(f"/{file_there.relative_to(world.image.rootfs)}") == file_there.read_bytes()
    await machine.api.put("/actions", Flush())
    counts = [json.loads(line)["block_root"] for line in file.read_text().splitlines()]  # each since the one before
    assert sum(count["read_bytes"] for count in counts) >= sizes[file_there]
    throttled = sum(count["rate_limiter_throttled_events"] for count in counts)
    print(f"{sum(count['read_count'] for count in counts)} reads, throttled {throttled} times")
    return machine, throttled


async def _limiter(machine: FirecrackerMachine) -> object:
    """What Firecracker says of its disk."""
    answer = await machine.api._call("GET", "/vm/config", None, 15)
    (drive,) = answer.json()["drives"]
    return drive["rate_limiter"]


async def test_a_copy_has_the_disk_limits_of_the_settings_and_not_those_of_its_snapshot(
    world: World, factory: FirecrackerFactory, tmp_path: Path
) -> None:
    # the bandwidth does not act on an emulated guest, which cannot read 1 MiB in a second
    settings = world.settings.model_copy(update={"disk_operations": 2, "disk_bandwidth_mb": 1})
    limited = FirecrackerFactory(settings, world.options)
    a_second = {"one_time_burst": None, "refill_time": 1000}
    wanted = {"bandwidth": a_second | {"size": 1 << 20}, "ops": a_second | {"size": 2}}
    try:
        machine = await woken(limited, world.snapshot)
        last = machine.channel.last_request
        size = await machine.checkpoint(tmp_path / "slow")
        under_limits = Snapshot(tmp_path / "slow", world.image, LIMITS, last, size)
        machine, times = await _throttled(world, limited, world.snapshot)
        assert await _limiter(machine) == wanted
        assert times > 0
        machine, times = await _throttled(world, factory, under_limits)
        assert (await _limiter(machine), times) == (None, 0)
    finally:
        await limited.close()
