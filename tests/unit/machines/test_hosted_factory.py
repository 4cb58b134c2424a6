"""What the factories of all back ends have in common."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emberbox import Settings
from emberbox.errors import VmNotAvailable
from emberbox.machines.hosted_factory import HostedFactory

FIRST = 3_900_000


@pytest.fixture
def factory(settings: Settings, tmp_path: Path) -> HostedFactory[Any]:
    return HostedFactory(settings, tmp_path)


def test_machines_do_not_share_a_uid(factory: HostedFactory[Any]) -> None:
    for number in range(20):
        uid = factory._free_uid(FIRST, 20)
        assert uid not in {machine.uid for machine in factory._machines.values()}
        factory._machines[str(number)] = SimpleNamespace(uid=uid)
    with pytest.raises(VmNotAvailable, match="No uid between"):
        factory._free_uid(FIRST, 20)


def test_the_uid_of_a_process_of_this_host_is_not_taken(factory: HostedFactory[Any]) -> None:
    with pytest.raises(VmNotAvailable):
        factory._free_uid(os.getuid(), 1)
