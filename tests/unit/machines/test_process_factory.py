"""What the factories of all back ends have in common."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emberbox import Settings
from emberbox.errors import VmNotAvailable
from emberbox.machines.process_factory import ProcessFactory

FIRST = 3_900_000


@pytest.fixture
def factory(settings: Settings, run_dir: Path) -> Iterator[ProcessFactory[Any]]:
    factory: ProcessFactory[Any] = ProcessFactory(settings, run_dir)
    yield factory
    factory._uids.close()


def test_machines_do_not_share_a_uid(factory: ProcessFactory[Any]) -> None:
    for number in range(20):
        uid = factory._free_uid(FIRST, 20)
        assert uid not in {machine.uid for machine in factory._machines.values()}
        factory._machines[str(number)] = SimpleNamespace(uid=uid)
    with pytest.raises(VmNotAvailable, match="No uid between"):
        factory._free_uid(FIRST, 20)


def test_the_uid_of_a_process_of_this_host_is_not_taken(factory: ProcessFactory[Any]) -> None:
    with pytest.raises(VmNotAvailable):
        factory._free_uid(os.getuid(), 1)


def test_engines_do_not_draw_the_same_uid_and_give_it_back(
    factory: ProcessFactory[Any], settings: Settings, tmp_path: Path
) -> None:
    """Neither has a process of it yet: each sees the other's by its lock only."""
    other: ProcessFactory[Any] = ProcessFactory(settings, tmp_path)
    uid = factory._free_uid(FIRST, 1)
    factory._machines["mine"] = SimpleNamespace(uid=uid)
    with pytest.raises(VmNotAvailable, match="No uid between"):
        other._free_uid(FIRST, 1)
    factory._forget("mine")
    assert other._free_uid(FIRST, 1) == uid
    other._uids.close()


class _Machine:
    """Of which nothing is left to be killed, or which cannot be."""

    uid = None

    def __init__(self, error: Exception | None = None) -> None:
        self.killed = False
        self._error = error

    async def kill(self) -> None:
        self.killed = True
        if self._error is not None:
            raise self._error


async def test_one_machine_that_cannot_be_killed_does_not_keep_the_others_and_the_rest(
    factory: ProcessFactory[Any], nothing_left: None
) -> None:
    spawner, run_dir = await factory._place_ready()
    machines = [_Machine(), _Machine(RuntimeError("an accident")), _Machine()]
    factory._machines.update({str(number): machine for number, machine in enumerate(machines)})
    with pytest.raises(RuntimeError, match="an accident"):
        await factory.close()
    assert all(machine.killed for machine in machines)
    assert spawner.gone
    assert not run_dir.path.exists()
