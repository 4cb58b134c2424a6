"""Starts QEMU microVMs and clears away what dead owners left."""

from __future__ import annotations

import asyncio
import mmap
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from emberbox.config import Settings
from emberbox.errors import ExecutionTimeout, ImageError, SnapshotFailed, VmNotAvailable
from emberbox.host.cgroups import CgroupRoot
from emberbox.host.rundir import RunDir
from emberbox.host.spawner import Spawner
from emberbox.images.disk import RootDisk
from emberbox.images.kernel import GuestKernel, find_kernel
from emberbox.images.store import Image
from emberbox.machines.contract import Capabilities, Machine, Snapshot
from emberbox.machines.microvm.factory import MicroVmFactory
from emberbox.machines.microvm.processor import processor
from emberbox.machines.probe_cache import is_proven
from emberbox.machines.qemu.adoption import take_machine
from emberbox.machines.qemu.command import Hardware, command, disk_limits, kernel_args, vcpus
from emberbox.machines.qemu.machine import QemuMachine, close_all, sockets
from emberbox.machines.qemu.memory import new_memory
from emberbox.machines.qemu.options import OLDEST, TESTED, QemuOptions, Version, find_problem, tsc_khz, version_of
from emberbox.machines.qemu.permissions import check_readable, rights, root_problem
from emberbox.machines.qemu.shared_memory import SharedMemory, SharedMemoryCache
from emberbox.machines.qemu.snapshot_files import (
    BASE,
    LAYOUT,
    Fingerprint,
    Method,
    digest_of,
)
from emberbox.machines.threads import claimed
from emberbox.models import MachineLimits

