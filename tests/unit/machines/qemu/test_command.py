"""Command lines: a copy's devices are the original's, and nothing has a path of ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from emberbox.machines.qemu.command import Hardware, command, disk_limits, kernel_args, vcpus
from emberbox.models import MachineLimits

HARDWARE = Hardware(Path("/usr/bin/qemu"), "tcg", 256, 1, acpi=False, initrd=False)
LIMITS = MachineLimits(memory_mb=256, vcpus=2)


def test_a_copy_differs_only_in_how_it_begins() -> None:
    original, copy = (command("m", HARDWARE, "args", copy=copy) for copy in (False, True))
    assert copy[-2:] == ["-incoming", "defer"]
    assert [word.replace("share=off", "share=on") for word in copy[:-2]] == original


def test_no_path_but_that_of_the_program_and_no_network() -> None:
    words = command("m", replace(HARDWARE, initrd=True), kernel_args(LIMITS, HARDWARE, None), copy=True)
    paths = [word for word in words[1:] if "/" in word and "/proc/self/fd/" not in word]
    assert paths == [words[words.index("-append") + 1]]
    assert {"-nodefaults", "-no-user-config"} <= set(words)
    assert "spawn=deny" in words[words.index("-sandbox") + 1]
    assert not any("net" in word for word in words)


def test_kernel_arguments() -> None:
    emulated = kernel_args(LIMITS, HARDWARE, 2_000_000)
    assert "tsc_early_khz=2000000 lpj=8000000" in emulated
    assert emulated.index("virtio_mmio.device=") < emulated.index(" -- ") < emulated.index("channel=ports")
    real = kernel_args(LIMITS, replace(HARDWARE, accel="kvm", acpi=True), 2_000_000)
    assert "tsc_early_khz" not in real
    assert "virtio_mmio" not in real


def test_processors() -> None:
    assert vcpus(LIMITS, "kvm", acpi=True) == 2
    assert vcpus(LIMITS, "kvm", acpi=False) == vcpus(LIMITS, "tcg", acpi=True) == 1


def test_limits_of_the_disk() -> None:
    assert disk_limits(None, None) == ""
    assert disk_limits(8, None) == f",throttling.bps-total={8 << 20}"
    words = command("m", HARDWARE, "args", copy=False, disk=disk_limits(1, 50))
    assert words[words.index("-drive") + 1].endswith(f"{1 << 20},throttling.iops-total=50")
