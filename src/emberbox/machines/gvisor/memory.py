"""The memory of a sandbox where no cgroup counts it.

What the guest allocates is in a file in memory (memfd_create(2)) of the sandbox process, mapped by the processes of the
systrap platform. The resident size of the sandbox itself shows little of it; the blocks of the file show all.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

_MEMORY_FILE = "/memfd:runsc-memory"
"""The name that runsc gives it (runsc/boot/loader.go)."""


class MemoryGauge:
    """Reads the memory that these processes (sandbox and gofer) use."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._file: Path | None = None

    def used(self) -> int:
        """Bytes of now; 0 when the processes are gone."""
        return self._guest() + sum(_anonymous(pid) for pid in self._pids)

    def _guest(self) -> int:
        if self._file is None:
            self._file = next((path for pid in self._pids for path in _memory_files(pid)), None)
        if self._file is not None:
            with contextlib.suppress(OSError):
                return self._file.stat().st_blocks * 512
        return 0


def _memory_files(pid: int) -> list[Path]:
    found = []
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(path).startswith(_MEMORY_FILE):  # noqa: PTH115 (Path would read it as a path)
                    found.append(path)
    return found


def _anonymous(pid: int) -> int:
    with contextlib.suppress(OSError):
        match = re.search(r"(?m)^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
        return int(match[1]) << 10 if match else 0
    return 0