_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_OVERHEAD_MB = 256
"""Of QEMU itself and what it translates, above the guest's memory."""
_FIRST_BOOT_SECONDS = 15.0
"""The least time for the first attempt: an emulated kernel hangs now and then while it starts."""
_CALLS_SECONDS = 20.0
_NO_KERNEL = "Run `emberbox setup --backend qemu`, which fetches Debian's, or name a vmlinux in the setting `kernel`."


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a machine is started with."""

    image: Image
    limits: MachineLimits
    kernel: GuestKernel
    disk: RootDisk
    hardware: Hardware
    fingerprint: Fingerprint


class QemuFactory(MicroVmFactory[QemuMachine]):
    """Makes QEMU machines. One per engine."""

    backend = "qemu"
    key_prefix = b"qemu\0"
    machine_type = QemuMachine

    def __init__(self, settings: Settings, options: QemuOptions | None = None) -> None:
        super().__init__(settings, settings.run_dir)
        self.options = options or QemuOptions.of(settings)
        self._version: Version | None = None
        self._kernel: GuestKernel | None = None
        self._loading = asyncio.Lock()
        self._bases = SharedMemoryCache()
        self._latest: dict[tuple[Path, MachineLimits], Fingerprint] = {}
        """Of the snapshots that machines were forked from last: what a blank is made for."""
        self._method: Method | None = None
        """How snapshots are taken, once that has been tried out."""

    # --- what there is --------------------------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        kernel = self._found_kernel()
        parts = [self._found_version().text, str(LAYOUT), self.options.chosen, processor(), _digest(kernel)[:16]]
        return "qemu " + "/".join(parts)

    def _found_version(self) -> Version:
        if self._version is None:
            problem = find_problem(self.options)
            if problem is not None:
                raise VmNotAvailable(f"QEMU cannot be used: {problem[0]}.", remediation=problem[1])
            found = version_of(self.options.qemu)
            if found is None:
                raise VmNotAvailable(
                    f"QEMU cannot be used: {self.options.qemu} does not answer `--version` as QEMU does.",
                    remediation="Run `emberbox setup --backend qemu`.",
                )
            if found.number < OLDEST:
                raise VmNotAvailable(
                    f"QEMU cannot be used: {self.options.qemu} is {found.text}, and {TESTED} is wanted.",
                    remediation="Install a newer one.",
                )
            self._version = found
        return self._version

    def _found_kernel(self) -> GuestKernel:
        if self._kernel is None:
            try:
                self._kernel = find_kernel(self._settings)
                if self._kernel is None and self.options.chosen == "tcg":
                    self._kernel = find_kernel(self._settings, emulated=True)  # runs on real processors as well
            except ImageError as exc:
                raise VmNotAvailable(f"QEMU cannot be used: {exc.message}", remediation=exc.remediation) from exc
            if self._kernel is None:
                raise VmNotAvailable("QEMU cannot be used: there is no guest kernel.", remediation=_NO_KERNEL)
        return self._kernel

    def capabilities(self) -> Capabilities:
        cgroup = self._cgroups.version if self._cgroups else "none"
        try:
            version, kernel = self._found_version(), self._found_kernel()
        except VmNotAvailable as exc:
            why = exc.message.removeprefix("QEMU cannot be used: ").rstrip(".")
            return Capabilities(self.backend, False, why, exc.remediation, cgroup=cgroup)
        by = f"KVM by {self.options.kvm}" if self.options.chosen == "kvm" else "full emulation (TCG)"
        return Capabilities(
            self.backend,
            True,
            f"{by}, kernel {kernel.release or kernel.vmlinux}",
            version=version.text,
            program=str(self.options.qemu),
            cgroup=cgroup,
            limitations=tuple(self._limitations(version)),
            for_tests=self.options.chosen == "tcg",
            unproven=not is_proven(self._settings, self),
        )

    def _limitations(self, version: Version) -> list[str]:
        found = ["experimental: not tried on hardware KVM"]
        if self.options.chosen == "tcg":
            found.append("full emulation: programs run ten to twenty times slower, on one processor")
        if not self.options.confined:
            found.append("QEMU runs with this user's own rights, behind its seccomp filters alone")
        elif why := root_problem(self.options):
            found.append(f"QEMU sees the host's files and processes, as any user does ({why})")
        if self._cgroups is None:
            found.append("no writable memory cgroup: CPU is not limited, and the memory of machines is not counted")
        if not version.text.startswith(TESTED):
            found.append(f"tested with QEMU {TESTED}, this is {version.text}")
        return found

    def _check(self) -> None:
        self._found_version()
        self._found_kernel()

    # --- machines -------------------------------------------------------------------------------------------------

    async def boot(self, image: Image, limits: MachineLimits) -> Machine:
        """Start a machine from the template's root disk; once more, if it hangs.

        Raises:
            VmNotAvailable: QEMU or KVM refused, or the guest died; the message has their own words.
            ExecutionTimeout: the agent did not come up in `boot_timeout_seconds`.
        """
        whole = self._settings.boot_timeout_seconds
        first = _first_seconds(whole)
        try:
            machine = await self._boot(image, limits, first)
        except ExecutionTimeout:
            if whole <= first:
                raise
            machine = await self._boot(image, limits, whole - first)
        try:
            machine.fingerprint = machine.fingerprint.model_copy(update={"method": await self._proven_method(machine)})
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(machine.kill()))
            raise
        return machine

    async def _boot(self, image: Image, limits: MachineLimits, seconds: float) -> QemuMachine:
        parts = await self._parts(image, limits)

        async def start(machine: QemuMachine) -> None:
            machine.use(new_memory(machine.memory))
            await self._launch(machine, parts)
            await machine.listening(seconds)
            await machine.connect(seconds)

        return await self._make(parts, start, seconds)

    async def prepare(self, image: Image, limits: MachineLimits) -> Machine:
        """Start a QEMU that waits for the state of a copy of the machine that was forked last; where there was none, a
        blank of which `fork` can make nothing. Raises VmNotAvailable, ExecutionTimeout, as `boot` does."""
        parts = await self._parts(image, limits)
        latest = self._latest.get((image.directory, limits))

        async def start(machine: QemuMachine) -> None:
            fits = latest is not None and latest.kernel == parts.fingerprint.kernel
            base = self._bases.get(latest.base) if latest is not None and fits else None
            if base is None or latest is None:
                machine.prepared(None)
                return
            machine.use(base)
            machine.fingerprint = latest
            await self._launch(machine, parts)

        return await self._make(parts, start, self._settings.boot_timeout_seconds)

    async def fork(self, snapshot: Snapshot, blank: Machine | None = None) -> Machine:
        """Start a machine that goes on from a snapshot: its memory is that of the template, mapped so that nobody else
        sees what is written to it, with the pages of the snapshot in it.

        Raises:
            VmNotAvailable, ExecutionTimeout: as of `boot`; or the snapshot's files cannot be used here.
        """
        if (filled := await self._used(blank, snapshot)) is not None:
            return filled
        parts = await self._parts(snapshot.image, snapshot.limits)
        fingerprint = await asyncio.to_thread(self._checked, snapshot, parts.fingerprint)

        async def start(machine: QemuMachine) -> None:
            machine.fingerprint = fingerprint
            machine.use(await self._base_of(snapshot.directory, fingerprint, machine.memory))
            await self._launch(machine, parts)
            await self._fill(machine, snapshot)

        machine = await self._make(parts, start, self._settings.boot_timeout_seconds)
        self._latest[snapshot.image.directory, snapshot.limits] = fingerprint
        return machine

    async def _become(self, blank: QemuMachine, snapshot: Snapshot) -> None:
        fingerprint = await asyncio.to_thread(self._checked, snapshot, blank.fingerprint)
        blank.must_fit(fingerprint)
        blank.fingerprint = fingerprint
        await self._fill(blank, snapshot)

    async def _fill(self, machine: QemuMachine, snapshot: Snapshot) -> None:
        await machine.fill(snapshot.directory)
        await machine.connect(self._settings.boot_timeout_seconds, snapshot.last_request)
        await asyncio.to_thread(machine.fingerprint.write, machine.directory)  # for who takes it over

    def _checked(self, snapshot: Snapshot, ours: Fingerprint) -> Fingerprint:
        """Raises VmNotAvailable: the snapshot is not whole, or of no use here."""
        self._verifier.verify(snapshot)
        return ours.check(snapshot)

    async def _base_of(self, directory: Path, fingerprint: Fingerprint, size: int) -> SharedMemory:
        """The memory a snapshot's machine was started with, held for the caller. Raises VmNotAvailable, OSError."""
        async with self._loading:
            base = self._bases.get(fingerprint.base or f"zero-{size}")
            if base is None:
                if fingerprint.method == "stream":
                    base = SharedMemory.empty(size)
                else:
                    base = await _load(directory / BASE, fingerprint.base)
                if base.size != size:
                    base.release()
                    raise VmNotAvailable(f"Snapshot {directory} is of a machine with another memory.", retryable=False)
                self._bases.add(base)
            return base

    async def _proven_method(self, machine: QemuMachine) -> Method:
        """How this QEMU writes machines down: a copy is made of this one, and must answer."""
        if self._method is None:
            folder = machine.directory / "proof"
            assert machine.recipe is not None  # noqa: S101 (for the type checker)
            assert machine.image is not None  # noqa: S101
            parts = await self._parts(machine.image, machine.recipe[1])
            try:
                await machine.checkpoint(folder)
                fingerprint = Fingerprint.read(folder)

                async def start(copy: QemuMachine) -> None:
                    copy.use(await _load(folder / BASE, fingerprint.base))
                    await self._launch(copy, parts)
                    await copy.fill(folder)
                    await copy.greeted(_CALLS_SECONDS)

                await (await self._make(parts, start, self._settings.boot_timeout_seconds)).kill()
                self._method = "devices"
            except (SnapshotFailed, VmNotAvailable, ExecutionTimeout):
                if machine.state != "running":
                    raise
                self._method = "stream"
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return self._method

    # --- steps of a start -----------------------------------------------------------------------------------------

    async def _parts(self, image: Image, limits: MachineLimits) -> _Parts:
        await self._place_ready()
        version, kernel = self._found_version(), self._found_kernel()
        disk = await self._disk(image)
        accel = self.options.chosen
        acpi = kernel.initrd is not None or await asyncio.to_thread(_knows_acpi, kernel.vmlinux)
        hardware = Hardware(
            self.options.qemu, accel, limits.memory_mb, vcpus(limits, accel, acpi=acpi), acpi, kernel.initrd is not None
        )
        khz = await asyncio.to_thread(tsc_khz) if accel == "tcg" else None
        fingerprint = Fingerprint(
            qemu=version.text,
            accel=accel,
            processor=processor(),
            disk=disk.digest,
            kernel=await asyncio.to_thread(_digest, kernel),
            args=kernel_args(limits, hardware, khz, image.template.writable),
            method=self._method or "devices",
        )
        return _Parts(image, limits, kernel, disk, hardware, fingerprint)

    async def _make(
        self, parts: _Parts, start: Callable[[QemuMachine], Awaitable[None]], seconds: float
    ) -> QemuMachine:
        """Make the place of a machine and start it; whatever goes wrong, nothing is left."""
        spawner, run_dir = await self._place_ready()
        machine = self._new(run_dir, spawner, parts)
        async with self._starting_of(machine, run_dir, seconds):
            machine.directory.mkdir(mode=0o700)
            machine.fingerprint.write(machine.directory)
            await start(machine)
        return machine

    def _if_always(self, machine: QemuMachine) -> str:
        return "" if machine.ready else f" If it always fails, {self._wanted()}."

    def _if_dead(self, machine: QemuMachine) -> str:
        if machine.base is None and not machine.ready:  # it was booted, and never came as far as our own first process
            wanted = self._wanted()
            return f"{wanted[0].upper()}{wanted[1:]}."
        return super()._if_dead(machine)

    def _wanted(self) -> str:
        kernel = self._found_kernel().vmlinux
        return f"the kernel {kernel} may lack what it needs: see docs/qemu.md, or use one of ours (`emberbox setup`)"

    def _new(self, run_dir: RunDir, spawner: Spawner, parts: _Parts) -> QemuMachine:
        """A machine that has its cgroup, and no place and no process yet. From here on `kill` clears it."""
        machine_id = f"qm{secrets.token_hex(5)}"
        memory_mb = parts.limits.memory_mb
        room = parts.limits.model_copy(update={"memory_mb": memory_mb + _OVERHEAD_MB})
        group = self._make_group(run_dir, machine_id, room)
        directory = run_dir.path / machine_id
        machine = QemuMachine(directory, spawner, group, parts.fingerprint, parts.image, memory_mb << 20, self._forget)
        machine.recipe = (parts.image.directory, parts.limits)
        self._machines[machine_id] = machine
        return machine

    async def _launch(self, machine: QemuMachine, parts: _Parts) -> None:
        """Start its QEMU; returns when that takes commands."""
        disk = disk_limits(self._settings.disk_bandwidth_mb, self._settings.disk_operations)
        argv = command(machine.id, parts.hardware, machine.fingerprint.args, copy=machine.base is not None, disk=disk)
        files = [parts.disk.path, parts.kernel.vmlinux, *([parts.kernel.initrd] if parts.kernel.initrd else [])]
        ours, theirs = sockets()
        opened: list[int] = []
        try:
            machine.attach(ours)
            opened += [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in files]
            if self.options.confined:
                check_readable(files)
                machine.uid = self._free_uid(self.options.first_uid, self.options.uids)
            confine = await asyncio.to_thread(rights, self.options, machine.directory, machine.uid)
            log, *others = (stream.fileno() for stream in theirs)
            with Path(os.devnull).open("rb") as null:
                process = await machine.spawner.spawn(
                    argv,
                    stdin=null.fileno(),
                    stdout=log,
                    stderr=log,
                    env=_ENV,
                    cwd="/",
                    join=machine.group.join if machine.group is not None else [],
                    more=[*others, machine.memory_fd, *opened],
                    confine=confine,
                )
        finally:
            close_all(theirs)
            for fd in opened:
                os.close(fd)
        machine.prepared(process)
        await machine.ready_for_calls(_CALLS_SECONDS)

    # --- what is left ---------------------------------------------------------------------------------------------

    async def adopt(self) -> dict[str, Machine]:
        """Machines that outlived the last process of this state directory; its spawner becomes ours."""

        async def take(spawner: Spawner, run_dir: RunDir, name: str, cgroups: CgroupRoot | None) -> QemuMachine:
            return await take_machine(spawner, run_dir, name, cgroups, self._forget)

        return dict(await self._take_over(take))

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            self._bases.close()

    def abandon(self) -> None:
        super().abandon()
        self._bases.close()


async def _load(path: Path, digest: str) -> SharedMemory:
    """`SharedMemory.load` in a thread. Where the caller is cancelled, what it loads is closed."""
    return await claimed(lambda: SharedMemory.load(path, digest), SharedMemory.release)


def _first_seconds(whole: float) -> float:
    """How long the first attempt of a boot may take."""
    return min(whole, max(_FIRST_BOOT_SECONDS, whole / 3))


def _digest(kernel: GuestKernel) -> str:
    """Raises VmNotAvailable: it cannot be read."""
    try:
        return digest_of(kernel.vmlinux, kernel.initrd)
    except OSError as exc:
        raise VmNotAvailable(
            f"QEMU cannot be used: the kernel {kernel.vmlinux} cannot be read: {exc.strerror}.", remediation=_NO_KERNEL
        ) from exc


@lru_cache(maxsize=8)
def _knows_acpi(vmlinux: Path) -> bool:
    """Whether a kernel can find devices and processors by ACPI; others are told on the command line."""
    with vmlinux.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        return data.find(b"Core revision %8.8X") >= 0
