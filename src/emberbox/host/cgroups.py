"""One control group per machine, on cgroup v1, v2, or none at all.

A machine's processes join before their exec (the spawner writes `0` into the files of `MachineGroup.join`). Where no
group can be made, the caller watches the memory of the processes itself and says so in `emberbox doctor`.

Formats: cgroups(7), Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst of the Linux kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emberbox.models import MachineLimits

GROUP = "emberbox"
_V2_CONTROLLERS = "+memory +cpu +pids"
_PERIOD_US = 100_000
_PROCESSORS = os.cpu_count() or 1
_V1_SHARES = max(2, 512 * _PROCESSORS)
_V2_WEIGHT = min(10_000, 50 * _PROCESSORS)
"""Of all machines together, where 1024 and 100 are everybody else's. The kernel divides the weight of a group among the
processors on which it runs: on each, machines weigh half as much as one other program, and the engine gets its turn
while they spin. A weight that does not grow with the processors would starve them beside anything else that works.
Among each other they are equal."""
_ATTEMPTS = 10
_HOST_PROCESSES_PER_MACHINE = 4096
"""gVisor's own threads count as well; the limit on user code is set in the guest, this one only stops a runaway."""


@dataclass(frozen=True, slots=True)
class CgroupRoot:
    """Where groups of machines are made: per controller a directory (v2: the same for all)."""

    version: Literal["v1", "v2"]
    directories: Mapping[str, Path]

    def save(self, path: Path) -> None:
        """Write down where the groups are: whoever clears up after us may belong to another cgroup, and would look
        elsewhere."""
        directories = {controller: str(base) for controller, base in self.directories.items()}
        path.write_text(json.dumps({"version": self.version, "directories": directories}), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> CgroupRoot | None:
        """What `save` wrote; None where there is nothing to read."""
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            return cls(saved["version"], {name: Path(base) for name, base in saved["directories"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @property
    def bases(self) -> list[Path]:
        """The directories in which the groups are, each once."""
        return sorted(set(self.directories.values()))

    def group(self, name: str) -> MachineGroup:
        """The group of that name, whether it exists or not."""
        return MachineGroup(self.version, {controller: base / name for controller, base in self.directories.items()})

    def names(self, prefix: str) -> set[str]:
        """Names of existing groups that begin with `prefix`."""
        return {path.name for base in self.directories.values() if base.is_dir() for path in base.glob(f"{prefix}*/")}

    def remove_if_empty(self) -> None:
        """Remove the directory that holds all groups, if nobody uses it."""
        for base in self.bases:
            with contextlib.suppress(OSError):
                base.rmdir()

    def create(self, name: str, limits: MachineLimits) -> MachineGroup:
        """Make the group of a machine and set its limits.

        Raises:
            OSError: the kernel refused; nothing is left behind.
        """
        group = self.group(name)
        try:
            for path in group.directories:
                self._make(path)
            group.set_limits(limits)
        except OSError:
            group.remove(deadline=1.0)
            raise
        return group

    def _make(self, path: Path) -> None:
        for attempt in range(_ATTEMPTS):
            path.parent.mkdir(exist_ok=True)
            try:
                if self.version == "v2":
                    (path.parent / "cgroup.subtree_control").write_text(_V2_CONTROLLERS)
                self._weigh(path.parent)
                path.mkdir()
            except FileNotFoundError:
                # another process removed the empty parent between our two steps
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def _weigh(self, parent: Path) -> None:
        """Let the host's other programs go before all machines together, where the kernel and our rights allow it."""
        name, weight = ("cpu.shares", _V1_SHARES) if self.version == "v1" else ("cpu.weight", _V2_WEIGHT)
        with contextlib.suppress(OSError):
            if parent == self.directories.get("cpu") and (parent / name).exists():
                (parent / name).write_text(str(weight))


@dataclass(frozen=True, slots=True)
class MachineGroup:
    """The group of one machine."""

    version: Literal["v1", "v2"]
    paths: Mapping[str, Path]

    @property
    def join(self) -> list[Path]:
        """Files into which a process writes `0` to become a member."""
        return sorted({path / "cgroup.procs" for path in self.paths.values()})

    @property
    def directories(self) -> list[Path]:
        return sorted(set(self.paths.values()))

    def set_limits(self, limits: MachineLimits) -> None:
        memory = limits.memory_mb << 20
        quota = int(limits.vcpus * _PERIOD_US)
        if self.version == "v1":
            _write(self.paths, "memory", "memory.limit_in_bytes", memory)
            _write(self.paths, "memory", "memory.memsw.limit_in_bytes", memory, optional=True)
            _write(self.paths, "cpu", "cpu.cfs_period_us", _PERIOD_US)
            _write(self.paths, "cpu", "cpu.cfs_quota_us", quota)
        else:
            _write(self.paths, "memory", "memory.max", memory)
            _write(self.paths, "memory", "memory.swap.max", 0, optional=True)
            _write(self.paths, "memory", "memory.oom.group", 1, optional=True)
            _write(self.paths, "cpu", "cpu.max", f"{quota} {_PERIOD_US}")
        _write(self.paths, "pids", "pids.max", _HOST_PROCESSES_PER_MACHINE)

    def memory_bytes(self) -> int | None:
        return self._number("memory", "memory.usage_in_bytes" if self.version == "v1" else "memory.current")

    def reclaimable_bytes(self) -> int:
        """Of the memory in use, the pages of files that the kernel drops when it needs room: a machine that writes its
        snapshot has many."""
        prefix = "total_" if self.version == "v1" else ""
        with contextlib.suppress(OSError, KeyError):
            text = (self.paths["memory"] / "memory.stat").read_text(encoding="ascii")
            found = re.findall(rf"(?m)^{prefix}(?:in)?active_file (\d+)$", text)
            return sum(map(int, found))
        return 0

    def memory_peak_bytes(self) -> int | None:
        return self._number("memory", "memory.max_usage_in_bytes" if self.version == "v1" else "memory.peak")

    def reset_memory_peak(self) -> None:
        """Start the peak anew. Only cgroup v1 can; on v2 the peak is that of the machine's whole life."""
        if self.version == "v1":
            _write(self.paths, "memory", "memory.max_usage_in_bytes", 0, optional=True)

    def cpu_seconds(self) -> float | None:
        if self.version == "v1":
            nanoseconds = self._number("cpuacct", "cpuacct.usage")
            return None if nanoseconds is None else nanoseconds / 1e9
        microseconds = self._field("cpu", "cpu.stat", "usage_usec")
        return None if microseconds is None else microseconds / 1e6

    def oom_kills(self) -> int:
        """How often the kernel killed a member for want of memory."""
        name = "memory.oom_control" if self.version == "v1" else "memory.events"
        return self._field("memory", name, "oom_kill") or 0

    def pids(self) -> list[int]:
        """Members of now."""
        found: set[int] = set()
        for path in self.join:
            with contextlib.suppress(OSError):
                found.update(int(p) for p in path.read_text().split())
        return sorted(found)

    def remove(self, *, deadline: float = 2.0) -> bool:
        """Remove the (empty) group; the kernel may need a moment after the last member was reaped."""
        end = time.monotonic() + deadline
        for path in self.directories:
            while True:
                try:
                    path.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > end:
                        return False
                    time.sleep(0.002)
                else:
                    break
        return True

    def _number(self, controller: str, name: str) -> int | None:
        try:
            return int(self._read(controller, name))
        except (OSError, KeyError, ValueError):
            return None

    def _read(self, controller: str, name: str) -> bytes:
        """A file of the kernel's, all of it; without the layers of `open`, because this is done for every execution."""
        fd = os.open(f"{self.paths[controller]}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 4096)
        finally:
            os.close(fd)

    def _field(self, controller: str, name: str, field: str) -> int | None:
        try:
            for line in self._read(controller, name).decode().splitlines():
                key, _, value = line.partition(" ")
                if key == field:
                    return int(value)
        except (OSError, KeyError, ValueError):
            return None
        return None


def _write(paths: Mapping[str, Path], controller: str, name: str, value: int | str, *, optional: bool = False) -> None:
    path = paths.get(controller)
    if path is None:
        return
    try:
        (path / name).write_text(str(value))
    except OSError:
        if not optional:
            raise


def find_cgroup_root(
    *, mounts: Path = Path("/proc/self/mounts"), membership: Path = Path("/proc/self/cgroup")
) -> CgroupRoot | None:
    """Where this process may make groups with a memory controller, or None. Leaves no directory behind when None.

    Args:
        mounts: the mount table (a parameter for tests).
        membership: the cgroups of this process (likewise).
    """
    v1, v2 = read_mounts(mounts)
    own = read_membership(membership)
    if "memory" in v1:
        found: dict[str, Path] = {}
        for controller in ("memory", "cpu", "cpuacct", "pids"):
            if controller in v1:
                candidates = [v1[controller] / own.get(controller, "/").lstrip("/"), v1[controller]]
                usable = next((c for c in candidates if c.is_dir() and os.access(c, os.W_OK)), None)
                if usable is not None:
                    found[controller] = usable / GROUP
        return CgroupRoot("v1", found) if "memory" in found else None
    if v2 is not None and _delegate_v2(v2):
        return CgroupRoot("v2", dict.fromkeys(("memory", "cpu", "pids"), v2 / GROUP))
    return None


def read_mounts(mounts: Path) -> tuple[dict[str, Path], Path | None]:
    """Mount points of a mount table: of each v1 controller, and of v2."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    with contextlib.suppress(OSError):
        for line in mounts.read_text().splitlines():
            fields = line.split()
            if len(fields) < 4:
                continue
            if fields[2] == "cgroup":
                for option in fields[3].split(","):
                    v1.setdefault(option, Path(fields[1]))
            elif fields[2] == "cgroup2":
                v2 = Path(fields[1])
    return v1, v2


def read_membership(membership: Path) -> dict[str, str]:
    """Path of the group per controller, from /proc/PID/cgroup; v2's controller is the empty string."""
    own: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                own[controller] = path
    return own


def _delegate_v2(mount: Path) -> bool:
    """Turn the controllers on from the mount down to our directory; False where we may not."""
    try:
        if "memory" not in (mount / "cgroup.controllers").read_text().split():
            return False
        (mount / "cgroup.subtree_control").write_text(_V2_CONTROLLERS)
        if not os.access(mount, os.W_OK):
            return False
    except OSError:
        return False
    return True
