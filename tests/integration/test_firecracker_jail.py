"""What a Firecracker of root is kept from, seen from the host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emberbox.machines.firecracker import FirecrackerFactory
from microvms import World, clean, factory, options, woken, world

__all__ = ["clean", "factory", "options", "world"]  # pytest finds fixtures by their names in the module
pytestmark = pytest.mark.asyncio(loop_scope="module")


def _namespace(of: Path, kind: str) -> str:
    return str((of / "ns" / kind).readlink())


async def test_it_has_neither_network_nor_files_nor_processes_of_the_host(
    world: World, factory: FirecrackerFactory
) -> None:
    if not world.options.jailed:
        pytest.skip("only root can confine it")
    one, two = await woken(factory, world.snapshot), await woken(factory, world.snapshot)
    assert one._process is not None
    assert two._process is not None
    first, second = Path(f"/proc/{one._process.pid}"), Path(f"/proc/{two._process.pid}")
    for kind in ("net", "ipc", "uts", "pid", "mnt"):
        assert len({_namespace(process, kind) for process in (first, second, Path("/proc/self"))}) == 3, kind
    assert (first / "net/dev").read_text().splitlines()[2:] == [
        line for line in (first / "net/dev").read_text().splitlines() if line.strip().startswith("lo:")
    ]
    assert not (first / "root/etc").exists()
    assert first.stat().st_uid not in (0, second.stat().st_uid, os.getuid())
    answer, _ = await one.channel.call("ping")
    assert answer["ev"] == "done"
