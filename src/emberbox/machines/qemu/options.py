"""What the back end needs of the settings, and what it finds on the host."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from emberbox.config import Settings
from emberbox.host.programs import version_text
from emberbox.machines.microvm.processor import emulated

PROGRAM = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"
OLDEST = (7, 2)
TESTED = "7.2"
_VERSION = re.compile(r"version (\d+)\.(\d+)(\.\d+)?(.*)")
_SETUP = "Run `emberbox setup --backend qemu`."
_USE_TCG = (
    'Set `qemu_accel = "tcg"` (EMBERBOX_QEMU_ACCEL) for full emulation, which is slow; or use the gvisor back end.'
)
EMULATED = "KVM present, guest kernel mode is emulated, which QEMU cannot use"

Accel = Literal["kvm", "tcg"]


@dataclass(frozen=True, slots=True)
class QemuOptions:
    """Where things are and how machines are confined."""

    qemu: Path
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    kvm: Path = Path("/dev/kvm")
    confine: bool = True
    """Give each machine a uid, namespaces and a root directory of its own; possible for root only."""
    first_uid: int = 1_900_100_000
    """Machines run as this uid and gid or one of the `uids` after it."""
    uids: int = 65_536

    @classmethod
    def of(cls, settings: Settings) -> QemuOptions:
        """From the settings; the program is looked for on the PATH unless they name it."""
        found = settings.qemu or shutil.which(PROGRAM)
        return cls(Path(found) if found else Path("/usr/bin") / PROGRAM, settings.qemu_accel)

    @property
    def confined(self) -> bool:
        """Machines have a uid of their own."""
        return self.confine and os.getuid() == 0

    @property
    def chosen(self) -> Accel:
        """What machines run by, if they can."""
        return "tcg" if self.accel == "tcg" else "kvm"


def find_problem(options: QemuOptions) -> tuple[str, str] | None:
    """Why machines cannot run here, and what to do; None where nothing stands in the way. Starts no machine."""
    if (problem := host_problem(options)) is not None:
        return problem
    if not options.qemu.is_file():
        return f"{options.qemu} is not there", f"{_SETUP} It installs the package {PACKAGE}."
    if not os.access(options.qemu, os.X_OK):
        return f"{options.qemu} is not executable", f"chmod +x {options.qemu}"
    return None


def host_problem(options: QemuOptions) -> tuple[str, str] | None:
    """The same of the host itself, which no installation mends."""
    if os.uname().machine != "x86_64":
        return f"this host is {os.uname().machine}, and machines are x86-64", "Use the gvisor back end."
    return _kvm_problem(options) if options.chosen == "kvm" else None


def _kvm_problem(options: QemuOptions) -> tuple[str, str] | None:
    if not options.kvm.exists():
        return f"{options.kvm} is not there", _USE_TCG
    if not os.access(options.kvm, os.R_OK | os.W_OK):
        return f"{options.kvm} may not be opened", f"Run as root, or add this user to the group kvm. {_USE_TCG}"
    if emulated():
        return EMULATED, _USE_TCG
    return None


@dataclass(frozen=True, slots=True)
class Version:
    """What QEMU says of itself."""

    text: str
    """All of it, `7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`: the format of the devices' state is each build's own."""
    number: tuple[int, int]


def version_of(program: Path) -> Version | None:
    """Ask a program; None if it does not answer as QEMU does."""
    try:
        found = _VERSION.search(version_text(program))
    except (OSError, subprocess.SubprocessError):
        return None
    if found is None:
        return None
    text = f"{found[1]}.{found[2]}{found[3] or ''}{found[4]}".strip()
    return Version(text[:120], (int(found[1]), int(found[2])))


@lru_cache(maxsize=1)
def tsc_khz() -> int | None:
    """How fast this processor's time stamp counter runs, which an emulated guest reads; None where it cannot be told.
    A guest that has to find it out itself hangs now and then. Takes a tenth of a second, once."""
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    code.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))  # rdtsc; shl rdx, 32; or rax, rdx; ret
    start = ctypes.addressof(ctypes.c_char.from_buffer(code))
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(start)
    began, first = time.monotonic_ns(), read()
    time.sleep(0.1)
    ended, last = time.monotonic_ns(), read()
    return int((last - first) * 1_000_000 / (ended - began))
