"""What the factories of all back ends have in common: a run directory, a spawner, cgroups, and machines to be ended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from emberbox.config import Settings
from emberbox.errors import VmNotAvailable
from emberbox.host.cgroups import CgroupRoot, MachineGroup, find_cgroup_root
from emberbox.host.rundir import CGROUPS, RunDir, clear_owner, dead_owners, make_run_dir
from emberbox.host.spawner import Spawner
from emberbox.host.uids import UidLocks
from emberbox.machines.adoption import Adopter, adopt, write_key
from emberbox.machines.process_machine import ProcessMachine
from emberbox.models import MachineLimits

_M = TypeVar("_M", bound=ProcessMachine)
_SPACE = "Is there space on the file system of the run directory?"
_OPEN_FILES = "Raise the limit of open files: `ulimit -n`, or LimitNOFILE= of the service."

_MOST_TRIES = 1000


def _uids_in_use() -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                found.add(entry.stat().st_uid)
    return found


def remedy(error: OSError) -> str:
    """What helps where a machine cannot be prepared."""
    return _OPEN_FILES if error.errno in {errno.EMFILE, errno.ENFILE} else _SPACE


class ProcessFactory(Generic[_M]):
    """Everything that a factory starts hangs below its own spawner and run directory.

    Args:
        settings: in force.
        base: where run directories are.
    """

    backend: str
    key_prefix: ClassVar[bytes] = b""
    """Tells the machines of one back end from those of another."""
    user_namespace: ClassVar[bool | None] = None
    """As of `Spawner.start`."""

    def __init__(self, settings: Settings, base: Path) -> None:
        self._settings = settings
        self._base = base
        self._cgroups: CgroupRoot | None = find_cgroup_root()
        self._run_dir: RunDir | None = None
        self._spawner: Spawner | None = None
        self._machines: dict[str, _M] = {}
        self._uids = UidLocks()
        self._starting = asyncio.Lock()
        self._closed = False

    @property
    def _key(self) -> str:
        """Whose machines these are, for `adopt`."""
        return hashlib.sha256(self.key_prefix + os.fsencode(self._settings.state_dir)).hexdigest()

    @property
    def identity(self) -> str:
        """As of `MachineFactory`."""
        raise NotImplementedError

    @property
    def probed(self) -> str:
        """As of `MachineFactory`."""
        return self.identity

    def _check(self) -> None:
        """Raises VmNotAvailable: the back end's programs are not there."""

    def _furnish(self, run_dir: RunDir) -> None:
        """Put into a new run directory what all machines need; raises OSError, VmNotAvailable."""

    def _clear_dead(self, path: Path) -> None:
        """What is to be done before the directory of a dead owner is cleared."""

    @staticmethod
    def _folders(run_dir: Path) -> Iterable[Path]:
        """Folders of machines below a run directory."""
        return [path for path in run_dir.iterdir() if path.is_dir()]

    async def _place_ready(self) -> tuple[Spawner, RunDir]:
        async with self._starting:
            if self._closed:
                raise VmNotAvailable("The engine is closed.", remediation="Make a new one.")
            await asyncio.to_thread(self._check)
            if self._spawner is not None and self._spawner.gone:
                await self._spawner.close()
                self._spawner = None
            if self._run_dir is not None and not self._run_dir.path.is_dir():
                self._run_dir.release()
                self._run_dir = None
            if self._run_dir is None:
                self._run_dir = await asyncio.to_thread(self._make_run_dir)
            if self._spawner is None:
                cgroups = self._cgroups.bases if self._cgroups else []
                try:
                    self._spawner = await Spawner.start(
                        self._run_dir.path, self._run_dir.lock_fd, cgroups=cgroups, user_namespace=self.user_namespace
                    )
                except OSError as exc:
                    why = f"Cannot start the process that makes sandboxes: {exc.strerror}."
                    raise VmNotAvailable(why, remediation=remedy(exc), retryable=True) from exc
            return self._spawner, self._run_dir

    def _make_run_dir(self) -> RunDir:
        run_dir = make_run_dir(self._base)
        try:
            write_key(run_dir.path, self._key)
            if self._cgroups is not None:
                self._cgroups.save(run_dir.path / CGROUPS)
            self._furnish(run_dir)
        except BaseException as exc:
            run_dir.release()
            if isinstance(exc, OSError):
                raise VmNotAvailable(
                    f"Cannot write to the run directory {run_dir.path}: {exc.strerror}.", remediation=remedy(exc)
                ) from exc
            raise
        return run_dir

    def _make_group(self, run_dir: RunDir, machine_id: str, limits: MachineLimits) -> MachineGroup | None:
        """The cgroup of a machine; None where there are none. Raises VmNotAvailable."""
        if self._cgroups is None:
            return None
        try:
            return self._cgroups.create(f"{run_dir.owner}-{machine_id}", limits)
        except OSError as exc:
            raise VmNotAvailable(f"Cannot make the cgroup of {machine_id}: {exc}.", retryable=True) from exc

    def _free_uid(self, first: int, count: int) -> int:
        """One of so many uids from `first` on, which no other machine, engine and process of this host has: machines of
        the same user could reach into each other. It is kept until `_forget`. Raises VmNotAvailable."""
        taken = {machine.uid for machine in self._machines.values()} | _uids_in_use()
        for _ in range(_MOST_TRIES):
            uid = first + secrets.randbelow(count)
            if uid not in taken and self._uids.take(uid):
                return uid
        raise VmNotAvailable(f"No uid between {first} and {first + count} is free.", retryable=True)

    def _forget(self, machine_id: str) -> None:
        machine = self._machines.pop(machine_id, None)
        if machine is not None and machine.uid is not None:
            self._uids.let_go(machine.uid)

    # --- what is left ---------------------------------------------------------------------------------------------

    async def _take_over(self, take: Adopter[_M]) -> dict[str, _M]:
        """Machines that outlived the last process of this state directory; its spawner becomes ours."""
        adopted = await adopt(self._base, self._key, take, self._folders)
        if adopted is None:
            return {}
        self._spawner, self._run_dir = adopted.spawner, adopted.run_dir
        self._machines = {machine.id: machine for machine in adopted.machines}
        return dict(self._machines)

    async def sweep(self) -> int:
        """Clear what dead owners left; the number of them."""

        def clear() -> int:
            count = 0
            for path, fd in dead_owners(self._base):
                try:
                    self._clear_dead(path)
                    clear_owner(path)
                    count += 1
                finally:
                    os.close(fd)
            return count

        return await asyncio.to_thread(clear)

    async def close(self) -> None:
        self._closed = True
        async with self._starting:  # a spawner that is just being started is ours as well
            pass
        try:
            ends = [machine.kill() for machine in list(self._machines.values())]
            results = await asyncio.gather(*ends, return_exceptions=True)
        finally:
            try:
                if self._spawner is not None:
                    spawner, self._spawner = self._spawner, None
                    await spawner.close()  # kills what is left
            finally:
                self._let_go()
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _let_go(self) -> None:
        """What is held besides machines and the spawner."""
        if self._run_dir is not None:
            self._run_dir.release()
            self._run_dir = None
        self._uids.close()
        if self._cgroups is not None:
            self._cgroups.remove_if_empty()

    def abandon(self) -> None:
        self._closed = True
        for machine in self._machines.values():
            machine.abandon()
        if self._spawner is not None:
            self._spawner.abandon()
        if self._run_dir is not None:
            self._run_dir.release()
        self._uids.close()
