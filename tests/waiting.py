"""Waiting for what nothing tells of, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

PATIENCE = 60.0


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Return when the condition holds; fail when it does not in so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.01)


def wait_for_stop(process: psutil.Process) -> None:
    """Until it is stopped: a signal takes effect a moment after it was sent."""
    until(lambda: process.status() == psutil.STATUS_STOPPED, f"process {process.pid} to be stopped")
