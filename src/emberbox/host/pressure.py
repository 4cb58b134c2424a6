"""How much memory this host has left for us: that of the machine, or that of our own control group if it is less.

Formats: proc(5) (meminfo), Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the Linux kernel.
"""

from __future__ import annotations

import re
from pathlib import Path

from emberbox.host.cgroups import read_membership, read_mounts

_NAMES = {
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "v2": ("memory.max", "memory.current", "inactive_file"),
}
"""Limit, use, and what of the use the kernel gives back when it must (a line of memory.stat)."""


class MemoryReader:
    """Reads it again at each call; some files of /proc and /sys, well below a millisecond.

    Args:
        meminfo: the memory of the machine.
        mounts: where control groups are.
        membership: the control groups of this process.
    """

    def __init__(
        self,
        *,
        meminfo: Path = Path("/proc/meminfo"),
        mounts: Path = Path("/proc/self/mounts"),
        membership: Path = Path("/proc/self/cgroup"),
    ) -> None:
        self._meminfo = meminfo
        self._mounts = mounts
        self._membership = membership
        self._groups: list[tuple[Path, tuple[str, str, str]]] | None = None

    def available_bytes(self) -> int | None:
        """What could still be used; None where the host does not tell."""
        found = [left for left in (self._of_machine(), *map(self._of_group, self._own_groups())) if left is not None]
        return min(found, default=None)

    def _of_machine(self) -> int | None:
        try:
            match = re.search(r"(?m)^MemAvailable:\s+(\d+) kB$", self._meminfo.read_text())
        except OSError:
            return None
        return int(match[1]) << 10 if match else None

    def _own_groups(self) -> list[tuple[Path, tuple[str, str, str]]]:
        """Our group and those above it: a limit of each holds for us."""
        if self._groups is None:
            v1, v2 = read_mounts(self._mounts)
            own = read_membership(self._membership)
            if "memory" in v1:
                mount, group, names = v1["memory"], own.get("memory", "/"), _NAMES["v1"]
            elif v2 is not None:
                mount, group, names = v2, own.get("", "/"), _NAMES["v2"]
            else:
                self._groups = []
                return self._groups
            below = mount / group.lstrip("/")
            if not below.is_dir():
                below = mount  # in a container the path may be the host's
            folders = [folder for folder in (below, *below.parents) if folder.is_relative_to(mount)]
            self._groups = [(folder, names) for folder in folders]
        return self._groups

    @staticmethod
    def _of_group(group: tuple[Path, tuple[str, str, str]]) -> int | None:
        folder, (limit, usage, inactive) = group
        try:
            left = int((folder / limit).read_text()) - int((folder / usage).read_text())
            match = re.search(rf"(?m)^{inactive} (\d+)$", (folder / "memory.stat").read_text())
        except (OSError, ValueError):  # the root group has no limit, and "max" is no number
            return None
        return max(0, left + (int(match[1]) if match else 0))
