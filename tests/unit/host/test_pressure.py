"""What memory the host has left: with files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from emberbox.host.pressure import MemoryReader

GIB = 1 << 30


class Host:
    """The files of a host with 8 GiB of memory left."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "meminfo").write_text("MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n")
        (root / "mounts").write_text("proc /proc proc rw 0 0\n")
        (root / "cgroup").write_text("0::/\n")

    def reader(self) -> MemoryReader:
        files = {"meminfo": self.root / "meminfo", "mounts": self.root / "mounts", "membership": self.root / "cgroup"}
        return MemoryReader(**files)

    def v2(self, path: str) -> Path:
        mount = self.root / "cg"
        (self.root / "mounts").write_text(f"cgroup2 {mount} cgroup2 rw 0 0\n")
        (self.root / "cgroup").write_text(f"0::{path}\n")
        (mount / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        return mount

    def v1(self, path: str) -> Path:
        mount = self.root / "cg"
        (self.root / "mounts").write_text(f"cgroup {mount} cgroup rw,memory 0 0\n")
        (self.root / "cgroup").write_text(f"4:memory:{path}\n0::/\n")
        (mount / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        return mount


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def limit_v2(group: Path, most: object, used: int, inactive: int = 0) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file 9\n")


def limit_v1(group: Path, most: int, used: int, inactive: int) -> None:
    (group / "memory.limit_in_bytes").write_text(f"{most}\n")
    (group / "memory.usage_in_bytes").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {inactive}\n")


def test_the_real_host_has_some_memory_left() -> None:
    left = MemoryReader().available_bytes()
    assert left is not None
    assert left > 1 << 20


def test_without_control_groups_it_is_the_machine_s(host: Host) -> None:
    assert host.reader().available_bytes() == 8 * GIB


def test_it_is_read_anew_each_time(host: Host) -> None:
    reader = host.reader()
    assert reader.available_bytes() == 8 * GIB
    (host.root / "meminfo").write_text("MemAvailable: 1024 kB\n")
    assert reader.available_bytes() == 1 << 20


def test_a_host_that_does_not_tell_has_no_figure(host: Host) -> None:
    (host.root / "meminfo").unlink()
    assert host.reader().available_bytes() is None


def test_v2_the_own_group_counts_without_what_can_be_given_back(host: Host) -> None:
    mount = host.v2("/app")
    limit_v2(mount / "app", 2 * GIB, 2 * GIB, inactive=GIB // 2)
    assert host.reader().available_bytes() == GIB // 2


def test_v2_a_group_above_counts_too(host: Host) -> None:
    mount = host.v2("/slice/app")
    limit_v2(mount / "slice", 3 * GIB, 2 * GIB)
    limit_v2(mount / "slice" / "app", "max", GIB)
    assert host.reader().available_bytes() == GIB


def test_v2_a_larger_limit_does_not_count(host: Host) -> None:
    limit_v2(host.v2("/app") / "app", 64 * GIB, GIB)
    assert host.reader().available_bytes() == 8 * GIB


def test_v1_the_own_group_counts(host: Host) -> None:
    mount = host.v1("/app")
    limit_v1(mount / "app", 4 * GIB, 3 * GIB, inactive=0)
    limit_v1(mount, 9223372036854771712, 12 * GIB, inactive=0)
    assert host.reader().available_bytes() == GIB


def test_a_group_that_is_over_its_limit_leaves_nothing(host: Host) -> None:
    limit_v2(host.v2("/app") / "app", GIB, 2 * GIB)
    assert host.reader().available_bytes() == 0


def test_in_a_container_the_path_of_the_host_is_not_there(host: Host) -> None:
    mount = host.v2("/")
    (host.root / "cgroup").write_text("0::/docker/abc\n")
    limit_v2(mount, GIB, GIB // 4)
    assert host.reader().available_bytes() == GIB * 3 // 4
