"""What is read from a runsc program."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emberbox import load_settings
from emberbox.machines.gvisor.dialect import dialect_of
from emberbox.machines.gvisor.runsc import find_runsc

OLD = ("containerManager.Checkpoint", "containerManager.Restore", "have_pages_file", "Network.CreateLinksAndRoutes")
NEW = (
    *OLD[:3],
    "containerManager.SetNetworkArgs",
    "containerManager.WaitRestore",
    "containerManager.FSSave",
    "gofer-network-namespace",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runsc"


def test_an_old_one(path: Path) -> None:
    path.write_text("\0".join(OLD))
    found = dialect_of(path)
    assert (found.network, found.background, found.flags) == ("Network.CreateLinksAndRoutes", False, ())
    assert "restore in the background" in found.lacks


def test_a_new_one(path: Path) -> None:
    path.write_text("\0".join(NEW))
    found = dialect_of(path)
    assert (found.network, found.background) == ("containerManager.SetNetworkArgs", True)
    assert found.flags == ("--gofer-network-namespace=new",)
    assert set(found.has) >= {"restore in the background", "file system checkpoints"}


def test_one_between_that_has_both_names_takes_the_newer(path: Path) -> None:
    path.write_text("\0".join((*NEW, *OLD)))
    assert dialect_of(path).network == "containerManager.SetNetworkArgs"


@pytest.mark.parametrize("text", ["", "something else", "\0".join(OLD[1:]), "\0".join(OLD[:3])])
def test_an_unknown_one_has_no_control_socket(path: Path, text: str) -> None:
    path.write_text(text)
    assert dialect_of(path).network is None


def test_a_program_that_is_not_there_has_none(path: Path) -> None:
    assert dialect_of(path).network is None


def test_another_program_in_its_place_is_read_anew(path: Path) -> None:
    path.write_text("\0".join(OLD))
    assert not dialect_of(path).background
    path.write_text("\0".join(NEW))
    os.utime(path, ns=(1, 1))
    assert dialect_of(path).background


def test_the_one_of_this_host_can_be_used() -> None:
    runsc, problems = find_runsc(load_settings())
    if runsc is None:
        pytest.skip(f"no runsc here: {problems}")
    assert dialect_of(runsc.program).network is not None
