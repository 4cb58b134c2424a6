"""What Firecracker is told about how fast a disk may be read."""

from __future__ import annotations

import pytest

from emberbox import load_settings
from emberbox.errors import ConfigError
from emberbox.machines.firecracker.disk_limits import change_of_limiter, limiter, same_limits
from emberbox.machines.firecracker.snapshot_files import Fingerprint

FINGERPRINT = Fingerprint(firecracker="1.12.1", processor="p", disk="d")


def test_by_default_there_is_no_limit() -> None:
    assert limiter(load_settings()) is None
    assert same_limits(load_settings(), FINGERPRINT)


def test_limits_are_for_a_second() -> None:
    found = limiter(load_settings(disk_bandwidth_mb=20, disk_operations=500))
    assert found is not None
    assert found.model_dump() == {
        "bandwidth": {"size": 20 << 20, "refill_time": 1000},
        "ops": {"size": 500, "refill_time": 1000},
    }


def test_one_limit_alone_leaves_the_other_out() -> None:
    found = limiter(load_settings(disk_operations=500))
    assert found is not None
    assert found.bandwidth is None


def test_a_copy_is_told_what_is_not_limited_any_more() -> None:
    settings = load_settings(disk_bandwidth_mb=20)
    assert not same_limits(FINGERPRINT, settings)
    assert change_of_limiter(settings).model_dump()["ops"] == {"size": 0, "refill_time": 0}
    assert change_of_limiter(load_settings()).model_dump()["bandwidth"] == {"size": 0, "refill_time": 0}


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="disk_bandwidth_mb"):
        load_settings(disk_bandwidth_mb=0)
