"""QEMU machines, with the real QEMU and full emulation: what the contract tests do not say of them."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from backends import warmed
from emberbox import Engine
from emberbox.machines.qemu.machine import QemuMachine
from qemus import World, clean, engine, factory, pid_of, world
from small_machines import LIMITS, run, start

__all__ = ["clean", "engine", "factory", "world"]  # pytest finds fixtures by their names in the module
pytestmark = pytest.mark.asyncio(loop_scope="module")


# --- what a user gets -------------------------------------------------------------------------------------------------


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


async def test_much_output_comes_whole(engine: Engine) -> None:
    session = await start(engine)
    done = await run(engine, session, "for n in range(20_000): print(f'{n:06} {n * n}')")
    assert done.stdout == "".join(f"{n:06} {n * n}\n" for n in range(20_000))


async def test_snapshots_hold_what_changed_and_depend_on_no_other(engine: Engine) -> None:
    session = await start(engine)
    points = []
    for number in range(3):
        await run(engine, session, f"x = {number}; data{number} = bytes([{number} + 1]) * 3_000_000")
        points.append(await engine.checkpoints.snapshot(session))
        assert points[-1].size_bytes < 40 << 20
    await engine.checkpoints.delete(session, points[0].snapshot_id)
    code = "[x, [name in globals() for name in ('data0', 'data1', 'data2')], data0.count(1) + 2 * data1.count(2)]"
    for number in (1, 2, 1):
        await engine.checkpoints.rollback(session, points[number].snapshot_id)
        there = [True, True, number == 2]
        assert (await run(engine, session, code)).text == str([number, there, 9_000_000])


async def test_a_snapshot_of_a_copy_of_a_snapshot(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "x = ['first']")
    (copy,) = await engine.checkpoints.fork(session, 1)
    await run(engine, copy, "x.append('second')")
    await engine.kill_sandbox(session.id)
    point = await engine.checkpoints.snapshot(copy)
    await run(engine, copy, "x.append('third')")
    await engine.checkpoints.rollback(copy, point.snapshot_id)
    (last,) = await engine.checkpoints.fork(copy, 1)
    assert (await run(engine, last, "x")).text == "['first', 'second']"


async def test_the_clock_is_right_after_a_fork(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "import time")
    (copy,) = await engine.checkpoints.fork(session, 1)
    for sandbox in (session, copy):
        before = time.time()
        seen = float((await run(engine, sandbox, "time.time()")).text or 0)
        assert before - 5 < seen < time.time() + 5, "it is that of the snapshot"


async def test_the_pool_fills_and_leases(world: World, clean: None) -> None:
    settings = world.settings.model_copy(
        update={"vm_execution": world.settings.vm_execution.model_copy(update={"vm_pool_size": 1})}
    )
    async with Engine(settings) as engine:
        await engine.warm(warmed("minimal"), limits=LIMITS, count=1)
        started = time.monotonic()
        session = await start(engine)
        print(f"lease: {(time.monotonic() - started) * 1000:.0f} ms")
        assert (await run(engine, session, "x = 6; x * 7")).text == "42"
        point = await engine.checkpoints.snapshot(session)
        await run(engine, session, "x = 7")
        await engine.checkpoints.rollback(session, point.snapshot_id)  # fills a blank, where one is ready
        assert (await run(engine, session, "x")).text == "6"


async def test_a_sandbox_whose_machine_dies_goes_back_to_its_snapshot(engine: Engine) -> None:
    session = await start(engine)
    await run(engine, session, "x = 1")
    await engine.checkpoints.snapshot(session)
    await run(engine, session, "x = 2")
    machine = session.machine
    assert isinstance(machine, QemuMachine)
    os.kill(pid_of(machine), signal.SIGKILL)
    await asyncio.wait_for(machine.wait(), 10)
    await session.settled()
    assert (await run(engine, session, "x")).text == "1"
