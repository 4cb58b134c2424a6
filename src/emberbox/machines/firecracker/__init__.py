"""Firecracker machines: KVM microVMs, each with a kernel of its own."""

from emberbox.machines.firecracker.factory import FirecrackerFactory
from emberbox.machines.firecracker.options import FirecrackerOptions

__all__ = ["FirecrackerFactory", "FirecrackerOptions"]
