"""A root directory and a pid namespace for one program, and descriptors that get lost on the way to the spawner."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from emberbox.errors import VmNotAvailable
from emberbox.host import confinement
from emberbox.host.spawner import Confinement, OwnRoot, Spawner
from emberbox.host.spawner_main import MAX_FDS
from emberbox.machines.qemu.permissions import files_of, refusal

from .conftest import ENV, PATIENCE, Workshop, ended, read_all

UID = 1_900_200_000


async def _confined(workshop: Workshop, root: OwnRoot | None, program: str, *args: str) -> tuple[int, str]:
    """Exit code and output of a program with namespaces and a uid of its own."""
    read, write = workshop.pipe()
    confine = Confinement({}, UID, namespaces=True, root=root)
    with Path(os.devnull).open("rb") as null:
        process = await workshop.spawner.spawn(
            [program, *args], stdin=null.fileno(), stdout=write, stderr=write, env=ENV, confine=confine
        )
    workshop.close_fd(write)
    text = await asyncio.to_thread(read_all, read)
    return await ended(process), text


def _need_roots() -> None:
    if os.getuid() != 0 or (why := refusal()):
        pytest.skip(f"only root gets a root directory of its own, where the kernel gives one ({why})")


def _program(name: str) -> Path:
    found = shutil.which(name)
    assert found is not None
    return Path(found)


async def test_a_program_finds_the_files_that_it_is_given_and_itself(workshop: Workshop, tmp_path: Path) -> None:
    _need_roots()
    (tmp_path / "place").mkdir()
    (tmp_path / "given").mkdir()
    (tmp_path / "given/file").write_text("x")
    (tmp_path / "withheld").write_text("x")
    programs = [path for name in ("ls", "sh") for path in files_of(_program(name))]
    root = OwnRoot(tmp_path / "place", [*dict.fromkeys(programs), tmp_path / "given"])
    script = f"ls {tmp_path} {tmp_path}/given /proc; echo me $$; echo x > /here || echo refused; ls /etc"
    code, text = await _confined(workshop, root, str(_program("sh")), "-c", script)
    words = text.split()
    assert "file" in words
    assert "withheld" not in words
    assert "passwd" not in words
    assert text.count("me 1\n") == 1
    assert "refused" in words
    assert not {word for word in words if word.isdigit()} - {"1", "2", "3", "4", "5"}, "no process but its own"
    assert code == 0
    assert list((tmp_path / "place").iterdir()) == [], "the host sees nothing of it"


async def test_after_a_confined_program_others_start_in_the_namespace_of_the_spawner(
    workshop: Workshop, tmp_path: Path
) -> None:
    _need_roots()
    root = OwnRoot(tmp_path, files_of(_program("true")))
    assert (await _confined(workshop, root, str(_program("true"))))[0] == 0
    code, text = await workshop.output(["readlink", "/proc/self/ns/pid"])
    assert (code, text.strip()) == (0, os.readlink("/proc/self/ns/pid"))  # noqa: PTH115


async def test_a_file_that_is_not_there_is_named_and_nothing_runs(workshop: Workshop, tmp_path: Path) -> None:
    _need_roots()
    root = OwnRoot(tmp_path, [*files_of(_program("true")), tmp_path / "missing"])
    with pytest.raises(VmNotAvailable, match=r"confine: .*missing"):
        await _confined(workshop, root, str(_program("true")))
    assert await workshop.output(["echo", "later"]) == (0, "later\n")


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv(1)")
def test_where_the_kernel_refuses_it_the_reason_is_one_line(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root has capabilities to be taken")
    argv = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    argv += [sys.executable, "-I", "-S", confinement.__file__, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "[Errno 1] unshare: Operation not permitted\n"


async def test_a_request_whose_descriptors_were_lost_is_refused(workshop: Workshop) -> None:
    """Those that came would be taken for others."""
    with Path(os.devnull).open("rb") as null, pytest.raises(VmNotAvailable, match="descriptors were lost"):
        await workshop.spawner._request({"op": "keep", "name": "x"}, [null.fileno()] * (MAX_FDS + 2))
    assert await workshop.output(["echo", "later"]) == (0, "later\n")
    assert len(list(Path(f"/proc/{workshop.spawner.pid}/fd").iterdir())) < 15, "none of them stays"


async def test_an_answer_whose_descriptors_were_lost_is_an_error(tmp_path: Path) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setblocking(False)
    loop = asyncio.get_running_loop()
    spawner = Spawner(tmp_path, 0, here, lambda _: None, loop, loop.create_future())
    loop.add_reader(here.fileno(), spawner._readable)
    before = len(list(Path("/proc/self/fd").iterdir()))
    try:
        asked = asyncio.create_task(spawner.take("machine"))
        number = json.loads(await asyncio.to_thread(there.recv, 1 << 16))["id"]
        answer = json.dumps({"id": number, "pids": [1], "info": {}}).encode()
        with Path(os.devnull).open("rb") as null:
            socket.send_fds(there, [answer], [null.fileno()] * (MAX_FDS + 2))
        with pytest.raises(VmNotAvailable, match="descriptors were lost"):
            await asyncio.wait_for(asked, PATIENCE)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        there.close()
        spawner._disconnect()
