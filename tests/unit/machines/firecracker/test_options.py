"""What the host is, and where the programs are looked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from emberbox import Settings
from emberbox.images.kernel import INITRD, VMLINUX, KernelManifest, kernels_folder, making, save
from emberbox.machines.firecracker import FirecrackerFactory, FirecrackerOptions
from emberbox.machines.firecracker import options as module
from emberbox.machines.firecracker.options import EMULATED, find_problem, version_of


@pytest.fixture
def options(tmp_path: Path) -> FirecrackerOptions:
    for name in ("firecracker", "jailer"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name.title()} v1.12.1\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF\x02\x01" + bytes(12) + b"\x3e\0")
    (tmp_path / "kvm").touch()
    names = [tmp_path / name for name in ("firecracker", "jailer", "vmlinux", "kvm")]
    return FirecrackerOptions(names[0], names[1], names[2], kvm=names[3])


def test_what_is_missing_is_named(options: FirecrackerOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "emulated", lambda: False)
    assert find_problem(options) is None
    for change, said in [
        ({"kvm": Path("/none/kvm")}, "/none/kvm is not there"),
        ({"firecracker": Path("/none/fc")}, "/none/fc is not there"),
        ({"kernel": Path("/none/vmlinux")}, "there is no guest kernel /none/vmlinux"),
        ({"kernel": options.firecracker}, f"{options.firecracker} is no kernel (an ELF program for x86-64)"),
    ]:
        problem = find_problem(replace(options, **change))  # type: ignore[arg-type]
        assert problem is not None
        assert problem[0] == said
    options.firecracker.chmod(0o644)
    problem = find_problem(options)
    assert problem is not None
    assert problem[0].endswith("is not executable")


@pytest.mark.parametrize(("slow", "how"), [(False, "build-kernel ("), (True, "build-kernel --emulated (")])
def test_how_to_get_a_kernel_depends_on_the_host(
    options: FirecrackerOptions, monkeypatch: pytest.MonkeyPatch, slow: bool, how: str
) -> None:
    monkeypatch.setattr(module, "emulated", lambda: slow)
    problem = find_problem(replace(options, kernel=Path("/none"), accept_emulated=True))
    assert problem is not None
    assert how in problem[1]


def test_the_kernel_is_that_of_the_cache_or_of_the_settings(
    settings: Settings, options: FirecrackerOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "emulated", lambda: False)
    own = settings.model_copy(update={"cache_dir": tmp_path / "cache"})
    with making(own) as building:
        for name in (VMLINUX, INITRD):
            (building / name).write_bytes(options.kernel.read_bytes())
        manifest = KernelManifest(release="9.9.9", origin="debian", made_from={})
        kernel = save(building, kernels_folder(own) / "debian-1", manifest)
    found = FirecrackerOptions.of(own)
    assert (found.kernel, found.initrd) == (kernel.vmlinux, kernel.initrd)
    named = FirecrackerOptions.of(own.model_copy(update={"kernel": options.kernel}))
    assert (named.kernel, named.initrd) == (options.kernel, None)
    wrong = FirecrackerOptions.of(own.model_copy(update={"kernel": options.firecracker}))
    assert wrong.kernel == options.firecracker  # and `find_problem` says what is wrong with it


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
