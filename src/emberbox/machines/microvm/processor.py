"""The host's processor, as machines see it."""

from __future__ import annotations

import os
from pathlib import Path

_HARDWARE_FLAGS = frozenset({"vmx", "svm"})


def emulated(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this host's KVM runs without the processor's help. A processor that has no virtualisation (flags vmx and
    svm) and a /dev/kvm all the same can only mean a KVM that works without it, which emulates the guest's kernel mode.
    Other architectures than x86 name it otherwise, and have no such KVM."""
    if os.uname().machine != "x86_64":
        return False
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                return _HARDWARE_FLAGS.isdisjoint(value.split())
    except OSError:
        pass
    return False


def hardware_kvm() -> bool:
    """Whether there is a KVM that has the processor's help. Whether we may open it is another question."""
    return Path("/dev/kvm").exists() and not emulated()


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Vendor, family, model and stepping of the first processor (x86), or the architecture."""
    found: dict[str, str] = {}
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    names = ("vendor_id", "cpu family", "model", "stepping")
    return "-".join(found[name] for name in names if name in found) or os.uname().machine
