"""Control groups: on a made-up directory tree, and on this host's own where it has any that we may use."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from emberbox.host.cgroups import GROUP, CgroupRoot, MachineGroup, find_cgroup_root
from emberbox.models import MachineLimits

LIMITS = MachineLimits(memory_mb=200, vcpus=1.5)


class Tree:
    """Mount tables, membership and directories of a host that does not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounts = folder / "mounts"
        self.membership = folder / "membership"
        self.mounts.write_text("proc /proc proc rw 0 0\nbroken line\n")
        self.membership.write_text("")

    def v1(self, *controllers: str, own: str = "/") -> Path:
        path = self.folder / ",".join(controllers)
        (path / own.lstrip("/")).mkdir(parents=True)
        with self.mounts.open("a") as file:
            file.write(f"cgroup {path} cgroup rw,nosuid,{','.join(controllers)} 0 0\n")
        with self.membership.open("a") as file:
            file.write(f"1:{','.join(controllers)}:{own}\n")
        return path

    def v2(self, controllers: str = "cpuset cpu io memory pids") -> Path:
        path = self.folder / "unified"
        path.mkdir()
        (path / "cgroup.controllers").write_text(f"{controllers}\n")
        (path / "cgroup.subtree_control").write_text("")
        with self.mounts.open("a") as file:
            file.write(f"cgroup2 {path} cgroup2 rw,nosuid 0 0\n")
        with self.membership.open("a") as file:
            file.write("0::/\n")
        return path

    def find(self) -> CgroupRoot | None:
        return find_cgroup_root(mounts=self.mounts, membership=self.membership)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def group_of(tree: Tree, version: str) -> MachineGroup:
    """A group on a made-up host, where every file is a plain one."""
    if version == "v1":
        for controller in ("memory", "cpu", "cpuacct", "pids"):
            tree.v1(controller)
    else:
        tree.v2()
    root = tree.find()
    assert root is not None
    assert root.version == version
    return root.create("owner-gv1", LIMITS)


# --- finding ----------------------------------------------------------------------------------------------------------


def test_a_host_without_cgroups(tree: Tree) -> None:
    assert tree.find() is None


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    assert find_cgroup_root(mounts=tmp_path / "none", membership=tmp_path / "none") is None


def test_v1_below_the_cgroup_of_this_process(tree: Tree) -> None:
    memory, cpu = tree.v1("memory", own="/user/me"), tree.v1("cpu", "cpuacct")
    root = tree.find()
    assert root is not None
    assert root.version == "v1"
    assert root.directories == {
        "memory": memory / "user/me" / GROUP,
        "cpu": cpu / GROUP,
        "cpuacct": cpu / GROUP,
    }
    assert root.bases == sorted([memory / "user/me" / GROUP, cpu / GROUP])


def test_v1_at_the_mount_where_the_own_cgroup_cannot_be_seen(tree: Tree) -> None:
    memory = tree.v1("memory")
    tree.membership.write_text("1:memory:/not/in/this/container\n")
    root = tree.find()
    assert root is not None
    assert root.directories == {"memory": memory / GROUP}


def test_v1_without_a_memory_controller_is_none(tree: Tree) -> None:
    tree.v1("cpu")
    tree.v1("name=systemd")
    assert tree.find() is None


def test_v1_that_is_not_there_any_more_is_none(tree: Tree) -> None:
    tree.v1("memory").rmdir()
    assert tree.find() is None


