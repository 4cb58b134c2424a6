"""QEMU machines, with the real QEMU and full emulation: boot once, fork for every test, clear everything away.

The template's snapshot is kept in the cache, keyed as those of all templates, so that only the first run boots. Where
QEMU or a guest kernel cannot be had, these tests are skipped, and the reason says what was missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from backends import BOOT_SECONDS, need_qemu, need_root_disks, qemu_kernel
from emberbox import Engine, MachineLimits, Settings, load_settings
from emberbox.engine import ExecuteRequest
from emberbox.errors import ExecutionTimeout, SnapshotFailed, VmNotAvailable
from emberbox.host.cgroups import find_cgroup_root
from emberbox.host.rundir import processes_of
from emberbox.images.builder import ensure_image
from emberbox.images.store import Image
from emberbox.images.template import load_template
from emberbox.machines.base import MachineState, Snapshot
from emberbox.machines.qemu import QemuFactory, QemuOptions
from emberbox.machines.qemu.machine import QemuMachine
from emberbox.machines.qemu.snapshot_files import BASE, MARKS, PAGES, STATE, Marks
from emberbox.models import Execution, TerminationReason
from emberbox.sandbox.session import Session
from emberbox.sandbox.store import digests_of
from emberbox.sandbox.work import Listeners, RunOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIMITS = MachineLimits(memory_mb=256, disk_mb=64, tmp_mb=32, vcpus=1)
DEFAULT_LIMITS = MachineLimits(memory_mb=512, disk_mb=128, tmp_mb=64, vcpus=1)


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
        snapshot_dir=load_settings().cache_dir / "qemu-tests",
        state_dir=folder / "state",
        boot_timeout_seconds=BOOT_SECONDS,
        vm_execution={"enabled": True, "vm_pool_size": 0, "code_validation": False},
        **changes,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Boots the one machine of which all others are copies, unless the cache has it."""
    need_root_disks()
    need_qemu()
    run_dir, folder = Path(tempfile.mkdtemp(prefix="ebq-", dir="/tmp")), tmp_path_factory.mktemp("qemu")
    try:
        settings = _settings(run_dir, folder)
        image = await ensure_image(load_template("minimal", settings), settings)
        async with Engine(settings) as engine:
            for _ in range(2):  # the first may be the one that was booted
                session = await engine.create_sandbox("minimal", limits=LIMITS)
            snapshot = await session.checkpoint(folder / "template")
        yield World(settings, image, replace(snapshot, digests=digests_of(folder / "template")))
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


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


@pytest.fixture
def clean(world: World) -> Iterator[None]:
    """After the test nothing of it is left: no file, process, cgroup, descriptor, memory."""
    before = len(_descriptors())
    yield
    assert _left(world.settings) == []
    after = _descriptors()
    assert len(after) <= before + 1
    assert not any("emberbox-ram" in name for name in after)


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


async def start(engine: Engine) -> Session:
    return await engine.create_sandbox("minimal", limits=LIMITS)


async def run(engine: Engine, session: Session, code: str, language: str = "python") -> Execution:
    done = await engine.execute(ExecuteRequest(session, language, code, RunOptions(timeout=60)))
    assert done.error is None, (done.error, done.stderr)
    return done


async def woken(factory: QemuFactory, snapshot: Snapshot) -> QemuMachine:
    machine = await factory.fork(snapshot)
    assert isinstance(machine, QemuMachine)
    await machine.channel.call("wake", fork=True, env={})
    return machine


def pid_of(machine: QemuMachine) -> int:
    assert machine._process is not None
    return machine._process.pid


# --- what a user gets -------------------------------------------------------------------------------------------------


async def test_it_runs_code_and_keeps_variables(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "x = 41")
    assert (await run(engine, session, "x + 1")).text == "42"
    assert session.info().backend == "qemu"
    metrics = await session.metrics()
    assert metrics.memory_limit_bytes == 256 << 20
    assert (metrics.disk_total_bytes or 0) >> 20 == LIMITS.disk_mb


async def test_user_code_is_an_ordinary_user_of_a_read_only_machine(engine: Engine) -> None:
    session = await start(engine)
    code = """
import os, socket
def refused(work):
    try: work()
    except OSError: return True
    return False
[os.getuid(), refused(lambda: open('/etc/x', 'w')), refused(lambda: open('/dev/vda', 'rb')),
 sorted(os.listdir('/dev')), os.uname().nodename, refused(lambda: open('/proc/1/environ')),
 refused(lambda: socket.create_connection(('1.1.1.1', 53), 1))]
"""
    found = (await run(engine, session, code)).text
    assert found is not None
    assert found.startswith("[1000, True, True, ['fd', 'full', 'null', 'ptmx', 'pts', 'random', 'shm',")
    assert found.endswith("'emberbox', True, True]")


