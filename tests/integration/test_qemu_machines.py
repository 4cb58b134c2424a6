"""QEMU machines, with the real QEMU and full emulation: the machine contract, and what can go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from emberbox import Engine
from emberbox.errors import ExecutionTimeout, SnapshotFailed, VmConnectionError, VmNotAvailable
from emberbox.machines.contract import MachineState, Snapshot
from emberbox.machines.microvm.fingerprint import FINGERPRINT
from emberbox.machines.qemu import QemuFactory, permissions
from emberbox.machines.qemu.machine import QemuMachine
from emberbox.machines.qemu.permissions import refusal
from emberbox.machines.qemu.shared_memory import SharedMemory
from emberbox.machines.qemu.snapshot_files import BASE, PAGES, STATE, Fingerprint
from emberbox.models import TerminationReason
from qemus import World, clean, engine, factory, pid_of, woken, world
from small_machines import LIMITS, run, start

__all__ = ["clean", "engine", "factory", "world"]  # pytest finds fixtures by their names in the module
pytestmark = pytest.mark.asyncio(loop_scope="module")


# --- the machine contract ---------------------------------------------------------------------------------------------


async def test_a_machine_boots_and_is_written_down(world: World, factory: QemuFactory, tmp_path: Path) -> None:
    machine = await factory.boot(world.image, LIMITS)
    assert isinstance(machine, QemuMachine)
    assert machine.fingerprint.method == "devices"  # this QEMU can do it
    await asyncio.wait_for(asyncio.shield(machine.channel.hello), 60)
    assert await machine.checkpoint(tmp_path / "snapshot") > 0
    assert {path.name for path in (tmp_path / "snapshot").iterdir()} == {BASE, STATE, FINGERPRINT}
    await machine.channel.call("ping")
    number = machine.channel.last_request
    copy = await factory.fork(Snapshot(tmp_path / "snapshot", world.image, LIMITS, number, 0))
    await copy.channel.call("ping")


async def test_where_qemu_cannot_write_down_devices_alone_all_is_written(
    world: World, factory: QemuFactory, tmp_path: Path
) -> None:
    machine = await woken(factory, world.snapshot)
    machine.fingerprint = machine.fingerprint.model_copy(update={"method": "stream"})
    await machine.channel.call("quiesce", look=False)
    await machine.checkpoint(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {STATE, FINGERPRINT}
    await machine.channel.call("wake", fork=False, env={})
    number = machine.channel.last_request
    copy = await woken(factory, Snapshot(tmp_path / "whole", world.image, LIMITS, number, 0))
    assert copy.fingerprint.method == "stream"
    await copy.channel.call("ping")


async def test_a_blank_is_filled(world: World, factory: QemuFactory) -> None:
    await woken(factory, world.snapshot)
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


async def test_a_blank_that_does_not_fit_is_replaced(world: World, factory: QemuFactory) -> None:
    blank = await factory.prepare(world.image, LIMITS)  # nothing was forked so far: there is nothing to wait for
    machine = await factory.fork(world.snapshot, blank)
    assert machine is not blank
    assert blank.state is MachineState.DEAD


async def test_kill_leaves_nothing(world: World, factory: QemuFactory) -> None:
    machine = await woken(factory, world.snapshot)
    pid = pid_of(machine)
    death = await machine.kill()
    assert death.reason is TerminationReason.KILLED
    assert machine.state is MachineState.DEAD
    assert not machine.directory.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert machine.group is None or not any(path.exists() for path in machine.group.directories)


async def test_the_process_has_no_rights(world: World, factory: QemuFactory) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give machines a uid of their own")
    machine, other = await woken(factory, world.snapshot), await woken(factory, world.snapshot)
    facts, others = (_status(pid_of(one)) for one in (machine, other))
    assert len(set(facts["Uid"]) | set(facts["Gid"])) == 1
    assert int(facts["Uid"][0]) >= 1_900_000_000
    assert facts["Uid"] != others["Uid"]
    assert facts["Groups"] == []
    assert facts["CapEff"] == facts["CapPrm"] == ["0" * 16]
    assert facts["NoNewPrivs"] == ["1"]
    assert facts["Seccomp"] == ["2"]
    process = Path(f"/proc/{pid_of(machine)}")
    assert os.readlink(process / "ns/net") != os.readlink("/proc/self/ns/net")  # noqa: PTH115
    mounts = (process / "mounts").read_text().splitlines()
    assert all("ro" in line.split()[3].split(",") for line in mounts)


async def test_qemu_finds_no_files_and_no_processes_of_the_host(world: World, factory: QemuFactory) -> None:
    if os.getuid() != 0 or (why := refusal()):
        pytest.skip(f"only root gets a root directory of its own, where the kernel gives one ({why})")
    machine = await woken(factory, world.snapshot)
    process = Path(f"/proc/{pid_of(machine)}")
    assert os.readlink(process / "ns/pid") != os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    assert _status(pid_of(machine))["NSpid"][-1] == "1"
    root = process / "root"
    assert {path.name for path in root.iterdir()} <= {"bin", "dev", "etc", "lib", "lib64", "proc", "sbin", "usr"}
    assert {path.name for path in (root / "dev").iterdir()} == {"null", "urandom"}
    assert {path.name for path in (root / "etc").iterdir()} <= {"ld.so.cache"}
    assert not any((root / name).exists() for name in ("home", "root", "run", "tmp", "var", "usr/bin/python3"))
    assert {path.name for path in (root / "proc").iterdir()} - {"self", "thread-self"} == {"1"}
    mounts = {line.split()[1] for line in (process / "mounts").read_text().splitlines()}
    assert not any(place.startswith(("/run", "/home", "/var", "/sys")) for place in mounts)  # the old root is let go of
    assert not any("host's files" in text for text in factory.capabilities().limitations)


async def test_where_the_kernel_refuses_a_root_directory_machines_run_and_the_host_is_told(
    world: World, factory: QemuFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.getuid() != 0:
        pytest.skip("only root confines machines")
    monkeypatch.setattr(permissions, "refusal", lambda: "pivot_root: Invalid argument")
    assert any("host's files" in text and "pivot_root" in text for text in factory.capabilities().limitations)
    machine = await woken(factory, world.snapshot)
    await machine.channel.call("ping")
    assert _status(pid_of(machine))["NSpid"] == [str(pid_of(machine))]
    mounts = (Path(f"/proc/{pid_of(machine)}") / "mounts").read_text().splitlines()
    assert all("ro" in line.split()[3].split(",") for line in mounts)


async def test_a_disk_with_limits_works(world: World, clean: None) -> None:
    settings = world.settings.model_copy(update={"disk_bandwidth_mb": 64, "disk_operations": 2000})
    async with Engine(settings) as engine:
        session = await start(engine)
        machine = session.machine
        assert isinstance(machine, QemuMachine)
        (drive,) = [word for word in _command_line(pid_of(machine)) if word.startswith("id=root,")]
        assert drive.endswith(f",throttling.bps-total={64 << 20},throttling.iops-total=2000")
        assert (await run(engine, session, "cat /usr/bin/* | wc -c", "bash")).stdout.strip().isdigit()


def _command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


def _status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}


async def test_copies_cannot_write_to_the_memory_that_they_share(world: World, factory: QemuFactory) -> None:
    machine = await woken(factory, world.snapshot)
    assert machine.base is not None
    fd = os.open(f"/proc/self/fd/{machine.base.fd}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
    finally:
        os.close(fd)


async def test_without_confinement_the_host_is_told(world: World, clean: None) -> None:
    factory = world.factory(confine=False)
    assert any("own rights" in text for text in factory.capabilities().limitations)
    try:
        await (await woken(factory, world.snapshot)).channel.call("ping")
    finally:
        await factory.close()


async def test_a_crash_of_qemu_is_a_death_with_a_reason(world: World, factory: QemuFactory) -> None:
    machine = await woken(factory, world.snapshot)
    os.kill(pid_of(machine), signal.SIGKILL)
    death = await asyncio.wait_for(machine.wait(), 10)
    assert death.reason is TerminationReason.CRASHED
    assert "QEMU ended with status" in death.message
    assert not machine.directory.exists()


async def test_a_qemu_that_talks_without_end_is_killed(world: World, factory: QemuFactory) -> None:
    machine = await woken(factory, world.snapshot)
    assert machine.qmp is not None
    machine.qmp._left = -1e9  # as after gigabytes
    with pytest.raises(VmConnectionError, match="far more than it was asked for"):
        await machine.pause()
    death = await asyncio.wait_for(machine.wait(), 20)
    assert "far more than it was asked for" in death.message
    assert not machine.directory.exists()


async def test_a_guest_that_dies_is_a_death(world: World, factory: QemuFactory) -> None:
    machine = await woken(factory, world.snapshot)
    os.write(machine.channel.fds[1], bytes(64))  # the agent ends when its host talks nonsense, and the guest with it
    death = await asyncio.wait_for(machine.wait(), 30)
    assert death.reason is TerminationReason.CRASHED
    assert "panic" in death.message
    assert not machine.directory.exists()


async def test_a_guest_that_hangs_is_noticed_and_can_be_killed(
    world: World, factory: QemuFactory, tmp_path: Path
) -> None:
    machine = await woken(factory, world.snapshot)
    os.kill(pid_of(machine), signal.SIGSTOP)
    with pytest.raises(ExecutionTimeout):
        await machine.channel.call("ping", timeout=0.5)
    assert (await machine.kill()).reason is TerminationReason.KILLED


async def test_machines_outlive_their_process_and_are_adopted(
    world: World, factory: QemuFactory, tmp_path: Path
) -> None:
    machine = await woken(factory, world.snapshot)
    other = await woken(factory, world.snapshot)
    await machine.survive_owner(30)
    await machine.pause()
    spawner = factory._spawner
    assert spawner is not None
    await _die(factory)
    heir = world.factory()
    try:
        adopted = await heir.adopt()
        assert set(adopted) == {machine.id}
        ours = adopted[machine.id]
        await ours.channel.call("wake", fork=True, env={})
        await ours.channel.call("ping")
        assert not other.directory.exists()
        await ours.channel.call("quiesce", look=False)
        assert await ours.checkpoint(tmp_path / "adopted") > 0
        await ours.channel.call("wake", fork=False, env={})
        number = ours.channel.last_request
        assert (tmp_path / "adopted" / PAGES).exists()
        await woken(heir, Snapshot(tmp_path / "adopted", world.image, LIMITS, number, 0))
    finally:
        await heir.close()
        await asyncio.to_thread(spawner._wait, 20)


async def test_a_machine_whose_record_is_damaged_ends_and_the_others_are_adopted(
    world: World, factory: QemuFactory
) -> None:
    whole, damaged = await woken(factory, world.snapshot), await woken(factory, world.snapshot)
    for machine in (whole, damaged):
        await machine.survive_owner(30)
        await machine.pause()
    pid, spawner = pid_of(damaged), factory._spawner
    assert spawner is not None
    (damaged.directory / FINGERPRINT).write_text("{")
    await _die(factory)
    heir = world.factory()
    try:
        adopted = await heir.adopt()
        assert set(adopted) == {whole.id}
        await adopted[whole.id].channel.call("wake", fork=True, env={})
        async with asyncio.timeout(20):
            while Path(f"/proc/{pid}").exists():
                await adopted[whole.id].channel.call("ping")
    finally:
        await heir.close()
        await asyncio.to_thread(spawner._wait, 20)


async def _die(factory: QemuFactory) -> None:
    """What the host sees when the process dies: its descriptors close, and nobody cleans up."""
    spawner, run_dir = factory._spawner, factory._run_dir
    assert spawner is not None
    assert run_dir is not None
    for machine in list(factory._machines.values()):
        for task in machine._tasks:
            task.cancel()
        await machine.let_go("died")
        if machine.serial is not None:
            machine.serial.close()
    spawner._disconnect()
    os.close(run_dir.lock_fd)
    factory._machines.clear()
    factory._spawner = factory._run_dir = None


async def test_what_a_dead_owner_left_is_swept(world: World, factory: QemuFactory) -> None:
    machine = await woken(factory, world.snapshot)
    pid, spawner = pid_of(machine), factory._spawner
    assert spawner is not None
    os.kill(spawner.pid, signal.SIGKILL)
    await asyncio.to_thread(spawner._wait, 10)
    await _die(factory)
    other = world.factory()
    assert await other.sweep() == 1
    with contextlib.suppress(FileNotFoundError):
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    await other.close()


# --- what can go wrong ------------------------------------------------------------------------------------------------


async def test_what_is_missing_is_named(world: World, tmp_path: Path) -> None:
    missing = world.factory(qemu=tmp_path / "no-qemu").capabilities()
    assert (missing.usable, missing.why) == (False, f"{tmp_path}/no-qemu is not there")
    assert "qemu-system-x86" in missing.remedy
    no_program = tmp_path / "text"
    no_program.write_text("no program")
    assert "is not executable" in world.factory(qemu=no_program).capabilities().why
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho hello\n")
    other.chmod(0o755)
    assert "does not answer" in world.factory(qemu=other).capabilities().why
    without = world.factory(accel="auto", kvm=Path("/dev/no-kvm")).capabilities()
    assert (without.usable, without.why) == (False, "/dev/no-kvm is not there")
    assert "qemu_accel" in without.remedy
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho QEMU emulator version 6.2.0\n")
    old.chmod(0o755)
    assert "6.2.0" in world.factory(qemu=old).capabilities().why


async def test_a_wrong_kernel_is_named(world: World, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"no kernel at all" * 1000)
    factory = QemuFactory(world.settings.model_copy(update={"kernel": kernel}))
    assert str(kernel) in factory.capabilities().why
    with pytest.raises(VmNotAvailable, match=r"(?i)kernel"):
        await factory.boot(world.image, LIMITS)


async def test_a_program_that_is_no_kernel_starts_nothing(world: World, clean: None, tmp_path: Path) -> None:
    """It looks like a kernel, and QEMU says what it thinks of it."""
    shutil.copyfile("/bin/true", tmp_path / "kernel")
    (tmp_path / "kernel").chmod(0o444)
    factory = QemuFactory(world.settings.model_copy(update={"kernel": tmp_path / "kernel", "boot_timeout_seconds": 15}))
    try:
        with pytest.raises((VmNotAvailable, ExecutionTimeout)) as error:
            await factory.boot(world.image, LIMITS)
        assert "did not start" in error.value.message or "kernel" in error.value.message
    finally:
        await factory.close()


async def test_a_boot_that_is_cancelled_leaves_nothing(world: World, factory: QemuFactory) -> None:
    for seconds in (0.03, 0.2, 1.5):
        boot = asyncio.create_task(factory.boot(world.image, LIMITS))
        await asyncio.wait([boot], timeout=seconds)
        if boot.cancel():
            with pytest.raises(asyncio.CancelledError):
                await boot
        else:  # this host is fast
            await boot.result().kill()
    assert factory._machines == {}


async def test_a_guest_without_an_init_panics_and_says_so(world: World, factory: QemuFactory, tmp_path: Path) -> None:
    image = replace(world.image, directory=tmp_path / "image")
    (image.rootfs / "opt/emberbox/guest").mkdir(parents=True)
    (image.rootfs / "dev").mkdir()
    with pytest.raises(VmNotAvailable, match=r"(?s)died while it started: .*panic"):
        await factory.boot(image, LIMITS)


async def test_a_snapshot_that_cannot_be_written_is_an_error_and_the_machine_goes_on(
    world: World, factory: QemuFactory, tmp_path: Path
) -> None:
    machine = await woken(factory, world.snapshot)
    with pytest.raises(SnapshotFailed, match="Cannot write a snapshot"):
        await machine.checkpoint(tmp_path / "none/snapshot")
    assert list(tmp_path.iterdir()) == []
    await machine.channel.call("ping")
    assert await machine.checkpoint(tmp_path / "snapshot") > 0
    await machine.channel.call("ping")


async def test_a_memory_stays_open_while_it_is_written_down_whatever_becomes_of_the_machine(
    world: World, factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed descriptor's number may be another file's by then."""
    machine = await woken(factory, world.snapshot)
    base, writing, go_on, save = machine.base, threading.Event(), threading.Event(), SharedMemory.save
    assert base is not None

    def slow(self: SharedMemory, target: Path) -> str:
        writing.set()
        assert go_on.wait(60)
        return save(self, target)

    monkeypatch.setattr(SharedMemory, "save", slow)
    taking = asyncio.create_task(machine.checkpoint(tmp_path / "snapshot"))
    await asyncio.to_thread(writing.wait, 60)
    taking.cancel()
    await machine.kill()
    factory._bases.close()
    assert base.fd >= 0
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert base.fd == -1
    assert list(tmp_path.iterdir()) == []


