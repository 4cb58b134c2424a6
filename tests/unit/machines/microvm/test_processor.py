"""What the host's processor is, and whether its KVM is a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from emberbox.machines.microvm.processor import emulated, processor


def cpuinfo(folder: Path, flags: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(f"processor : 0\nmodel name : X\nflags\t\t: fpu {flags} sse\n\nprocessor : 1\nflags : fpu\n")
    return path


@pytest.mark.parametrize(("flags", "expected"), [("vmx", False), ("svm avx", False), ("avx hypervisor", True)])
def test_a_processor_without_virtualisation_has_an_emulated_kvm(tmp_path: Path, flags: str, expected: bool) -> None:
    assert emulated(cpuinfo(tmp_path, flags)) is expected


def test_a_host_that_does_not_say_is_taken_for_real(tmp_path: Path) -> None:
    assert not emulated(tmp_path / "none")


def test_the_processor_is_named(tmp_path: Path) -> None:
    text = "vendor_id : GenuineIntel\ncpu family : 6\nmodel : 85\nstepping : 7\n\nvendor_id : other\n"
    (tmp_path / "cpuinfo").write_text(text)
    assert processor(tmp_path / "cpuinfo") == "GenuineIntel-6-85-7"
    assert processor(tmp_path / "none")
