"""Memory that a guest has freed goes back to the host: the balloon takes it from the guest for a moment.

What a guest frees is its own for ever otherwise: the host cannot tell, and every later snapshot would hold it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from emberbox.errors import VmConnectionError
from emberbox.machines.firecracker import vsock
from emberbox.machines.firecracker.api import ApiError, Balloon, BalloonUpdate, FirecrackerApi, NoAnswer
from emberbox.machines.microvm.processor import emulated

PATH = "/balloon"
DEVICE = Balloon(stats_polling_interval_s=65_535)
"""Empty, and gives back what it has before the guest kills something for want of memory. Its size can be asked for only
where the guest tells its figures as well; that is as seldom as can be, because it wakes the guest."""
WORTH_MB = 64
"""Nothing is done for less."""
_RESERVE_MB = 32
"""Left to the guest, which runs meanwhile."""
_PAGES_PER_MB = 256
_POLL_SECONDS = 0.01
_ANSWER_SECONDS = 2.0
_TRIES = 3
"""Then a guest that gave nothing is not asked any more."""


class BalloonReclaimer:
    """Makes one machine's guest give back what it freed.

    Args:
        api: of its Firecracker.
        socket: of its vsock device.
        seconds: for all of it, and for Firecracker to answer; a guest that is slower gives back less.
        patience: how long a balloon that does not grow is waited for.
    """

    def __init__(
        self, api: FirecrackerApi, socket: Path, seconds: float | None = None, patience: float | None = None
    ) -> None:
        slow = 10.0 if emulated() else 1.0
        self._api = api
        self._socket = socket
        self._seconds = 2.0 * slow if seconds is None else seconds
        self._patience = 0.3 * slow if patience is None else patience
        self._before_mb = 0
        """What the machine had after the last time: only what came since can be worth it."""
        self._refused = False
        """Firecracker has no such device: the machine's snapshot is from before there was one."""
        self._in_vain = 0
        """How often in turn nothing came: the guest has no driver, or it was too busy."""
        self._inflated = False
        """The guest may still be without what the balloon has taken."""

    async def give_back(self, held_mb: Callable[[], int | None]) -> int:
        """Returns the MiB that the host got back; 0 where it was not worth it, or cannot be done.

        Args:
            held_mb: memory that is this machine's alone; None where the host does not tell.
        """
        if self._inflated and not await self._let_go():
            return 0
        held = held_mb()
        if self._refused or self._in_vain >= _TRIES or held is None or held - self._before_mb < WORTH_MB:
            return 0
        self._before_mb = held
        try:
            free = await vsock.free_memory_mb(self._socket, _ANSWER_SECONDS)
            amount = min(free - _RESERVE_MB, held)  # a guest may say anything
            if amount < WORTH_MB:
                return 0
            await self._squeeze(amount)
        except VmConnectionError:
            return 0
        except ApiError as exc:
            self._refused = not isinstance(exc, NoAnswer)
        left = held_mb()
        self._before_mb = held if left is None else left
        return max(0, held - self._before_mb)

    async def _squeeze(self, amount_mb: int) -> None:
        """Raises ApiError."""
        end = asyncio.get_running_loop().time() + self._seconds
        self._inflated = True
        try:
            await self._size(amount_mb)
            got = await self._watch(lambda pages: pages >= amount_mb * _PAGES_PER_MB, end)
            self._in_vain = 0 if got else self._in_vain + 1
        finally:
            # to its end even if the caller is cancelled once more: the guest needs its memory
            await asyncio.shield(self._let_go())
        # the next execution is to find its memory; what is late comes by itself, at the latest when it is wanted
        await self._watch(lambda pages: pages == 0, end)

    async def _let_go(self) -> bool:
        """Whether the balloon is, or will be, empty. No error, which would hide that the caller is cancelled: where
        Firecracker does not answer, the next time tries again."""
        try:
            await self._size(0)
        except NoAnswer:
            return False
        except ApiError:
            pass  # there is no balloon
        self._inflated = False
        return True

    async def _size(self, amount_mb: int) -> None:
        await self._api.patch(PATH, BalloonUpdate(amount_mib=amount_mb), seconds=self._seconds)

    async def _watch(self, enough: Callable[[int], bool], end: float) -> int:
        """Ask for the size of the balloon until it is as wanted, or stands still, or the time is up."""
        loop = asyncio.get_running_loop()
        pages, changed = 0, loop.time()
        while True:
            now = await self._api.balloon_pages(seconds=self._seconds)
            if now != pages:
                pages, changed = now, loop.time()
            if enough(pages) or loop.time() > min(end, changed + self._patience):
                return pages
            await asyncio.sleep(_POLL_SECONDS)


def private_mb(pid: int) -> int | None:
    """Memory of a process that it shares with nobody, in MiB: what a copy of a machine has written to, or all of a
    machine that was booted. None where the host does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) >> 10
    return None
