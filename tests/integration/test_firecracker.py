"""Sandboxes on Firecracker, with the real firecracker and jailer: what a user gets, and how it is confined."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import emberbox
import microvm_user
from backends import ALL_ON_FIRECRACKER, warmed
from emberbox import Engine, MachineLimits, load_settings
from emberbox.engine import ExecuteRequest
from emberbox.images.store import ImageStore
from emberbox.images.template import load_template
from emberbox.machines.contract import MachineState
from emberbox.machines.firecracker import FirecrackerFactory
from emberbox.machines.firecracker.balloon import BalloonReclaimer
from emberbox.machines.firecracker.machine import FirecrackerMachine
from emberbox.machines.microvm.processor import emulated
from emberbox.models import TerminationReason
from emberbox.sandbox.listeners import Listeners, RunOptions
from microvms import World, clean, engine, factory, woken, world
from small_machines import LIMITS, run, start

__all__ = ["clean", "engine", "factory", "world"]  # pytest finds fixtures by their names in the module
pytestmark = pytest.mark.asyncio(loop_scope="module")


# --- what a user gets -------------------------------------------------------------------------------------------------


async def test_it_boots_runs_code_and_keeps_variables(engine: Engine) -> None:
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
    data = os.urandom(200_000)  # several frames
    await session.files.write("deep/er/file", data)
    assert await session.files.read_bytes("deep/er/file") == data
    assert [entry.name for entry in await session.files.list("deep")] == ["er"]
    code = "import zlib; zlib.crc32(open('deep/er/file', 'rb').read())"  # to load what has SHA-256 takes long
    assert (await run(engine, session, code)).text == str(zlib.crc32(data))


async def test_snapshots_hold_what_changed_and_depend_on_no_other(engine: Engine) -> None:
    session = await start(engine)
    points = []
    for number in range(3):
        await run(engine, session, f"x = {number}; data{number} = bytes([{number} + 1]) * 300_000")
        started = time.monotonic()
        points.append(await engine.checkpoints.snapshot(session))
        print(f"snapshot: {time.monotonic() - started:.3f} s, {points[-1].size_bytes >> 20} MiB")
        assert points[-1].size_bytes < 160 << 20
    await engine.checkpoints.delete(session, points[0].snapshot_id)
    code = "[x, [name in globals() for name in ('data0', 'data1', 'data2')], data0.count(1) + 2 * data1.count(2)]"
    for number in (1, 2, 1):
        await engine.checkpoints.rollback(session, points[number].snapshot_id)
        there = [True, True, number == 2]
        assert (await run(engine, session, code)).text == str([number, there, 900_000])


async def test_the_pool_fills_and_leases(world: World, clean: None) -> None:
    settings = world.settings.model_copy(
        update={"vm_execution": world.settings.vm_execution.model_copy(update={"vm_pool_size": 1})}
    )
    async with Engine(settings) as engine:
        await engine.warm(warmed("minimal"), limits=LIMITS, count=1)
        started = time.monotonic()
        session = await start(engine)
        seconds = time.monotonic() - started
        print(f"lease: {seconds * 1000:.0f} ms")
        assert (await run(engine, session, "x = 6; x * 7")).text == "42"
        point = await engine.checkpoints.snapshot(session)
        await run(engine, session, "x = 7")
        await engine.checkpoints.rollback(session, point.snapshot_id)  # fills a blank, where one is ready
        assert (await run(engine, session, "x")).text == "6"


@pytest.mark.timeout(900)
async def test_javascript_keeps_its_variables_and_its_process(world: World, clean: None, tmp_path: Path) -> None:
    if emulated() and not ALL_ON_FIRECRACKER:
        pytest.skip("node takes minutes where KVM is emulated: EMBERBOX_TEST_FIRECRACKER=1 runs it")
    own = tmp_path / "default.toml"
    theirs = load_template("default", load_settings())
    text = (theirs.directory / own.name).read_text()
    own.write_text(text.replace('warm = ["python"]', 'warm = ["python", "javascript"]'))
    if ImageStore(load_settings()).find(theirs) is None:
        pytest.skip("the image `default`, which has node, is not built")
    limits = MachineLimits(memory_mb=512, disk_mb=64, tmp_mb=64, vcpus=1)
    async with Engine(world.settings) as engine:
        session = await engine.create_sandbox(str(own), limits=limits)
        first = await run(engine, session, "const x = 20; x * 2 + 2", "javascript")
        assert (first.termination_reason, first.text) == (TerminationReason.COMPLETED, "42")
        code = "await new Promise(done => setTimeout(done, 10)); [x, require('os').hostname()].join()"
        assert (await run(engine, session, code, "javascript")).text == "'20,emberbox'"
        point = await engine.checkpoints.snapshot(session)
        await run(engine, session, "var y = 1", "javascript")
        await engine.checkpoints.rollback(session, point.snapshot_id)
        assert (await run(engine, session, "[x, typeof y].join()", "javascript")).text == "'20,undefined'"


@pytest.mark.timeout(600)
async def test_rust_is_compiled_once(world: World, clean: None) -> None:
    if emulated() and not ALL_ON_FIRECRACKER:
        pytest.skip("rustc takes three minutes where KVM is emulated: EMBERBOX_TEST_FIRECRACKER=1 runs it")
    if ImageStore(load_settings()).find(load_template("default", load_settings())) is None:
        pytest.skip("the image `default`, which has rustc, is not built")
    vm_execution = world.settings.vm_execution.model_copy(deep=True)
    vm_execution.security_settings.resource_limits.max_execution_time_seconds = 300
    limits = MachineLimits(memory_mb=1024, disk_mb=256, tmp_mb=256, vcpus=1)
    async with Engine(world.settings.model_copy(update={"vm_execution": vm_execution})) as engine:
        session = await engine.create_sandbox("default", limits=limits)
        code = 'fn main() { println!("{}", 6 * 7); }'
        assert (await run(engine, session, code, "rust", seconds=900)).stdout == "42\n"
        assert (await run(engine, session, code, "rust", seconds=60)).stdout == "42\n", "it was kept"


# --- what it gives back -----------------------------------------------------------------------------------------------

_FREES_80_MB = """
import hashlib
kept = bytes(range(256)) * (8 << 12)
freed = b"x" * (80 << 20)
del freed
"""
_HASHES = "hashlib.sha256(kept).hexdigest()"
_STILL_THERE = f"[x, {_HASHES}]"
_WRITES_40_MB = "anew = bytes(range(255, -1, -1)) * (40 << 12)"
_ANEW = "anew == bytes(range(255, -1, -1)) * (40 << 12)"


@pytest.mark.timeout(600)
async def test_what_a_guest_freed_goes_back_to_the_host_and_what_it_has_stays(world: World, engine: Engine) -> None:
    if b"virtio_balloon" not in world.options.kernel.read_bytes():
        pytest.skip("this kernel has no driver for the balloon; that of `emberbox image build-kernel` has")
    if emulated() and not ALL_ON_FIRECRACKER:
        pytest.skip("minutes where KVM is emulated: EMBERBOX_TEST_FIRECRACKER=1 runs it")
    kept = repr(hashlib.sha256(bytes(range(256)) * (8 << 12)).hexdigest())
    session = await start(engine)
    machine = session.machine
    assert isinstance(machine, FirecrackerMachine)
    machine._balloon = BalloonReclaimer(machine.api, machine.place.vsock, seconds=120, patience=30)
    await run(engine, session, f"x = 1\n{_FREES_80_MB}")
    held = machine._held_mb() or 0
    before, base = await engine.checkpoints.snapshot(session), machine._base
    started = time.monotonic()
    given = await machine.give_back()
    left = machine._held_mb() or 0
    print(f"private memory {held} MiB, {given} came back in {time.monotonic() - started:.1f} s, {left} are left")
    assert given >= 64
    assert held - left >= 64
    assert (await run(engine, session, _STILL_THERE)).text == f"[1, {kept}]"

    machine._base = base  # as where less comes back: what changed since `before`, and not what was only released
    changes = await engine.checkpoints.snapshot(session)
    machine._base = None
    after = await engine.checkpoints.snapshot(session)
    print("snapshots:", [point.size_bytes >> 20 for point in (before, changes, after)], "MiB")
    assert before.size_bytes - after.size_bytes >= 48 << 20
    # what the balloon let go of is memory like any other: the next snapshot has what is written there
    await run(engine, session, f"x = 2; {_WRITES_40_MB}")
    again = await engine.checkpoints.snapshot(session)
    await run(engine, session, "x = 3; del anew, kept")
    await engine.checkpoints.rollback(session, again.snapshot_id)
    assert (await run(engine, session, f"[x, {_HASHES}, {_ANEW}]")).text == f"[2, {kept}, True]"
    for point in (before, changes, after):
        await engine.checkpoints.rollback(session, point.snapshot_id)
        assert (await run(engine, session, _STILL_THERE)).text == f"[1, {kept}]"
    (copy,) = await engine.checkpoints.fork(session, 1)
    assert (await run(engine, copy, f"{_WRITES_40_MB}; [x, {_HASHES}, {_ANEW}]")).text == f"[1, {kept}, True]"


# --- how it is confined -----------------------------------------------------------------------------------------------


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
    process = Path(f"/proc/{machine._process.pid}")
    for kind in ("net", "ipc", "uts", "pid", "mnt"):
        assert (process / "ns" / kind).readlink() != Path(f"/proc/self/ns/{kind}").readlink(), kind
    devices = [line.split(":")[0].strip() for line in (process / "net/dev").read_text().splitlines()[2:]]
    assert devices == ["lo"]


async def test_without_a_jail_the_host_is_told(world: World, clean: None) -> None:
    factory = world.factory(jail=False)
    assert any("no jail" in text for text in factory.capabilities().limitations)
    try:
        await (await woken(factory, world.snapshot)).channel.call("ping")
    finally:
        await factory.close()


def _as_user(world: World, folder: Path, *, kvm: bool) -> dict[str, Any]:
    """What `microvm_user.py` finds as an ordinary user."""
    uid, home = 23456, folder / "home"
    image = home / "cache/images" / world.image.directory.resolve().name
    image.mkdir(parents=True)
    for path in world.image.directory.iterdir():
        if path.is_file() and not path.name.endswith((".log", ".lock")):
            shutil.copyfile(path, image / path.name)
    (image / "rootfs").mkdir()
    shutil.copytree(world.snapshot.directory, home / "snapshot")
    shutil.copyfile(world.options.kernel, home / "kernel")
    for path in [home, *home.rglob("*")]:
        os.chown(path, uid, uid)
    folder.chmod(0o711)
    facts = {
        "folder": str(folder), "uid": uid, "kvm": kvm, "programs": str(world.options.firecracker.parent),
        "kernel": str(home / "kernel"), "limits": LIMITS.model_dump(), "last_request": world.snapshot.last_request,
        "site": sysconfig.get_path("purelib"), "src": str(Path(emberbox.__file__).parents[1]),
    }  # fmt: skip
    program = shutil.copyfile(microvm_user.__file__, folder / "microvm_user.py")
    namespace = ["unshare", "--mount", "--propagation", "private", "--"]
    argv = [*namespace, sys.executable, str(program), "prepare", json.dumps(facts)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["uid"] == uid
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path, and where everybody comes to."""
    path = Path(tempfile.mkdtemp(prefix="ebf-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


needs_root = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="wants root, to become somebody else, and setpriv"
)


@needs_root
async def test_an_ordinary_user_has_machines_without_a_jail(world: World, folder: Path) -> None:
    found = await asyncio.to_thread(_as_user, world, folder, kvm=True)
    assert found["usable"]
    assert any(text.startswith("no jail") for text in found["limitations"])
    assert found["uids"] == [str(found["uid"])] * 4
    assert found["left"] == []


@needs_root
async def test_a_user_who_may_not_open_kvm_is_told_how(world: World, folder: Path) -> None:
    if Path("/dev/kvm").stat().st_mode & 0o006 == 0o006:
        pytest.skip("everybody may open this host's /dev/kvm")
    found = await asyncio.to_thread(_as_user, world, folder, kvm=False)
    assert (found["usable"], found["why"]) == (False, "/dev/kvm may not be opened")
    assert "group kvm" in found["remedy"]
