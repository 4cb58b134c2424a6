"""The command line of a machine, and that of its kernel. A machine and its copies must have the very same devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emberbox.guest import vm_init
from emberbox.machines.qemu.options import Accel
from emberbox.models import MachineLimits

LOG, AGENT, GREETING, QMP, RAM, DISK, KERNEL, INITRD = 1, 3, 4, 5, 6, 7, 8, 9
"""Descriptors of the process, besides 0 (nothing) and 2 (as LOG)."""
_CPU = {"kvm": "host", "tcg": "max,-smap,-smep,-pku,-la57,-umip"}
"""What is left out costs an emulated processor time, and guards nothing there."""
_ACCEL = {"kvm": "kvm", "tcg": "tcg,thread=multi,tb-size=64"}
_MOST_VCPUS = 32
_RUN_MB = 16
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_MMIO = "virtio_mmio.device=512@0xfeb00e00:12 virtio_mmio.device=512@0xfeb00c00:11"
"""Where this machine type puts its first two devices without ACPI (hw/i386/microvm.c): QEMU's own way of saying so adds
it behind the arguments of the first process."""
_KERNEL_ARGS = (
    "console=ttyS0 reboot=t panic=-1 quiet loglevel=4 i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on "
    "root=/dev/vda ro rootfstype=ext4 init=/usr/bin/python3"
)


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine is made of; its copies must be made of the same."""

    program: Path
    accel: Accel
    memory_mb: int
    vcpus: int
    acpi: bool
    """The kernel finds its devices by ACPI; else they are named on its command line."""
    initrd: bool


def vcpus(limits: MachineLimits, accel: Accel, *, acpi: bool) -> int:
    """Processors of a machine: one where they are emulated, or where the kernel cannot find more."""
    return 1 if accel == "tcg" or not acpi else min(_MOST_VCPUS, math.ceil(limits.vcpus))


def kernel_args(limits: MachineLimits, hardware: Hardware, khz: int | None, writable: Sequence[str] = ()) -> str:
    """Of the kernel and, behind the dashes, of the first process. `khz`: of the time stamp counter, if it is known."""
    words = [_KERNEL_ARGS]
    if hardware.accel == "tcg":
        words.append("mitigations=off")
        if khz is not None:
            words.append(f"tsc_early_khz={khz} lpj={4 * khz}")
    if not hardware.acpi:
        words.append(_MMIO)
    options = {
        "home_mb": limits.disk_mb, "tmp_mb": limits.tmp_mb, "run_mb": _RUN_MB, "open_files": limits.open_files,
        "hostname": "emberbox", "channel": "ports", "writable": ":".join(writable),
    }  # fmt: skip
    words.append(f"-- -ESs {vm_init.AGENT_HOME}/guest/vm_init.py")
    words += [f"{name}={value}" for name, value in options.items()]
    return " ".join(words)


def disk_limits(bandwidth_mb: int | None, operations: int | None) -> str:
    """What a drive may read in a second, as options of `-drive`; empty without limits."""
    bandwidth = f",throttling.bps-total={bandwidth_mb << 20}" if bandwidth_mb is not None else ""
    return bandwidth + (f",throttling.iops-total={operations}" if operations is not None else "")


def command(machine_id: str, hardware: Hardware, args: str, *, copy: bool, disk: str = "") -> list[str]:
    """Starts a machine, or (`copy`) one that waits for the state of another. Whatever it opens is a descriptor that it
    was given, so that it need not be able to reach any file of ours. `disk`: as of `disk_limits`."""
    machine = "microvm,rtc=on,isa-serial=on,auto-kernel-cmdline=off,suppress-vmdesc=on,memory-backend=ram"
    ram = f"memory-backend-file,id=ram,size={hardware.memory_mb}M,mem-path=/proc/self/fd/{RAM}"
    argv = [
        str(hardware.program), "-name", machine_id, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-sandbox", _SANDBOX, "-global", "migration.send-configuration=off",
        "-machine", f"{machine},acpi={'on' if hardware.acpi else 'off'}",
        "-accel", _ACCEL[hardware.accel], "-cpu", _CPU[hardware.accel],
        "-smp", str(hardware.vcpus), "-m", f"{hardware.memory_mb}M",
        "-object", f"{ram},share={'off' if copy else 'on'}",
        "-kernel", f"/proc/self/fd/{KERNEL}", "-append", args,
        "-drive", f"id=root,if=none,format=raw,readonly=on,file=/proc/self/fd/{DISK},file.locking=off{disk}",
        "-device", "virtio-blk-device,drive=root",
        "-chardev", f"socket,id=log,fd={LOG}", "-serial", "chardev:log",
        "-chardev", f"socket,id=agent,fd={AGENT}", "-chardev", f"socket,id=greeting,fd={GREETING}",
        "-device", "virtio-serial-device,max_ports=3",
        "-device", f"virtserialport,nr=1,chardev=agent,name={vm_init.AGENT_PORT}",
        "-device", f"virtserialport,nr=2,chardev=greeting,name={vm_init.GREETING_PORT}",
        "-chardev", f"socket,id=qmp,fd={QMP}", "-mon", "chardev=qmp,mode=control",
    ]  # fmt: skip
    if hardware.initrd:
        argv += ["-initrd", f"/proc/self/fd/{INITRD}"]
    if copy:
        argv += ["-incoming", "defer"]
    return argv