def _copy(snapshot: Snapshot, target: Path) -> Snapshot:
    shutil.copytree(snapshot.directory, target)
    return replace(snapshot, directory=target, written=None)


@pytest.mark.parametrize("name", [BASE, STATE, PAGES])
async def test_a_damaged_snapshot_is_refused(world: World, factory: QemuFactory, tmp_path: Path, name: str) -> None:
    copy = _copy(world.snapshot, tmp_path / "damaged")
    path = copy.directory / name
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(VmNotAvailable, match=rf"{name} of snapshot .* is damaged") as error:
        await factory.fork(copy)
    assert not error.value.retryable
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises((VmNotAvailable, ExecutionTimeout)):  # without digests, as snapshots that never left our care
        await asyncio.wait_for(factory.fork(replace(copy, digests=None)), 60)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("qemu", "9.9.9", r"was taken by QEMU 9\.9\.9, this is "),
        ("accel", "kvm", "was taken of a machine by kvm, these run by tcg"),
        ("processor", "Other-6-1-1", "was taken on another processor"),
        ("disk", "0" * 64, "another root disk"),
        ("kernel", "0" * 64, "another kernel"),
    ],
)
async def test_a_snapshot_from_elsewhere_is_refused(
    world: World, factory: QemuFactory, tmp_path: Path, field: str, value: str, said: str
) -> None:
    copy = replace(_copy(world.snapshot, tmp_path / "other"), digests=None)
    fingerprint = Fingerprint.model_validate_json((copy.directory / FINGERPRINT).read_bytes())
    (copy.directory / FINGERPRINT).write_text(fingerprint.model_copy(update={field: value}).model_dump_json())
    with pytest.raises(VmNotAvailable, match=said) as error:
        await factory.fork(copy)
    assert not error.value.retryable


async def test_emulation_is_used_only_where_the_settings_name_it(world: World, clean: None) -> None:
    async with Engine(world.settings) as engine:
        session = await start(engine)
        assert session.machine.backend == "qemu"
        assert engine.record_probe() is None
    async with Engine(world.settings.model_copy(update={"backend": "auto"})) as engine:
        session = await engine.create_sandbox("minimal", limits=LIMITS)
        assert session.machine.backend == "gvisor"
