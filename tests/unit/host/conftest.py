"""A spawner of the test's own, with what it needs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from emberbox.host.rundir import RunDir, make_run_dir
from emberbox.host.spawner import Process, Spawner

PATIENCE = 30.0
ENV = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}


@dataclass
class Workshop:
    """Starts programs through a real spawner and reads what they say."""

    spawner: Spawner
    run_dir: RunDir
    fds: list[int] = field(default_factory=list)

    def pipe(self) -> tuple[int, int]:
        read, write = os.pipe()
        self.fds += [read, write]
        return read, write

    def close_fd(self, fd: int) -> None:
        self.fds.remove(fd)
        os.close(fd)

    async def start(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] = ENV,
        cwd: str = "/",
        join: Sequence[Path] = (),
    ) -> Process:
        """Start a program; what is not given is /dev/null."""
        with Path(os.devnull).open("r+b") as null:
            files = [null.fileno() if fd is None else fd for fd in (stdin, stdout, stderr)]
            return await self.spawner.spawn(
                argv, stdin=files[0], stdout=files[1], stderr=files[2], env=env, cwd=cwd, join=join
            )

    async def output(self, argv: Sequence[str], *, env: Mapping[str, str] = ENV, cwd: str = "/") -> tuple[int, str]:
        """Exit code and stdout of a program, when it and all of its children closed their stdout."""
        read, write = self.pipe()
        process = await self.start(argv, stdout=write, env=env, cwd=cwd)
        self.close_fd(write)
        text = await asyncio.to_thread(read_all, read)
        return await ended(process), text

    async def python(self, code: str) -> tuple[int, str]:
        return await self.output([sys.executable, "-I", "-S", "-c", code])


async def ended(process: Process) -> int:
    """The exit code, in good time."""
    async with asyncio.timeout(PATIENCE):
        return await asyncio.shield(process.ended)


def read_all(fd: int) -> str:
    data = b""
    while piece := os.read(fd, 65536):
        data += piece
    return data.decode()


def alive(pid: int) -> bool:
    """Running, and neither dead nor waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.fixture
async def workshop(nothing_left: None, run_dir: Path) -> AsyncIterator[Workshop]:
    place = make_run_dir(run_dir)
    spawner = await Spawner.start(place.path, place.lock_fd, user_namespace=False)
    made = Workshop(spawner, place)
    yield made
    for fd in made.fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    await spawner.close()
    place.release()
