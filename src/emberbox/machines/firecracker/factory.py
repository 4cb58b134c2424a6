"""Starts Firecracker microVMs and clears away what dead owners left."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from emberbox.config import Settings
from emberbox.errors import VmNotAvailable
from emberbox.guest import vm_init
from emberbox.guest.registers import ENVIRONMENT, TUNABLES
from emberbox.host.cgroups import CgroupRoot
from emberbox.host.rundir import RunDir
from emberbox.host.spawner import Confinement, Spawner
from emberbox.images.store import Image
from emberbox.machines.contract import Capabilities, Machine, Snapshot
from emberbox.machines.firecracker import balloon
from emberbox.machines.firecracker.adoption import take_machine
from emberbox.machines.firecracker.api import (
    Action,
    ApiError,
    Body,
    BootSource,
    Drive,
    DriveUpdate,
    Entropy,
    MachineConfig,
    Vsock,
)
from emberbox.machines.firecracker.disk_limits import DRIVE, DRIVE_PATH, change_of_limiter, limiter, same_limits
from emberbox.machines.firecracker.jail_layout import (
    DISK,
    ENV,
    INITRD,
    KERNEL,
    MEMORY,
    STATE,
    VSOCK,
    JailLayout,
    install_program,
    kill_processes,
    machines_below,
)
from emberbox.machines.firecracker.machine import FirecrackerMachine
from emberbox.machines.firecracker.options import (
    EMULATED,
    PINNED_VERSION,
    FirecrackerOptions,
    find_problem,
    version_of,
)
from emberbox.machines.firecracker.snapshot_files import (
    LAYOUT,
    Fingerprint,
)
from emberbox.machines.microvm.factory import DOCTOR, MicroVmFactory
from emberbox.machines.microvm.processor import emulated, processor
from emberbox.machines.probe_cache import is_proven
from emberbox.models import MachineLimits

_KERNEL_ARGS = (
    "console=ttyS0 reboot=k panic=-1 pci=off quiet loglevel=4 i8042.noaux i8042.nomux i8042.dumbkbd "
    "random.trust_cpu=on "
    "root=/dev/vda ro rootfstype=ext4 init=/usr/bin/python3"
)
_EMULATED_ARGS = f"mitigations=off norandmaps rodata=off {TUNABLES}={ENVIRONMENT[TUNABLES]}"
"""Registers that the emulated kernel mode does not switch between processes must not be used by its first process
either, which is too early to look for itself."""
_RUN_MB = 16
_GUEST_CID = 3
"""The same for all: each Firecracker has a socket of its own for it."""
_OVERHEAD_MB = 128
"""Of Firecracker itself and of KVM, above the guest's memory."""
_MOST_VCPUS = 32


