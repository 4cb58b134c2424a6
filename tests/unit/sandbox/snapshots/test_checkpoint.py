"""When a snapshot is refused because it would take all memory of a machine."""

from __future__ import annotations

import pytest

from emberbox.errors import SnapshotFailed
from emberbox.models import MachineLimits
from emberbox.sandbox.snapshots.checkpoint import _check_memory

LIMITS = MachineLimits(memory_mb=512)
FULL = 600 << 20


@pytest.mark.parametrize("files", [None, "many"])
def test_where_nobody_counted_files_nothing_is_refused(files: object) -> None:
    """The cgroup of a microVM holds more than its guest's memory."""
    _check_memory(files, FULL, LIMITS, "sb-1")


def test_files_count_beside_what_is_used() -> None:
    _check_memory(20_000, 200 << 20, LIMITS, "sb-1")
    with pytest.raises(SnapshotFailed, match=r"60,000 files .* 512 MiB"):
        _check_memory(60_000, 100 << 20, LIMITS, "sb-1")
