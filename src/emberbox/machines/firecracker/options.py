"""What the back end needs of the settings, and where its programs are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from emberbox.config import Settings

PINNED_VERSION = "1.12.1"
"""The version that the tests and the figures are from. Others with the same first two numbers may work; the format of
snapshots is each version's own."""
_VERSION = re.compile(r"v?(\d+\.\d+\.\d+)")
_HARDWARE_FLAGS = frozenset({"vmx", "svm"})
_NO_KVM = (
    "Use a host with hardware virtualisation (KVM), switch it on in the firmware or, in a virtual machine, allow "
    "nested virtualisation; or use the gvisor back end."
)
EMULATED = "KVM present, guest kernel mode is emulated: for tests only"


@dataclass(frozen=True, slots=True)
class FirecrackerOptions:
    """Where things are and how machines are confined."""

    firecracker: Path
    jailer: Path
    kernel: Path
    kvm: Path = Path("/dev/kvm")
    jail: bool = True
    """Confine Firecracker by its jailer; possible for root only."""
    accept_emulated: bool = False
    """Use a KVM that emulates the guest's kernel mode, which is a hundred times slower and only for tests."""
    first_uid: int = 300_000
    """Machines in the jail run as this uid and gid or one of the `uids` after it."""
    uids: int = 65_536

    @classmethod
    def of(cls, settings: Settings) -> FirecrackerOptions:
        """From the settings; what they do not say is looked for on the PATH and in our private folder."""
        private = private_folder(settings)

        def program(name: str) -> Path:
            wanted: Path | None = getattr(settings, name, None)
            found = shutil.which(name)
            return wanted or (Path(found) if found else private / name)

        kernel: Path | None = getattr(settings, "kernel", None)
        return cls(
            program("firecracker"),
            program("jailer"),
            kernel or private / "vmlinux",
            jail=bool(getattr(settings, "jail", True)),
            accept_emulated=str(settings.backend) == "firecracker",
        )

    @property
    def jailed(self) -> bool:
        """Machines run in the jail."""
        return self.jail and os.getuid() == 0


def private_folder(settings: Settings) -> Path:
    """Where Emberbox itself installs Firecracker and the kernel."""
    return settings.cache_dir / "firecracker" / PINNED_VERSION


def kvm_problem(options: FirecrackerOptions) -> tuple[str, str] | None:
    """Why this host's KVM cannot be used, and what to do; None where it can."""
    if not options.kvm.exists():
        return f"{options.kvm} is not there", _NO_KVM
    if not os.access(options.kvm, os.R_OK | os.W_OK):
        return f"{options.kvm} may not be opened", "Run as root, or add this user to the group kvm."
    if emulated() and not options.accept_emulated:
        return EMULATED, "Use a host with hardware KVM; `backend = firecracker` takes this one all the same."
    return None


def find_problem(options: FirecrackerOptions) -> tuple[str, str] | None:
    """Why machines cannot run here, and what to do; None where nothing stands in the way. Starts no machine."""
    if (problem := kvm_problem(options)) is not None:
        return problem
    programs = [options.firecracker, *([options.jailer] if options.jailed else [])]
    for path in programs:
        if not path.is_file():
            return f"{path} is not there", "Run `emberbox setup --backend firecracker`."
    if not options.kernel.is_file():
        return f"{options.kernel} is not there", "Build a guest kernel: kernel/build.sh (kernel/README.md)."
    for path in programs:
        if not os.access(path, os.X_OK):
            return f"{path} is not executable", f"chmod +x {path}"
    return None


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


def version_of(program: Path) -> str | None:
    """What a firecracker or jailer program says of itself, `1.12.1`; None if it does not answer."""
    try:
        answer = subprocess.run(
            [program, "--version"], capture_output=True, timeout=20, check=True, env={"PATH": "/usr/bin"}
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = _VERSION.search(answer.stdout.decode("utf-8", "replace"))
    return found[1] if found else None
