"""Snapshots whose files somebody damages while the engine that took them goes on: no machine ever runs on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from emberbox import AsyncSandbox, Engine, Settings, load_settings
from emberbox.engine import ExecuteRequest
from emberbox.errors import RollbackFailed, VmNotAvailable
from emberbox.models import SnapshotInfo

MINIMAL = "minimal"


def turn(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def turn_and_set_back(path: Path) -> None:
    before = path.stat()
    turn(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def turn_through_memory(path: Path) -> None:
    import mmap

    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[len(memory) // 2] ^= 1


DAMAGE: dict[str, Callable[[Path], None]] = {
    "turned": turn,
    "turned, and the time set back": turn_and_set_back,
    "turned through mmap": turn_through_memory,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "missing": lambda path: path.unlink(),
}


@pytest.fixture
def settings(run_dir: Path, tmp_path: Path) -> Settings:
    return load_settings(snapshot_dir=tmp_path / "snapshots")


def file_of(settings: Settings, snapshot: SnapshotInfo, name: str) -> Path:
    assert settings.snapshot_dir is not None
    folders = (settings.state_dir, settings.snapshot_dir)
    (path,) = [path for folder in folders for path in folder.rglob(f"{snapshot.snapshot_id}/{name}")]
    return path


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("name", ["pages.img", "checkpoint.img"])
async def test_a_damaged_snapshot_of_the_running_engine_is_refused(
    nothing_left: None, settings: Settings, name: str, durable: bool
) -> None:
    async with Engine(settings, durable=durable) as engine:
        sandbox = await engine.create_sandbox(MINIMAL)
        await engine.execute(ExecuteRequest(sandbox, "python", "x = 1"))
        for damage in DAMAGE.values():
            good = await engine.checkpoints.snapshot(sandbox)
            bad = await engine.checkpoints.snapshot(sandbox)
            await engine.checkpoints.rollback(sandbox, bad.snapshot_id)  # used once: it is known to be good
            damage(file_of(settings, bad, name))
            machine = sandbox.machine.id
            with pytest.raises(RollbackFailed, match=name):
                await engine.checkpoints.rollback(sandbox, bad.snapshot_id)
            with pytest.raises(VmNotAvailable, match=name):
                await engine.checkpoints.branch(sandbox, bad.snapshot_id)
            with pytest.raises(VmNotAvailable, match=name):
                await engine.checkpoints.diff(sandbox, bad.snapshot_id)
            assert sandbox.machine.id == machine, "the sandbox is as it was"
            assert (await engine.execute(ExecuteRequest(sandbox, "python", "x"))).text == "1"
            await engine.checkpoints.rollback(sandbox, good.snapshot_id)
            assert (await engine.execute(ExecuteRequest(sandbox, "python", "x"))).text == "1"
            await engine.checkpoints.delete(sandbox, bad.snapshot_id)
        await engine.kill_sandbox(sandbox.id)


async def test_a_sandbox_whose_machine_dies_goes_back_to_the_snapshot_before_a_damaged_one(
    nothing_left: None, settings: Settings
) -> None:
    async with Engine(settings) as engine:
        sandbox = await engine.create_sandbox(MINIMAL)
        await engine.execute(ExecuteRequest(sandbox, "python", "x = 1"))
        good = await engine.checkpoints.snapshot(sandbox)
        await engine.execute(ExecuteRequest(sandbox, "python", "x = 2"))
        bad = await engine.checkpoints.snapshot(sandbox)
        turn_and_set_back(file_of(settings, bad, "pages.img"))
        await sandbox.machine.kill()
        await sandbox.settled()
        run = await engine.execute(ExecuteRequest(sandbox, "python", "x"))
        assert (run.text, run.restored_from) == ("1", good.snapshot_id)


async def test_a_kept_snapshot_and_its_origin_are_both_good(nothing_left: None, settings: Settings) -> None:
    """To keep one makes links to its files, and to delete that removes them again; neither is damage."""
    async with Engine(settings) as engine, await AsyncSandbox.create(MINIMAL, engine=engine) as sandbox:
        await sandbox.run_code("x = 1")
        kept = await sandbox.snapshot(keep=True)
        await sandbox.rollback(kept)
        async with await AsyncSandbox.create(snapshot=kept.snapshot_id, engine=engine) as other:
            assert (await other.run_code("x")).text == "1"
        await engine.checkpoints.rollback(await engine.get_sandbox(sandbox.sandbox_id), kept.snapshot_id)
        assert (await sandbox.run_code("x")).text == "1"
        await sandbox.delete_snapshot(kept)
