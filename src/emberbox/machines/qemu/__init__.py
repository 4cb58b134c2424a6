"""QEMU machines: microVMs by KVM, or by full emulation where that is asked for."""

from emberbox.machines.qemu.factory import QemuFactory
from emberbox.machines.qemu.options import QemuOptions

__all__ = ["QemuFactory", "QemuOptions"]
