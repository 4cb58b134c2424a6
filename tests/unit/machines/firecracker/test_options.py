"""What the host is, and where the programs are looked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from emberbox import Settings
from emberbox.machines.firecracker import FirecrackerFactory, FirecrackerOptions
from emberbox.machines.firecracker import options as module
from emberbox.machines.firecracker.options import EMULATED, emulated, find_problem, version_of


def cpuinfo(folder: Path, flags: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(f"processor : 0\nmodel name : X\nflags\t\t: fpu {flags} sse\n\nprocessor : 1\nflags : fpu\n")
    return path


@pytest.fixture
def options(tmp_path: Path) -> FirecrackerOptions:
    for name in ("firecracker", "jailer"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name.title()} v1.12.1\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "vmlinux").touch()
    (tmp_path / "kvm").touch()
    names = [tmp_path / name for name in ("firecracker", "jailer", "vmlinux", "kvm")]
    return FirecrackerOptions(names[0], names[1], names[2], kvm=names[3])


@pytest.mark.parametrize(("flags", "expected"), [("vmx", False), ("svm avx", False), ("avx hypervisor", True)])
def test_a_processor_without_virtualisation_has_an_emulated_kvm(tmp_path: Path, flags: str, expected: bool) -> None:
    assert emulated(cpuinfo(tmp_path, flags)) is expected


def test_a_host_that_does_not_say_is_taken_for_real(tmp_path: Path) -> None:
    assert not emulated(tmp_path / "none")


def test_what_is_missing_is_named(options: FirecrackerOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "emulated", lambda: False)
    assert find_problem(options) is None
    for change, said in [
        ({"kvm": Path("/none/kvm")}, "/none/kvm is not there"),
        ({"firecracker": Path("/none/fc")}, "/none/fc is not there"),
        ({"kernel": Path("/none/vmlinux")}, "/none/vmlinux is not there"),
    ]:
        problem = find_problem(replace(options, **change))  # type: ignore[arg-type]
        assert problem is not None
        assert problem[0] == said
    options.firecracker.chmod(0o644)
    problem = find_problem(options)
    assert problem is not None
    assert problem[0].endswith("is not executable")


def test_auto_never_takes_an_emulated_kvm(options: FirecrackerOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "emulated", lambda: True)
    problem = find_problem(options)
    assert problem is not None
    assert problem[0] == EMULATED
    assert find_problem(replace(options, accept_emulated=True)) is None


def test_versions(options: FirecrackerOptions, tmp_path: Path) -> None:
    assert version_of(options.firecracker) == "1.12.1"
    (tmp_path / "silent").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "silent").chmod(0o755)
    assert version_of(tmp_path / "silent") is None
    assert version_of(tmp_path / "none") is None


def test_a_host_without_firecracker_says_what_to_do(settings: Settings, tmp_path: Path) -> None:
    options = FirecrackerOptions.of(settings.model_copy(update={"cache_dir": tmp_path}))
    found = FirecrackerFactory(settings, replace(options, kvm=Path("/none/kvm"))).capabilities()
    assert (found.backend, found.usable) == ("firecracker", False)
    assert found.remedy
    assert not options.accept_emulated