async def test_bash_streams_and_files(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "y=kept", "bash")
    seen: list[str] = []
    request = ExecuteRequest(session, "bash", "echo $y; echo again", RunOptions(timeout=60))
    done = await engine.execute(request, Listeners(on_stdout=seen.append))
    assert "".join(seen) == done.stdout == "kept\nagain\n"
    data = os.urandom(600_000)
    await session.files.write("deep/er/file", data)
    assert await session.files.read_bytes("deep/er/file") == data
    assert [entry.name for entry in await session.files.list("deep")] == ["er"]
    code = "import hashlib; hashlib.sha256(open('deep/er/file', 'rb').read()).hexdigest()"
    assert (await run(engine, session, code)).text == repr(hashlib.sha256(data).hexdigest())


async def test_much_output_comes_whole(engine: Engine) -> None:
    session = await start(engine)
    done = await run(engine, session, "for n in range(20_000): print(f'{n:06} {n * n}')")
    assert done.stdout == "".join(f"{n:06} {n * n}\n" for n in range(20_000))


async def test_javascript_and_numpy(world: World, clean: None) -> None:
    async with Engine(world.settings) as engine:
        session = await engine.create_sandbox("default", limits=DEFAULT_LIMITS)
        assert (
            await run(engine, session, "const x = [1, 2, 3].map(n => n * 2); x.join()", "javascript")
        ).text == "'2,4,6'"
        assert (await run(engine, session, "import numpy; int(numpy.arange(10).sum())")).text == "45"


@pytest.mark.rust
async def test_rust(world: World, clean: None) -> None:
    async with Engine(world.settings) as engine:
        session = await engine.create_sandbox("default", limits=DEFAULT_LIMITS)
        request = ExecuteRequest(session, "rust", 'fn main() { println!("{}", 6 * 7); }', RunOptions(timeout=170))
        assert (await engine.execute(request)).stdout == "42\n"


async def test_rollback_takes_back_memory_files_and_processes(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "x = 'before'; n = open('f', 'w').write('before')")
    await run(engine, session, "sleep 1000 & echo $! > pid", "bash")
    point = await engine.undo.snapshot(session, "point")
    assert (await run(engine, session, "x")).text == "'before'"
    await run(engine, session, "x = 'after'; n = open('f', 'w').write('after'); z = 1")
    await run(engine, session, "kill $(cat pid)", "bash")
    started = time.monotonic()
    await engine.undo.rollback(session, point.snapshot_id)
    print(f"rollback: {time.monotonic() - started:.3f} s")
    assert (await run(engine, session, "[x, open('f').read(), 'z' in globals()]")).text == "['before', 'before', False]"
    assert (await run(engine, session, "cat /proc/$(cat pid)/comm", "bash")).stdout == "sleep\n"


async def test_snapshots_hold_what_changed_and_depend_on_no_other(engine: Engine) -> None:
    session = await start(engine)
    points = []
    for number in range(3):
        await run(engine, session, f"x = {number}; data{number} = bytes([{number} + 1]) * 3_000_000")
        points.append(await engine.undo.snapshot(session))
        assert points[-1].size_bytes < 40 << 20
    await engine.undo.delete(session, points[0].snapshot_id)
    code = "[x, [name in globals() for name in ('data0', 'data1', 'data2')], sum(map(sum, (data0, data1)))]"
    for number in (1, 2, 1):
        await engine.undo.rollback(session, points[number].snapshot_id)
        there = [True, True, number == 2]
        assert (await run(engine, session, code)).text == str([number, there, 9_000_000])


async def test_a_snapshot_of_a_copy_of_a_snapshot(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "x = ['first']")
    (copy,) = await engine.undo.fork(session, 1)
    await run(engine, copy, "x.append('second')")
    await engine.kill_sandbox(session.id)
    point = await engine.undo.snapshot(copy)
    await run(engine, copy, "x.append('third')")
    await engine.undo.rollback(copy, point.snapshot_id)
    (last,) = await engine.undo.fork(copy, 1)
    assert (await run(engine, last, "x")).text == "['first', 'second']"


async def test_forks_share_nothing_and_draw_their_own_numbers(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "import os, random, time, uuid; x = 1; random.random()")
    copies = await engine.undo.fork(session, 2)
    draws = []
    for number, copy in enumerate([session, *copies]):
        await run(engine, copy, f"x += {number}; n = open('mine', 'x').write('{number}')")
        draws.append((await run(engine, copy, "[os.urandom(8).hex(), random.random(), uuid.uuid4().hex]")).text)
    assert len(set(draws)) == 3
    found = [(await run(engine, copy, "[x, open('mine').read()]")).text for copy in [session, *copies]]
    assert found == ["[1, '0']", "[2, '1']", "[3, '2']"]


async def test_the_clock_is_right_after_a_fork(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "import time")
    (copy,) = await engine.undo.fork(session, 1)
    for sandbox in (session, copy):
        before = time.time()
        seen = float((await run(engine, sandbox, "time.time()")).text or 0)
        assert before - 0.5 < seen < time.time() + 0.5


