"""What QEMU finds in a root directory of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from emberbox.host.spawner import Confinement
from emberbox.machines.qemu.options import QemuOptions
from emberbox.machines.qemu.permissions import files_of, limits_of, rights, root_problem


def _program() -> Path:
    found = shutil.which("ls")
    assert found is not None
    return Path(found)


def test_the_program_its_libraries_and_two_devices_and_nothing_private() -> None:
    files = files_of(_program())
    assert _program() in files
    assert {Path("/dev/null"), Path("/dev/urandom")} <= set(files)
    assert not {Path(name) for name in ("/", "/usr", "/etc", "/dev", "/home", "/root", "/tmp", "/var")} & set(files)


def test_links_on_the_way_to_the_program_are_there_as_well(tmp_path: Path) -> None:
    shutil.copyfile(_program().resolve(), tmp_path / "real")
    (tmp_path / "alternative").symlink_to(tmp_path / "real")
    (tmp_path / "qemu").symlink_to("alternative")
    files = files_of(tmp_path / "qemu")
    assert {tmp_path / name for name in ("qemu", "alternative", "real")} <= set(files)


def test_a_script_gets_no_root_directory_and_the_reason_says_so(tmp_path: Path) -> None:
    script = tmp_path / "qemu"
    script.write_text('#!/bin/sh\nexec qemu-system-x86_64 "$@"\n')
    script.chmod(0o755)
    options = QemuOptions(script, "tcg")
    assert "is a script" in root_problem(options)
    assert rights(options, tmp_path, 5).root is None


def test_without_a_uid_there_are_limits_only(tmp_path: Path) -> None:
    assert rights(QemuOptions(_program(), "tcg"), tmp_path, None) == Confinement(limits_of(confined=False))


@pytest.mark.skipif(os.getuid() != 0, reason="the group of /dev/kvm may be asked for by root only")
def test_the_device_of_kvm_is_there_where_it_is_used(tmp_path: Path) -> None:
    kvm = tmp_path / "kvm"
    kvm.touch()
    confined = rights(QemuOptions(_program(), "kvm", kvm=kvm), tmp_path, 5)
    assert confined.groups == [kvm.stat().st_gid]
    assert confined.root is None or kvm in confined.root.files
