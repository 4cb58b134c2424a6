"""Facts about the machine and its processes, from /proc (proc(5)). What cannot be read is left out or zero."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """What the figures of a run depend on."""
    load = os.getloadavg()[0]
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "load_before": round(load, 2),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        match = re.search(r"(?m)^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        if match:
            return match[1]
    return platform.processor() or "unknown"


def with_descendants(roots: Iterable[int]) -> set[int]:
    """These processes and all below them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on; the second, a name, may hold anything."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return []


def pss_mib(pids: Iterable[int]) -> float:
    """Proportional set size: a page that n processes share counts for one n-th in each."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
            match = re.search(r"(?m)^Pss:\s+(\d+) kB", text)
            total += int(match[1]) if match else 0
    return total / 1024


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes so far, to a hundredth of a second."""
    total = 0
    for pid in pids:
        if fields := _stat(pid):
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def resident_mib(pid: int) -> float:
    """Resident memory of one process."""
    with contextlib.suppress(OSError):
        match = re.search(r"(?m)^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
        return int(match[1]) / 1024 if match else 0.0
    return 0.0


def descriptors(pids: Iterable[int]) -> int:
    """Open descriptors of these processes."""
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            count += len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 (no Path per descriptor)
    return count


def disk_mib(folders: Iterable[Path]) -> float:
    """Space that files below these folders take."""
    total = 0
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(OSError):
                    total += (Path(parent) / name).lstat().st_blocks * 512
    return total / (1 << 20)
