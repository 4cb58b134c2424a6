"""What a spawner keeps when its Emberbox is gone: processes and descriptors, for the next one or for a while."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import sys
from pathlib import Path

import pytest

from emberbox.errors import VmNotAvailable
from emberbox.host import spawner_main
from emberbox.host.rundir import dead_owners
from emberbox.host.spawner import Spawner

from .conftest import PATIENCE, alive

pytestmark = pytest.mark.usefixtures("nothing_left")

OWNER = """
import asyncio, os, signal, sys
from pathlib import Path
from emberbox.host.rundir import make_run_dir
from emberbox.host.spawner import Spawner

async def main():
    place = make_run_dir(Path(sys.argv[1]))
    spawner = await Spawner.start(place.path, place.lock_fd, user_namespace=False)
    null = os.open(os.devnull, os.O_RDWR)
    pipe_in, pipe_out, pids = os.pipe(), os.pipe(), []
    sleep = (["sleep", "1000"], (null, null))
    for argv, fds in ((["cat"], (pipe_in[0], pipe_out[1])), sleep, sleep):
        process = await spawner.spawn(argv, stdin=fds[0], stdout=fds[1], stderr=null, env=dict(os.environ))
        pids.append(process.pid)
    for name in sys.argv[3:]:
        await spawner.keep(name, pids[:2], [pipe_out[0], pipe_in[1], null], {"memory": 5}, float(sys.argv[2]))
    if "second" in sys.argv[3:]:
        await spawner.drop("second")
    os.write(pipe_in[1], b"left in the pipe")
    print(spawner.pid, *pids, place.path, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


class Left:
    """What a killed Emberbox has left."""

    def __init__(self, spawner: int, pids: list[int], path: Path) -> None:
        self.spawner, self.pids, self.path = spawner, pids, path
        self._pidfd = os.pidfd_open(spawner)

    async def ended(self) -> None:
        """Wait for the end of the spawner."""
        try:
            ready, _, _ = await asyncio.to_thread(select.select, [self._pidfd], [], [], PATIENCE)
            assert ready, "the spawner has not ended"
        finally:
            os.close(self._pidfd)
        assert not any(map(alive, self.pids))
        assert not self.path.exists()


async def killed(run_dir: Path, seconds: float, *names: str) -> Left:
    argv = [sys.executable, "-c", OWNER, str(run_dir), str(seconds), *names]
    owner = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    words, _ = await owner.communicate()
    *numbers, path = words.decode().split()
    spawner, *pids = map(int, numbers)
    return Left(spawner, pids, Path(path))


async def adopted(path: Path) -> tuple[Spawner, int, list[str]]:
    """The spawner notices a moment later that it is alone."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await Spawner.adopt(path)
            except VmNotAvailable:
                await asyncio.sleep(0.01)


async def gone(pid: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while alive(pid):  # noqa: ASYNC110 (somebody else's child)
            await asyncio.sleep(0.01)


async def test_the_next_one_finds_processes_and_descriptors_as_they_were(run_dir: Path) -> None:
    left = await killed(run_dir, 1000, "gv1", "second")
    assert list(dead_owners(run_dir)) == [], "the directory is still somebody's"
    spawner, lock_fd, names = await adopted(left.path)
    assert names == ["gv1"], "the second was dropped"
    pids, fds, info = await spawner.take("gv1")
    assert (pids, info) == (left.pids[:2], {"memory": 5})
    assert os.read(fds[0], 100) == b"left in the pipe"
    os.write(fds[1], b"and on it goes")
    assert os.read(fds[0], 100) == b"and on it goes"
    processes = [await spawner.own(pid) for pid in pids]
    await gone(left.pids[2])  # what was not to be kept
    await spawner.signal(processes[1], signal.SIGTERM)
    assert await asyncio.wait_for(asyncio.shield(processes[1].ended), PATIENCE) == -signal.SIGTERM
    with pytest.raises(VmNotAvailable, match="unknown operation"):
        await spawner.take("gv2")
    for fd in (*fds, lock_fd):
        os.close(fd)
    await spawner.close()
    await spawner.close()
    await left.ended()


async def test_when_nobody_comes_in_time_all_ends(run_dir: Path) -> None:
    left = await killed(run_dir, 0.2, "gv1")
    await left.ended()


async def test_without_anything_to_keep_all_ends_at_once(run_dir: Path) -> None:
    left = await killed(run_dir, 1000)
    await left.ended()


async def test_what_ends_meanwhile_is_not_kept_for_anybody(run_dir: Path) -> None:
    left = await killed(run_dir, 1000, "gv1")
    os.kill(left.pids[0], signal.SIGKILL)
    await left.ended()


async def test_one_that_meant_to_end_is_waited_for_by_nobody(run_dir: Path) -> None:
    left = await killed(run_dir, 1000, "gv1")
    spawner, lock_fd, _ = await adopted(left.path)
    os.close(lock_fd)
    await spawner.close()
    await left.ended()


async def test_one_that_lets_go_without_a_loop_leaves_nothing(run_dir: Path) -> None:
    left = await killed(run_dir, 1000, "gv1")
    spawner, lock_fd, _ = await adopted(left.path)
    asyncio.get_running_loop().remove_reader(spawner._socket.fileno())
    spawner.abandon()
    os.close(lock_fd)
    await left.ended()


async def test_one_of_another_version_leaves_it_to_its_like(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = await killed(run_dir, 1000, "gv1")
    spawner, lock_fd, _ = await adopted(left.path)
    spawner._disconnect()  # killed
    os.close(lock_fd)
    spawner._wait(0)
    monkeypatch.setattr(spawner_main, "VERSION", spawner_main.VERSION + 1)
    async with asyncio.timeout(PATIENCE):
        while True:
            with pytest.raises(VmNotAvailable) as error:
                await Spawner.adopt(left.path)
            if "another version" in error.value.message:
                break
    monkeypatch.undo()
    spawner, lock_fd, names = await adopted(left.path)
    assert names == ["gv1"]
    assert all(map(alive, left.pids[:2]))
    os.close(lock_fd)
    await spawner.close()
    await left.ended()


async def test_one_that_dies_with_something_unread_does_not_end_it(run_dir: Path) -> None:
    """The kernel tells of that with ECONNRESET instead of the end of the socket."""
    left = await killed(run_dir, 1000, "gv1")
    for _ in range(3):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.settimeout(PATIENCE)
            while control.connect_ex(str(left.path / spawner_main.ADOPT)):  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.01)
            control.recv(1000)
            control.send(b'{"id": 1, "op": "kept"}')
            await asyncio.to_thread(select.select, [control], [], [], PATIENCE)
    spawner, lock_fd, names = await adopted(left.path)
    assert names == ["gv1"]
    os.close(lock_fd)
    await spawner.close()
    await left.ended()


async def test_nothing_waits_where_nothing_is(run_dir: Path) -> None:
    with pytest.raises(VmNotAvailable, match="Nothing waits"):
        await Spawner.adopt(run_dir)
