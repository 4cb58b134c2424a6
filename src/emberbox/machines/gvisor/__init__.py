"""gVisor machines: a user-space kernel (runsc, systrap platform), needs no KVM."""

from emberbox.machines.gvisor.factory import GvisorFactory

__all__ = ["GvisorFactory"]
