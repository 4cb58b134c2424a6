"""Starts Firecracker microVMs and clears away what dead owners left."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from emberbox.config import Settings
from emberbox.errors import ExecutionTimeout, ImageError, VmConnectionError, VmNotAvailable
from emberbox.guest import vm_init
from emberbox.host.cgroups import CgroupRoot, find_cgroup_root
from emberbox.host.rundir import CGROUPS, RunDir, clear_owner, dead_owners, make_run_dir
from emberbox.host.spawner import Spawner
from emberbox.images.disk import RootDisk, ensure_disk
from emberbox.images.store import Image
from emberbox.machines.base import Capabilities, Machine, Snapshot
from emberbox.machines.firecracker.adoption import take_over
from emberbox.machines.firecracker.api import (
    Action,
    ApiError,
    Body,
    BootSource,
    Drive,
    Entropy,
    MachineConfig,
    Vsock,
)
from emberbox.machines.firecracker.machine import FirecrackerMachine
from emberbox.machines.firecracker.options import (
    EMULATED,
    PINNED_VERSION,
    FirecrackerOptions,
    emulated,
    find_problem,
    version_of,
)
from emberbox.machines.firecracker.place import (
    DISK,
    ENV,
    KERNEL,
    MEMORY,
    STATE,
    VSOCK,
    Place,
    install_program,
    kill_processes,
    machines_below,
)
from emberbox.machines.firecracker.snapshot_files import LAYOUT, Marks, Verifier, check_marks, processor, write_marks
from emberbox.machines.gvisor.adoption import write_key
from emberbox.models import MachineLimits

_KERNEL_ARGS = (
    "console=ttyS0 reboot=k panic=-1 quiet loglevel=4 i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on "
    "root=/dev/vda ro rootfstype=ext4 init=/usr/bin/python3"
)
_EMULATED_ARGS = (
    "mitigations=off norandmaps rodata=off "
    "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD,-FMA,"
    "-AVX_Fast_Unaligned_Load,-ERMS,-FSRM"
)
"""Registers that the emulated kernel mode does not switch between processes must not be used (kernel/README.md)."""
_RUN_MB = 16
_GUEST_CID = 3
"""The same for all: each Firecracker has a socket of its own for it."""
_OVERHEAD_MB = 128
"""Of Firecracker itself and of KVM, above the guest's memory."""
_MOST_VCPUS = 32
_SPACE = "Is there space on the file system of the run directory?"


