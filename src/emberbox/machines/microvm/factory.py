"""What the factories of microVMs share: root disks, copies in blanks, and what a failed start is told as."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from emberbox.config import Settings
from emberbox.errors import ExecutionTimeout, ImageError, VmConnectionError, VmNotAvailable
from emberbox.host.rundir import RunDir
from emberbox.images.disk import RootDisk, ensure_disk
from emberbox.images.store import Image
from emberbox.machines.contract import Machine, Snapshot
from emberbox.machines.digests import Verifier
from emberbox.machines.microvm.machine import MicroVm
from emberbox.machines.process_factory import ProcessFactory, remedy

_M = TypeVar("_M", bound=MicroVm[Any])
DOCTOR = "Run `emberbox doctor`; it starts a machine and explains what the host lacks."


class MicroVmFactory(ProcessFactory[_M]):
    """Makes microVMs of one back end.

    Args:
        settings: in force.
        base: where run directories are.
    """

    machine_type: type[_M]
    user_namespace = False

    def __init__(self, settings: Settings, base: Path) -> None:
        super().__init__(settings, base)
        self._making_disk = asyncio.Lock()
        self._verifier = Verifier(linked=True)

    async def _disk(self, image: Image) -> RootDisk:
        async with self._making_disk:
            try:
                return await asyncio.to_thread(ensure_disk, image)
            except ImageError as exc:
                raise VmNotAvailable(exc.message, remediation=exc.remediation) from exc

    # --- copies ---------------------------------------------------------------------------------------------------

    async def _used(self, blank: Machine | None, snapshot: Snapshot) -> _M | None:
        """A blank that has become a copy; None: there is none, or it was of no use, and is gone."""
        if not isinstance(blank, self.machine_type):
            return None
        try:
            if blank.recipe == (snapshot.image.directory, snapshot.limits):
                async with asyncio.timeout(self._settings.boot_timeout_seconds):
                    await self._become(blank, snapshot)
                return blank
        except BaseException as exc:
            await asyncio.shield(asyncio.ensure_future(blank.kill()))
            if isinstance(exc, VmNotAvailable | VmConnectionError | OSError):  # a time-out is an OSError as well
                return None
            raise
        await blank.kill()
        return None

    async def _become(self, blank: _M, snapshot: Snapshot) -> None:
        """Check the snapshot, and fill a blank with it. Raises VmNotAvailable, VmConnectionError, OSError."""
        raise NotImplementedError

    # --- a start and its failure ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _starting_of(self, machine: _M, run_dir: RunDir, seconds: float) -> AsyncIterator[None]:
        """The start of a machine, in so many seconds; where it fails, nothing is left.

        Raises:
            ExecutionTimeout, VmNotAvailable: it did; the message has the last words of guest and program.
        """
        try:
            async with asyncio.timeout(seconds):
                yield
        except BaseException as exc:
            # the clean-up runs to its end even if the caller is cancelled once more
            await asyncio.shield(asyncio.ensure_future(machine.kill()))
            explained = self._explained(exc, machine, run_dir)
            if explained is exc:
                raise
            raise explained from exc

    def _explained(self, exc: BaseException, machine: _M, run_dir: RunDir) -> BaseException:
        """What a failed start is told as."""
        said = machine.serial.text() if machine.serial is not None else ""
        words = f" Its last words: {said}" if said else " Its console stayed silent."
        if isinstance(exc, TimeoutError):
            message = f"Machine {machine.id} did not start in time.{words}"
            again = "Try again, or raise `boot_timeout_seconds`: a loaded host may need longer."
            return ExecutionTimeout(message, remediation=again + self._if_always(machine), retryable=True)
        if isinstance(exc, VmConnectionError):
            more = "" if said and said[-200:] in exc.message else words
            message = f"Machine {machine.id} died while it started: {exc.message}{more}"
            return VmNotAvailable(message, remediation=self._if_dead(machine), retryable=True)
        if isinstance(exc, OSError):
            return VmNotAvailable(
                f"Cannot prepare machine {machine.id} in {run_dir.path}: {exc.strerror or exc}.",
                remediation=remedy(exc),
                retryable=True,
            )
        return exc

    def _if_always(self, machine: _M) -> str:
        """What to do where starts of this kind always take too long."""
        del machine
        return ""

    def _if_dead(self, machine: _M) -> str:
        """What to do where a machine died while it started."""
        del machine
        return DOCTOR
