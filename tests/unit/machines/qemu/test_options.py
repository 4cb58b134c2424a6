"""Finding QEMU, and saying what is in its way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emberbox import load_settings
from emberbox.machines.qemu.options import QemuOptions, find_problem, tsc_khz, version_of


def program(path: Path, says: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_versions(tmp_path: Path) -> None:
    found = version_of(program(tmp_path / "qemu", "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"))
    assert found is not None
    assert (found.number, found.text) == ((7, 2), "7.2.22 (Debian 1:7.2+dfsg-7)")
    assert version_of(program(tmp_path / "other", "hello")) is None
    assert version_of(tmp_path / "none") is None


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="machines are x86-64")
def test_emulation_is_never_chosen_silently(tmp_path: Path) -> None:
    qemu = program(tmp_path / "qemu", "QEMU emulator version 7.2.0")
    problem = find_problem(QemuOptions(qemu, "auto", kvm=tmp_path / "kvm"))
    assert problem is not None
    assert "qemu_accel" in problem[1]
    assert find_problem(QemuOptions(qemu, "kvm", kvm=tmp_path / "kvm")) is not None
    assert find_problem(QemuOptions(qemu, "tcg", kvm=tmp_path / "kvm")) is None


def test_options_of_settings() -> None:
    options = QemuOptions.of(load_settings(qemu="/opt/qemu", qemu_accel="tcg"))
    assert (options.qemu, options.chosen) == (Path("/opt/qemu"), "tcg")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="an instruction of x86-64")
def test_the_speed_of_the_counter() -> None:
    khz = tsc_khz()
    assert khz is None or 100_000 < khz < 10_000_000
    assert tsc_khz() == khz  # measured once
