"""What the back end needs of the settings, and where its programs are."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from emberbox.config import Settings
from emberbox.errors import ImageError
from emberbox.host.programs import version_text
from emberbox.images.kernel import check_vmlinux, find_kernel
from emberbox.machines.microvm.processor import emulated

PINNED_VERSION = "1.12.1"
"""The version that the tests and the figures are from. Others with the same first two numbers may work; the format of
snapshots is each version's own."""
_VERSION = re.compile(r"v?(\d+\.\d+\.\d+)")
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
    """Uncompressed."""
    initrd: Path | None = None
    """Loads the kernel's drivers, where it is one with modules."""
    kvm: Path = Path("/dev/kvm")
    jail: bool = True
    """Confine Firecracker by its jailer; possible for root only."""
    accept_emulated: bool = False
    """Use a KVM that emulates the guest's kernel mode, which is a hundred times slower and only for tests."""
    first_uid: int = 1_900_000_000
    """Machines in the jail run as this uid and gid or one of the `uids` after it."""
    uids: int = 65_536

    @classmethod
    def of(cls, settings: Settings) -> FirecrackerOptions:
        """From the settings; what they do not say is looked for on the PATH and in our private folder."""
        private = private_folder(settings)

        def program(name: str) -> Path:
            wanted: Path | None = getattr(settings, name, None)
            on_path = shutil.which(name)
            return wanted or (Path(on_path) if on_path else private / name)

        kernel = initrd = None
        with contextlib.suppress(ImageError):  # `find_problem` says it
            found = find_kernel(settings, emulated=emulated())
            if found is not None:
                kernel, initrd = found.vmlinux, found.initrd
        return cls(
            program("firecracker"),
            program("jailer"),
            kernel or settings.kernel or private / "vmlinux",
            initrd,
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


def kernel_problem(options: FirecrackerOptions) -> tuple[str, str] | None:
    """Why the guest kernel cannot be used, and what to do; None where nothing is seen."""
    if not options.kernel.is_file():
        how = "emberbox image build-kernel" + (" --emulated" if emulated() else "")
        return f"there is no guest kernel {options.kernel}", f"Build one: {how} (kernel/README.md)."
    try:
        check_vmlinux(options.kernel)
    except ImageError as exc:
        return exc.message.rstrip("."), exc.remediation
    return None


def find_problem(options: FirecrackerOptions) -> tuple[str, str] | None:
    """Why machines cannot run here, and what to do; None where nothing stands in the way. Starts no machine."""
    if (problem := kvm_problem(options)) is not None:
        return problem
    programs = [options.firecracker, *([options.jailer] if options.jailed else [])]
    for path in programs:
        if not path.is_file():
            return f"{path} is not there", "Run `emberbox setup --backend firecracker`."
    if (problem := kernel_problem(options)) is not None:
        return problem
    for path in programs:
        if not os.access(path, os.X_OK):
            return f"{path} is not executable", f"chmod +x {path}"
    return None


def version_of(program: Path) -> str | None:
    """What a firecracker or jailer program says of itself, `1.12.1`; None if it does not answer."""
    try:
        found = _VERSION.search(version_text(program))
    except (OSError, subprocess.SubprocessError):
        return None
    return found[1] if found else None
