"""How fast a machine may read its root disk: Firecracker's rate limiter, as the settings want it.

The limiter is part of a snapshot's state. `machine.json` records with which one it was taken, and a copy that is to
have another one is told so before it runs.
"""

from __future__ import annotations

from typing import Protocol

from emberbox.machines.firecracker.api import RateLimiter, TokenBucket

DRIVE = "root"
DRIVE_PATH = f"/drives/{DRIVE}"
_SECOND_MS = 1000
_UNLIMITED = TokenBucket(size=0, refill_time=0)


class DiskLimits(Protocol):
    """Settings, or what a snapshot was taken with; None: no limit."""

    @property
    def disk_bandwidth_mb(self) -> int | None: ...
    @property
    def disk_operations(self) -> int | None: ...


def same_limits(one: DiskLimits, other: DiskLimits) -> bool:
    """Whether a disk under the one is under the other."""
    return (one.disk_bandwidth_mb, one.disk_operations) == (other.disk_bandwidth_mb, other.disk_operations)


def limiter(limits: DiskLimits) -> RateLimiter | None:
    """For a boot; None: no limit at all."""
    if limits.disk_bandwidth_mb is None and limits.disk_operations is None:
        return None
    return RateLimiter(bandwidth=_bucket(limits.disk_bandwidth_mb, 1 << 20), ops=_bucket(limits.disk_operations, 1))


def change_of_limiter(limits: DiskLimits) -> RateLimiter:
    """In place of whatever limiter there is: what is not limited is said as well."""
    found = limiter(limits) or RateLimiter()
    return RateLimiter(bandwidth=found.bandwidth or _UNLIMITED, ops=found.ops or _UNLIMITED)


def _bucket(a_second: int | None, unit: int) -> TokenBucket | None:
    return None if a_second is None else TokenBucket(size=a_second * unit, refill_time=_SECOND_MS)