class FirecrackerFactory(MicroVmFactory[FirecrackerMachine]):
    """Makes Firecracker machines. One per engine."""

    backend = "firecracker"
    key_prefix = b"firecracker\0"
    machine_type = FirecrackerMachine

    def __init__(self, settings: Settings, options: FirecrackerOptions | None = None) -> None:
        self.options = options or FirecrackerOptions.of(settings)
        # jails hold a device node, which file systems such as /run refuse, and hard links to images and snapshots
        super().__init__(settings, settings.cache_dir / "jails" if self.options.jailed else settings.run_dir)
        self._version: str | None = None

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
            for_tests=emulated(),
            unproven=not is_proven(self._settings, self),
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
            if self.options.initrd is not None:
                machine.place.offer(self.options.initrd, INITRD)
            for path, body in self._configuration(image, limits):
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
        if (filled := await self._used(blank, snapshot)) is not None:
            return filled

        async def start(machine: FirecrackerMachine) -> None:
            await self._launch(machine)
            await self._fill(machine, snapshot)

        return await self._make(snapshot.image, snapshot.limits, start, snapshot)

    async def _become(self, blank: FirecrackerMachine, snapshot: Snapshot) -> None:
        await asyncio.to_thread(self._check_snapshot, snapshot, blank.fingerprint)
        await self._fill(blank, snapshot)

    async def _fill(self, machine: FirecrackerMachine, snapshot: Snapshot) -> None:
        for name in (STATE, MEMORY):
            machine.place.offer(snapshot.directory / name, name)
        same = same_limits(Fingerprint.read(snapshot.directory), self._settings)
        await machine.api.load_snapshot(STATE, MEMORY, run=same)
        if not same:
            update = DriveUpdate(drive_id=DRIVE, rate_limiter=change_of_limiter(self._settings))
            await machine.api.patch(DRIVE_PATH, update)
            await machine.api.patch_vm("Resumed")
        await machine.connect(self._settings.boot_timeout_seconds, snapshot.last_request)

    def _check_snapshot(self, snapshot: Snapshot, fingerprint: Fingerprint) -> None:
        """Raises VmNotAvailable: the snapshot is not whole, or of no use here."""
        self._verifier.verify(snapshot)
        fingerprint.check(snapshot)

    def _configuration(self, image: Image, limits: MachineLimits) -> list[tuple[str, Body]]:
        """What Firecracker is told before a boot."""
        slow = emulated()
        sizes = {
            "home_mb": limits.disk_mb, "tmp_mb": limits.tmp_mb, "run_mb": _RUN_MB, "open_files": limits.open_files,
            "hostname": "emberbox", "writable": ":".join(image.template.writable),
        }  # fmt: skip
        words = " ".join(f"{name}={value}" for name, value in sizes.items())
        script = f"-ESs {vm_init.AGENT_HOME}/guest/vm_init.py {words}"
        args = f"{_KERNEL_ARGS} {_EMULATED_ARGS} -- {script}" if slow else f"{_KERNEL_ARGS} -- {script}"
        initrd = INITRD if self.options.initrd is not None else None
        vcpus = 1 if slow else min(_MOST_VCPUS, math.ceil(limits.vcpus))
        disk = Drive(
            drive_id=DRIVE,
            path_on_host=DISK,
            is_root_device=True,
            is_read_only=True,
            rate_limiter=limiter(self._settings),
        )
        return [
            ("/boot-source", BootSource(kernel_image_path=KERNEL, boot_args=args, initrd_path=initrd)),
            ("/machine-config", MachineConfig(vcpu_count=vcpus, mem_size_mib=limits.memory_mb)),
            (DRIVE_PATH, disk),
            ("/vsock", Vsock(guest_cid=_GUEST_CID, uds_path=VSOCK)),
            ("/entropy", Entropy()),
            (balloon.PATH, balloon.DEVICE),
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
        spawner, run_dir = await self._place_ready()
        version = self._found_version()
        disk = await self._disk(image)
        fingerprint = Fingerprint(
            firecracker=version,
            processor=processor(),
            disk=disk.digest,
            disk_bandwidth_mb=self._settings.disk_bandwidth_mb,
            disk_operations=self._settings.disk_operations,
        )
        if snapshot is not None:
            await asyncio.to_thread(self._check_snapshot, snapshot, fingerprint)
        machine = self._new(run_dir, limits, spawner, fingerprint)
        machine.recipe = (image.directory, limits)
        async with self._starting_of(machine, run_dir, self._settings.boot_timeout_seconds):
            machine.place.make()
            fingerprint.write(machine.place.directory)
            machine.place.offer(disk.path, DISK)
            await start(machine)
        return machine

    def _explained(self, exc: BaseException, machine: FirecrackerMachine, run_dir: RunDir) -> BaseException:
        if isinstance(exc, ApiError):
            said = machine.serial.text() if machine.serial is not None else ""
            words = f" Its last words: {said}" if said else ""
            return VmNotAvailable(
                f"Machine {machine.id} could not be started: {exc.message}{words}",
                remediation=DOCTOR,
                retryable=exc.retryable,
            )
        return super()._explained(exc, machine, run_dir)

    def _check(self) -> None:
        self._found_version()

    def _furnish(self, run_dir: RunDir) -> None:
        if self.options.jailed:
            install_program(self.options, run_dir.path)

    def _new(
        self, run_dir: RunDir, limits: MachineLimits, spawner: Spawner, fingerprint: Fingerprint
    ) -> FirecrackerMachine:
        """A machine that has its cgroup, and no place and no process yet. From here on `kill` clears it."""
        machine_id = f"fc{secrets.token_hex(5)}"
        room = limits.model_copy(update={"memory_mb": limits.memory_mb + _OVERHEAD_MB})
        group = self._make_group(run_dir, machine_id, room)
        uid = self._free_uid(self.options.first_uid, self.options.uids) if self.options.jailed else None
        machine = FirecrackerMachine(
            JailLayout.of(run_dir.path, machine_id, uid), spawner, group, fingerprint, self._forget
        )
        machine.uid = uid
        self._machines[machine_id] = machine
        return machine

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
                    confine=None if machine.place.uid is None else Confinement(network=True),
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

    # --- what is left ---------------------------------------------------------------------------------------------

    async def adopt(self) -> dict[str, Machine]:
        """Machines that outlived the last process of this state directory; its spawner becomes ours."""

        async def take(spawner: Spawner, run_dir: RunDir, name: str, cgroups: CgroupRoot | None) -> FirecrackerMachine:
            return await take_machine(spawner, run_dir, name, cgroups, self._forget)

        return dict(await self._take_over(take))

    @staticmethod
    def _folders(run_dir: Path) -> Iterable[Path]:
        return machines_below(run_dir)

    def _clear_dead(self, path: Path) -> None:
        for machine in machines_below(path):  # in a jail, a command line does not name the folder
            kill_processes(machine.name)