async def test_the_pool_fills_and_leases(world: World, clean: None) -> None:
    settings = world.settings.model_copy(
        update={"vm_execution": world.settings.vm_execution.model_copy(update={"vm_pool_size": 1})}
    )
    async with Engine(settings) as engine:
        await engine.warm("minimal", limits=LIMITS, count=1)
        started = time.monotonic()
        session = await start(engine)
        print(f"lease: {(time.monotonic() - started) * 1000:.0f} ms")
        assert (await run(engine, session, "x = 6; x * 7")).text == "42"
        point = await engine.undo.snapshot(session)
        await run(engine, session, "x = 7")
        await engine.undo.rollback(session, point.snapshot_id)  # fills a blank, where one is ready
        assert (await run(engine, session, "x")).text == "6"


async def test_pause_and_resume(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "x = 5")
    await session.pause()
    await session.resume()
    assert (await run(engine, session, "x")).text == "5"


async def test_a_sandbox_whose_machine_dies_goes_back_to_its_snapshot(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "x = 1")
    await engine.undo.snapshot(session)
    await run(engine, session, "x = 2")
    machine = session.machine
    assert isinstance(machine, QemuMachine)
    os.kill(pid_of(machine), signal.SIGKILL)
    await asyncio.wait_for(machine.wait(), 10)
    await session.settled()
    assert (await run(engine, session, "x")).text == "1"


async def test_code_that_never_ends_is_stopped_and_the_sandbox_goes_on(engine: Engine) -> None:
    session = await start(engine)
    done = await engine.execute(ExecuteRequest(session, "python", "while True: pass", RunOptions(timeout=1)))
    assert done.termination_reason is TerminationReason.TIMEOUT
    assert (await run(engine, session, "6 * 7")).text == "42"


# --- the machine contract ---------------------------------------------------------------------------------------------


async def test_a_machine_boots_and_is_written_down(world: World, factory: QemuFactory, tmp_path: Path) -> None:
    machine = await factory.boot(world.image, LIMITS)
    assert isinstance(machine, QemuMachine)
    assert machine.marks.method == "devices"  # this QEMU can do it
    await asyncio.wait_for(asyncio.shield(machine.channel.hello), 60)
    assert await machine.checkpoint(tmp_path / "snapshot") > 0
    assert {path.name for path in (tmp_path / "snapshot").iterdir()} == {BASE, STATE, MARKS}
    await machine.channel.call("ping")
    number = machine.channel.last_request
    copy = await factory.fork(Snapshot(tmp_path / "snapshot", world.image, LIMITS, number, 0))
    await copy.channel.call("ping")


async def test_where_qemu_cannot_write_down_devices_alone_all_is_written(
    world: World, factory: QemuFactory, tmp_path: Path
) -> None:
    machine = await woken(factory, world.snapshot)
    machine.marks = machine.marks.model_copy(update={"method": "stream"})
    await machine.channel.call("quiesce", look=False)
    await machine.checkpoint(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {STATE, MARKS}
    await machine.channel.call("wake", fork=False, env={})
    number = machine.channel.last_request
    copy = await woken(factory, Snapshot(tmp_path / "whole", world.image, LIMITS, number, 0))
    assert copy.marks.method == "stream"
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
    assert int(facts["Uid"][0]) >= 400_000
    assert facts["Uid"] != others["Uid"]
    assert facts["Groups"] == []
    assert facts["CapEff"] == facts["CapPrm"] == ["0" * 16]
    assert facts["NoNewPrivs"] == ["1"]
    assert facts["Seccomp"] == ["2"]
    process = Path(f"/proc/{pid_of(machine)}")
    assert os.readlink(process / "ns/net") != os.readlink("/proc/self/ns/net")  # noqa: PTH115
    mounts = (process / "mounts").read_text().splitlines()
    assert all("ro" in line.split()[3].split(",") for line in mounts)


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
    await machine.outlive(30)
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
        await asyncio.sleep(seconds)
        boot.cancel()
        with pytest.raises(asyncio.CancelledError):
            await boot
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


def _copy(snapshot: Snapshot, target: Path) -> Snapshot:
    shutil.copytree(snapshot.directory, target)
    return replace(snapshot, directory=target)


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
    marks = Marks.model_validate_json((copy.directory / MARKS).read_bytes())
    (copy.directory / MARKS).write_text(marks.model_copy(update={field: value}).model_dump_json())
    with pytest.raises(VmNotAvailable, match=said) as error:
        await factory.fork(copy)
    assert not error.value.retryable


async def test_emulation_is_used_only_where_the_settings_name_it(world: World, clean: None) -> None:
    async with Engine(world.settings) as engine:
        session = await engine.create_sandbox("minimal", limits=LIMITS)
        assert session.machine.backend == "qemu"
        assert engine.note_proof() is None
    async with Engine(world.settings.model_copy(update={"backend": "auto"})) as engine:
        session = await engine.create_sandbox("minimal", limits=LIMITS)
        assert session.machine.backend == "gvisor"