class FirecrackerFactory:
    """Makes Firecracker machines. One per engine; all that it starts hangs below its own spawner and run directory."""

    backend = "firecracker"

    def __init__(self, settings: Settings, options: FirecrackerOptions | None = None) -> None:
        self._settings = settings
        self.options = options or FirecrackerOptions.of(settings)
        self._base = settings.cache_dir / "jails" if self.options.jailed else settings.run_dir
        """Of run directories. Jails hold a device node, which file systems such as /run refuse, and hard links to
        images and snapshots."""
        self._version: str | None = None
        self._cgroups: CgroupRoot | None = find_cgroup_root()
        self._run_dir: RunDir | None = None
        self._spawner: Spawner | None = None
        self._machines: dict[str, FirecrackerMachine] = {}
        self._starting = asyncio.Lock()
        self._making_disk = asyncio.Lock()
        self._verifier = Verifier()
        self._closed = False

    @property
    def identity(self) -> str:
        return f"firecracker {self._found_version()}/{LAYOUT} {processor()}"

    def _found_version(self) -> str:
        if self._version is None:
            problem = find_problem(self.options)
            if problem is not None:
                raise VmNotAvailable(f"Firecracker cannot be used: {problem[0]}.", remediation=problem[1])
            self._version = version_of(self.options.firecracker)
            if self._version is None:
                raise VmNotAvailable(
                    f"Firecracker cannot be used: {self.options.firecracker} does not answer `--version`.",
                    remediation="Run `emberbox setup --backend firecracker`.",
                )
        return self._version

    def capabilities(self) -> Capabilities:
        cgroup = self._cgroups.version if self._cgroups else "none"
        limitations = tuple(self._limitations())
        try:
            version = self._found_version()
        except VmNotAvailable as exc:
            why = exc.message.removeprefix("Firecracker cannot be used: ").rstrip(".")
            return Capabilities(self.backend, False, why, exc.remediation, cgroup=cgroup, limitations=limitations)
        return Capabilities(
            self.backend,
            True,
            EMULATED if emulated() else f"KVM by {self.options.kvm}",
            version=version,
            program=str(self.options.firecracker),
            cgroup=cgroup,
            limitations=limitations,
        )

    def _limitations(self) -> list[str]:
        found = []
        if emulated():
            found.append(f"{EMULATED}; machines start slowly and have one processor")
        if not self.options.jailed:
            found.append("no jail: Firecracker runs with this user's own rights, behind its seccomp filters alone")
        if self._cgroups is None:
            found.append("no writable memory cgroup: CPU is not limited, and the memory of machines is not counted")
        if self._version is not None and self._version != PINNED_VERSION:
            found.append(f"tested with Firecracker {PINNED_VERSION}, this is {self._version}")
        return found

    # --- machines -------------------------------------------------------------------------------------------------

    async def boot(self, image: Image, limits: MachineLimits) -> Machine:
        """Start a machine from the template's root disk.

        Raises:
            VmNotAvailable: Firecracker, its jailer or KVM refused, or the guest died; the message has their own words.
            ExecutionTimeout: the agent did not come up in `boot_timeout_seconds`.
        """

        async def start(machine: FirecrackerMachine) -> None:
            await self._launch(machine)
            machine.place.offer(self.options.kernel, KERNEL)
            for path, body in self._configuration(limits):
                await machine.api.put(path, body)
            await machine.api.put("/actions", Action())
            await machine.listening(self._settings.boot_timeout_seconds)
            await machine.connect(self._settings.boot_timeout_seconds)

        return await self._make(image, limits, start)

    async def prepare(self, image: Image, limits: MachineLimits) -> Machine:
        """Start a Firecracker that waits for a snapshot; raises VmNotAvailable, ExecutionTimeout, as `boot` does."""
        return await self._make(image, limits, self._launch)

    async def fork(self, snapshot: Snapshot, blank: Machine | None = None) -> Machine:
        """Start a machine that goes on from a snapshot: its memory is the snapshot's file, mapped so that nobody else
        sees what is written to it.

        Raises:
            VmNotAvailable, ExecutionTimeout: as of `boot`; or the snapshot's files cannot be used here.
        """
        if isinstance(blank, FirecrackerMachine):
            if blank.recipe == (snapshot.image.directory, snapshot.limits) and await self._filled(blank, snapshot):
                return blank
            await blank.kill()

        async def start(machine: FirecrackerMachine) -> None:
            await self._launch(machine)
            await self._fill(machine, snapshot)

        return await self._make(snapshot.image, snapshot.limits, start, snapshot)

    async def _filled(self, blank: FirecrackerMachine, snapshot: Snapshot) -> bool:
        """Fill a blank; False where that did not work, and the blank is gone."""
        try:
            async with asyncio.timeout(self._settings.boot_timeout_seconds):
                await asyncio.to_thread(self._check, snapshot, blank.marks)
                await self._fill(blank, snapshot)
        except BaseException as exc:
            await asyncio.shield(asyncio.ensure_future(blank.kill()))
            if isinstance(exc, VmNotAvailable | VmConnectionError | OSError):  # a time-out is an OSError as well
                return False
            raise
        return True

    async def _fill(self, machine: FirecrackerMachine, snapshot: Snapshot) -> None:
        for name in (STATE, MEMORY):
            machine.place.offer(snapshot.directory / name, name)
        await machine.api.load_snapshot(STATE, MEMORY)
        await machine.connect(self._settings.boot_timeout_seconds, snapshot.last_request)

    def _check(self, snapshot: Snapshot, marks: Marks) -> None:
        """Raises VmNotAvailable: the snapshot is not whole, or of no use here."""
        self._verifier.verify(snapshot)
        check_marks(snapshot, marks)

    @staticmethod
    def _configuration(limits: MachineLimits) -> list[tuple[str, Body]]:
        """What Firecracker is told before a boot."""
        slow = emulated()
        sizes = {
            "home_mb": limits.disk_mb, "tmp_mb": limits.tmp_mb, "run_mb": _RUN_MB, "open_files": limits.open_files,
            "hostname": "emberbox",
        }  # fmt: skip
        words = " ".join(f"{name}={value}" for name, value in sizes.items())
        script = f"-ESs {vm_init.AGENT_HOME}/guest/vm_init.py {words}"
        args = f"{_KERNEL_ARGS} {_EMULATED_ARGS} -- {script}" if slow else f"{_KERNEL_ARGS} -- {script}"
        vcpus = 1 if slow else min(_MOST_VCPUS, math.ceil(limits.vcpus))
        return [
            ("/boot-source", BootSource(kernel_image_path=KERNEL, boot_args=args)),
            ("/machine-config", MachineConfig(vcpu_count=vcpus, mem_size_mib=limits.memory_mb)),
            ("/drives/root", Drive(drive_id="root", path_on_host=DISK, is_root_device=True, is_read_only=True)),
            ("/vsock", Vsock(guest_cid=_GUEST_CID, uds_path=VSOCK)),
            ("/entropy", Entropy()),
        ]

    # --- steps of a start -----------------------------------------------------------------------------------------

    async def _make(
        self,
        image: Image,
        limits: MachineLimits,
        start: Callable[[FirecrackerMachine], Awaitable[None]],
        snapshot: Snapshot | None = None,
    ) -> Machine:
        """Make the place of a machine and start it; whatever goes wrong, nothing is left."""
        spawner, run_dir, version = await self._ready()
        disk = await self._disk(image)
        marks = Marks(firecracker=version, processor=processor(), disk=disk.digest)
        if snapshot is not None:
            await asyncio.to_thread(self._check, snapshot, marks)
        machine = self._new(run_dir, limits, spawner, marks)
        machine.recipe = (image.directory, limits)
        try:
            machine.place.make()
            write_marks(machine.place.directory, marks)
            machine.place.offer(disk.path, DISK)
            async with asyncio.timeout(self._settings.boot_timeout_seconds):
                await start(machine)
        except BaseException as exc:
            # the clean-up runs to its end even if the caller is cancelled once more
            await asyncio.shield(asyncio.ensure_future(machine.kill()))
            explained = self._explained(exc, machine, run_dir)
            if explained is exc:
                raise
            raise explained from exc
        return machine

    @staticmethod
    def _explained(exc: BaseException, machine: FirecrackerMachine, run_dir: RunDir) -> BaseException:
        """What a failed start is told as."""
        said = machine.serial.text() if machine.serial is not None else ""
        words = f" Its last words: {said}" if said else ""
        if isinstance(exc, TimeoutError):
            return ExecutionTimeout(f"Machine {machine.id} did not start in time.{words}", retryable=True)
        if isinstance(exc, ApiError):
            return VmNotAvailable(
                f"Machine {machine.id} could not be started: {exc.message}{words}",
                remediation="Run `emberbox doctor`; it starts a machine and explains what the host lacks.",
                retryable=exc.retryable,
            )
        if isinstance(exc, VmConnectionError):
            return VmNotAvailable(f"Machine {machine.id} died while it started: {exc.message}", retryable=True)
        if isinstance(exc, OSError):
            return VmNotAvailable(
                f"Cannot prepare machine {machine.id} in {run_dir.path}: {exc.strerror or exc}.",
                remediation=_SPACE,
                retryable=True,
            )
        return exc

    async def _disk(self, image: Image) -> RootDisk:
        async with self._making_disk:
            try:
                return await asyncio.to_thread(ensure_disk, image)
            except ImageError as exc:
                raise VmNotAvailable(exc.message, remediation=exc.remediation) from exc

    async def _ready(self) -> tuple[Spawner, RunDir, str]:
        async with self._starting:
            if self._closed:
                raise VmNotAvailable("The engine is closed.", remediation="Make a new one.")
            version = await asyncio.to_thread(self._found_version)
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
                self._spawner = await Spawner.start(
                    self._run_dir.path, self._run_dir.lock_fd, cgroups=cgroups, user_namespace=False
                )
            return self._spawner, self._run_dir, version

    def _make_run_dir(self) -> RunDir:
        self._base.parent.mkdir(parents=True, exist_ok=True)
        run_dir = make_run_dir(self._base)
        try:
            write_key(run_dir.path, self._key)
            if self._cgroups is not None:
                self._cgroups.save(run_dir.path / CGROUPS)
            if self.options.jailed:
                install_program(self.options, run_dir.path)
        except BaseException as exc:
            run_dir.release()
            if isinstance(exc, OSError):
                raise VmNotAvailable(
                    f"Cannot write to the run directory {run_dir.path}: {exc.strerror}.", remediation=_SPACE
                ) from exc
            raise
        return run_dir

    def _new(self, run_dir: RunDir, limits: MachineLimits, spawner: Spawner, marks: Marks) -> FirecrackerMachine:
        """A machine that has its cgroup, and no place and no process yet. From here on `kill` clears it."""
        machine_id = f"fc{secrets.token_hex(5)}"
        group = None
        if self._cgroups is not None:
            room = limits.model_copy(update={"memory_mb": limits.memory_mb + _OVERHEAD_MB})
            try:
                group = self._cgroups.create(f"{run_dir.owner}-{machine_id}", room)
            except OSError as exc:
                raise VmNotAvailable(f"Cannot make the cgroup of {machine_id}: {exc}.", retryable=True) from exc
        uid = self._free_uid() if self.options.jailed else None
        machine = FirecrackerMachine(Place.of(run_dir.path, machine_id, uid), spawner, group, marks, self._forget)
        self._machines[machine_id] = machine
        return machine

    def _free_uid(self) -> int:
        taken = {machine.place.uid for machine in self._machines.values()}
        while True:
            uid = self.options.first_uid + secrets.randbelow(self.options.uids)
            if uid not in taken:
                return uid

    async def _launch(self, machine: FirecrackerMachine) -> None:
        """Start its Firecracker; returns when that takes calls of its API."""
        run_dir = self._run_dir
        assert run_dir is not None  # noqa: S101 (for the type checker)
        read_fd, write_fd = os.pipe()
        machine.attach(read_fd)
        try:
            with Path(os.devnull).open("rb") as null:
                process = await machine.spawner.spawn(
                    machine.place.command(self.options, run_dir.path),
                    stdin=null.fileno(),
                    stdout=write_fd,
                    stderr=write_fd,
                    env=ENV,
                    cwd=str(machine.place.root),
                    join=machine.group.join if machine.group is not None else [],
                )
        finally:
            os.close(write_fd)
        if machine.place.uid is not None:
            status = await asyncio.shield(process.ended)  # the jailer's parent process
            if status != 0:
                raise ApiError(f"The jailer ended with status {status}.")
            process = await machine.spawner.own(int(machine.place.pid_file.read_text(encoding="ascii")))
        machine.prepared(process)
        await machine.ready_for_calls()
        machine.place.close_root()

    def _forget(self, machine_id: str) -> None:
        self._machines.pop(machine_id, None)

    # --- what is left ---------------------------------------------------------------------------------------------

    async def adopt(self) -> dict[str, Machine]:
        """Machines that outlived the last process of this state directory; its spawner becomes ours."""
        estate = await take_over(self._base, self._key, self._forget)
        if estate is None:
            return {}
        self._spawner, self._run_dir = estate.spawner, estate.run_dir
        self._machines = {machine.id: machine for machine in estate.machines}
        return dict(self._machines)

    @property
    def _key(self) -> str:
        """Whose machines these are, for `adopt`."""
        return hashlib.sha256(b"firecracker\0" + os.fsencode(self._settings.state_dir)).hexdigest()

    async def sweep(self) -> int:
        """Clear what dead owners left; the number of them."""

        def clear() -> int:
            count = 0
            for path, fd in dead_owners(self._base):
                try:
                    for machine in machines_below(path):  # in a jail, a command line does not name the folder
                        kill_processes(machine.name)
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
        await asyncio.gather(*(machine.kill() for machine in list(self._machines.values())))
        if self._spawner is not None:
            await self._spawner.close()
            self._spawner = None
        if self._run_dir is not None:
            self._run_dir.release()
            self._run_dir = None
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