def test_v2(tree: Tree) -> None:
    mount = tree.v2()
    root = tree.find()
    assert root is not None
    assert root.version == "v2"
    assert set(root.directories) == {"memory", "cpu", "pids"}
    assert root.bases == [mount / GROUP]
    assert (mount / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"


@pytest.mark.parametrize("controllers", ["", "cpu pids"])
def test_v2_without_a_memory_controller_is_none(tree: Tree, controllers: str) -> None:
    tree.v2(controllers)
    assert tree.find() is None


def test_v2_that_may_not_be_delegated_is_none(tree: Tree) -> None:
    control = tree.v2() / "cgroup.subtree_control"
    control.unlink()
    control.mkdir()  # a write fails, for root as well
    assert tree.find() is None


def test_v1_is_taken_where_memory_is_there_though_v2_is_mounted_too(tree: Tree) -> None:
    tree.v2("")
    tree.v1("memory")
    root = tree.find()
    assert root is not None
    assert root.version == "v1"


def test_finding_makes_no_directory(tree: Tree) -> None:
    tree.v1("memory")
    before = sorted(tree.folder.rglob("*"))
    tree.find()
    assert sorted(tree.folder.rglob("*")) == before


def test_what_was_found_can_be_written_down_and_read_again(tree: Tree) -> None:
    tree.v1("memory")
    root = tree.find()
    assert root is not None
    root.save(tree.folder / "note")
    assert CgroupRoot.load(tree.folder / "note") == root


# --- limits -----------------------------------------------------------------------------------------------------------


def test_limits_on_v1(tree: Tree) -> None:
    group = group_of(tree, "v1")
    written = {path.name: path.read_text() for path in tree.folder.rglob("owner-gv1/*")}
    assert written == {
        "memory.limit_in_bytes": str(200 << 20),
        "memory.memsw.limit_in_bytes": str(200 << 20),
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "150000",
        "pids.max": "4096",
    }
    assert len(group.join) == len(group.directories) == 4
    assert all(path.name == "cgroup.procs" for path in group.join)


def test_limits_on_v2(tree: Tree) -> None:
    group = group_of(tree, "v2")
    (folder,) = group.directories
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "memory.max": str(200 << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "150000 100000",
        "pids.max": "4096",
    }
    assert (folder.parent / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    assert group.join == [folder / "cgroup.procs"]


@pytest.mark.parametrize(("version", "name", "weight"), [("v1", "cpu.shares", 512), ("v2", "cpu.weight", 50)])
def test_machines_together_weigh_less_than_the_rest_of_the_host(
    tree: Tree, version: str, name: str, weight: int
) -> None:
    memory, cpu = (tree.v1("memory"), tree.v1("cpu")) if version == "v1" else [tree.v2()] * 2
    (memory / GROUP).mkdir()
    (cpu / GROUP).mkdir(exist_ok=True)
    (cpu / GROUP / name).write_text("1024")
    root = tree.find()
    assert root is not None
    for machine in ("owner-gv1", "owner-gv2"):
        root.create(machine, LIMITS)
    assert int((cpu / GROUP / name).read_text()) == weight * (os.cpu_count() or 1), "half a program on each processor"
    assert list(tree.folder.rglob(f"owner-*/{name}")) == [], "they are equal among each other"


def test_a_group_that_cannot_be_made_leaves_nothing(tree: Tree) -> None:
    memory, cpu = tree.v1("memory"), tree.v1("cpu")
    root = tree.find()
    assert root is not None
    (memory / GROUP).mkdir()
    (memory / GROUP / "owner-gv1").touch()  # in the way
    with pytest.raises(FileExistsError):
        root.create("owner-gv1", LIMITS)
    assert not (cpu / GROUP / "owner-gv1").exists()


def test_groups_are_listed_by_the_beginning_of_their_names(tree: Tree) -> None:
    tree.v1("memory")
    tree.v1("cpu")
    root = tree.find()
    assert root is not None
    assert root.names("") == set()
    for name in ("a-1", "a-2", "ab-1"):
        root.create(name, LIMITS)
    assert root.names("a-") == {"a-1", "a-2"}
    assert root.names("") == {"a-1", "a-2", "ab-1"}


# --- figures ----------------------------------------------------------------------------------------------------------


def write(group: MachineGroup, name: str, text: str) -> None:
    for folder in group.directories:
        (folder / name).write_text(text)


def test_figures_of_v1(tree: Tree) -> None:
    group = group_of(tree, "v1")
    write(group, "memory.usage_in_bytes", "1000\n")
    write(group, "memory.max_usage_in_bytes", "3000\n")
    write(group, "cpuacct.usage", "2500000000\n")
    write(group, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    write(group, "cgroup.procs", "7\n5\n")
    figures = (group.memory_bytes(), group.memory_peak_bytes(), group.cpu_seconds(), group.oom_kills(), group.pids())
    assert figures == (1000, 3000, 2.5, 2, [5, 7])
    group.reset_memory_peak()
    assert group.memory_peak_bytes() == 0


def test_figures_of_v2(tree: Tree) -> None:
    group = group_of(tree, "v2")
    write(group, "memory.current", "1000\n")
    write(group, "memory.peak", "3000\n")
    write(group, "cpu.stat", "usage_usec 2500000\nuser_usec 1\n")
    write(group, "memory.events", "low 0\nhigh 0\nmax 5\noom 1\noom_kill 2\noom_group_kill 1\n")
    write(group, "cgroup.procs", "")
    figures = (group.memory_bytes(), group.memory_peak_bytes(), group.cpu_seconds(), group.oom_kills(), group.pids())
    assert figures == (1000, 3000, 2.5, 2, [])
    group.reset_memory_peak()
    assert group.memory_peak_bytes() == 3000


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_figures_that_the_kernel_does_not_have(tree: Tree, version: str) -> None:
    group = group_of(tree, version)
    figures = (group.memory_bytes(), group.memory_peak_bytes(), group.cpu_seconds(), group.oom_kills(), group.pids())
    assert figures == (None, None, None, 0, [])
    write(group, "memory.current", "max")
    assert group.memory_bytes() is None


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_group_on_one_controller_has_the_figures_of_that_one(tmp_path: Path, version: str) -> None:
    group = CgroupRoot("v1" if version == "v1" else "v2", {"pids": tmp_path}).group("x")
    assert (group.memory_bytes(), group.cpu_seconds(), group.oom_kills()) == (None, None, 0)


# --- removal ----------------------------------------------------------------------------------------------------------


def test_removing_twice_is_harmless(tmp_path: Path) -> None:
    root = CgroupRoot("v2", {"memory": tmp_path / GROUP})
    group = root.group("x")
    group.directories[0].mkdir(parents=True)
    assert group.remove()
    assert group.remove()
    root.remove_if_empty()
    root.remove_if_empty()
    assert not (tmp_path / GROUP).exists()


def test_a_group_that_stays_in_use_is_reported(tmp_path: Path) -> None:
    group = CgroupRoot("v2", {"memory": tmp_path}).group("x")
    (group.directories[0] / "busy").mkdir(parents=True)
    assert not group.remove(deadline=0)


def test_the_common_directory_stays_while_somebody_uses_it(tmp_path: Path) -> None:
    root = CgroupRoot("v2", {"memory": tmp_path / GROUP})
    root.group("x").directories[0].mkdir(parents=True)
    root.remove_if_empty()
    assert (tmp_path / GROUP / "x").is_dir()


# --- this host's own --------------------------------------------------------------------------------------------------

HOST = find_cgroup_root()
needs_cgroups = pytest.mark.skipif(HOST is None, reason="no writable memory cgroup here")


@pytest.fixture
def real(nothing_left: None) -> Iterator[MachineGroup]:
    assert HOST is not None
    group = HOST.create(f"test{secrets.token_hex(4)}-gv1", MachineLimits(memory_mb=128))
    yield group
    assert group.remove()
    HOST.remove_if_empty()


def run_in(group: MachineGroup, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as a member of a group; it has joined before the first statement of `code`."""
    join = f"for path in {[str(path) for path in group.join]!r}:\n    with open(path, 'w') as file: file.write('0')\n"
    argv = [sys.executable, "-I", "-S", "-c", join + code]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


@needs_cgroups
def test_a_real_process_is_a_member_and_is_measured(real: MachineGroup) -> None:
    code = "import os; x = b'x' * 50_000_000; print(os.getpid(), open('/proc/self/cgroup').read())"
    answer = run_in(real, code)
    assert answer.returncode == 0, answer.stderr
    assert real.directories[0].name in answer.stdout
    peak, seconds = real.memory_peak_bytes(), real.cpu_seconds()
    assert peak is None or peak > 50_000_000
    assert seconds is None or seconds > 0
    assert (real.pids(), real.oom_kills()) == ([], 0)


@needs_cgroups
def test_a_real_process_that_takes_too_much_is_killed_and_counted(real: MachineGroup) -> None:
    answer = run_in(real, "x = bytearray(300_000_000)\nfor i in range(0, len(x), 4096): x[i] = 1")
    assert answer.returncode == -9
    assert real.oom_kills() >= 1


@needs_cgroups
def test_a_real_group_with_a_member_is_listed_and_cannot_be_removed(real: MachineGroup) -> None:
    assert HOST is not None
    join = f"for path in {[str(path) for path in real.join]!r}:\n    with open(path, 'w') as file: file.write('0')\n"
    argv = [sys.executable, "-I", "-S", "-c", f"{join}print(flush=True); input()"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as member:
        assert member.stdout is not None
        member.stdout.readline()
        assert real.pids() == [member.pid]
        assert HOST.names(real.directories[0].name) == {real.directories[0].name}
        assert not real.remove(deadline=0)
        member.communicate(b"\n")
    assert member.returncode == 0


@pytest.mark.parametrize(("version", "prefix"), [("v1", "total_"), ("v2", "")])
def test_pages_of_files_can_be_had_back(tree: Tree, version: str, prefix: str) -> None:
    group = group_of(tree, version)
    assert group.reclaimable_bytes() == 0
    text = f"cache 9\ninactive_file 1\n{prefix}inactive_anon 2\n{prefix}inactive_file 4096\n{prefix}active_file 8192\n"
    (group.paths["memory"] / "memory.stat").write_text(text)
    assert group.reclaimable_bytes() == 12288 + (0 if prefix else 1)
