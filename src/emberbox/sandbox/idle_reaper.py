"""Ends, or suspends, the sandboxes that nobody uses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from emberbox.errors import VmExecutionError
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.log import warn
from emberbox.sandbox.manager import SandboxManager


def idle(instances: Iterable[SandboxInstance], now: float) -> list[SandboxInstance]:
    """List those that nobody has used for their `idle_seconds` at a time of the loop's clock. What works is in use."""
    found = []
    for instance in instances:
        if instance.runner.busy:
            instance.used(now)
        elif instance.idle_seconds is not None and now - instance.last_used >= instance.idle_seconds:
            found.append(instance)
    return found


async def reap_idle(manager: SandboxManager, every: float) -> None:
    """Every so many seconds, end the sandboxes that are idle, and what has no machine and no time any more."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(every)
        try:
            await manager.forget_expired()
            for instance in idle(manager.instances(), loop.time()):
                if not idle([instance], loop.time()):
                    continue  # it was used while others ended
                # it has just been used or killed, or the disk refused
                with contextlib.suppress(VmExecutionError, OSError):
                    await manager.end(instance)
        except Exception as exc:  # noqa: BLE001 (whatever it is, the others are looked at again)
            warn("idle sandboxes not ended", exc)
