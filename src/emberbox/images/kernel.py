"""The kernel that virtual machines start: named in the settings, built here, or Debian's.

Each is a folder below `<cache_dir>/kernels` with the uncompressed kernel, an initramfs where its drivers are modules,
and `kernel.json`, which says what they are made from and how they must look. Folders appear by a rename, whole or not
at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from emberbox.config import Settings
from emberbox.errors import ImageError
from emberbox.images.bzimage import is_bzimage, is_vmlinux
from emberbox.images.store import Progress, no_progress

Origin = Literal["setting", "built", "debian"]
VMLINUX, INITRD, MANIFEST = "vmlinux", "initrd", "kernel.json"
_BANNER = re.compile(rb"Linux version (\d[\w.+~-]{0,80}) ")
_CHUNK = 1 << 20
_LOCK_SECONDS = 3600.0
_MOST_KEPT = 2
"""Of each kind; machines of another version of Emberbox may use the one before."""


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """A kernel that machines can start."""

    vmlinux: Path
    """Uncompressed, an ELF program."""
    initrd: Path | None
    """An initramfs that loads drivers and goes over to the root disk /dev/vda; None where the kernel needs none."""
    release: str
    """As `uname -r` prints it; empty where the file does not say."""
    origin: Origin


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    sha256: str
    mtime_ns: int


class KernelManifest(BaseModel):
    """kernel.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    release: str
    origin: Origin
    variant: str = ""
    """Of a built one: `hardware` or `emulated`."""
    made_from: dict[str, str]
    files: dict[str, _File] = {}

    @classmethod
    def of_build(cls, variant: str, made_from: dict[str, str]) -> KernelManifest:
        """Of a kernel that is about to be built; its release is known afterwards."""
        return cls(release="", origin="built", variant=variant, made_from=made_from)


def kernels_folder(settings: Settings) -> Path:
    """Where kernels are kept."""
    return settings.cache_dir / "kernels"


def find_kernel(settings: Settings, *, emulated: bool = False) -> GuestKernel | None:
    """The kernel for this host's machines, or None where there is none yet. Downloads and builds nothing.

    The order: the setting `kernel`; one that `emberbox image build-kernel` made; Debian's.

    Args:
        emulated: the host's KVM emulates the guest's kernel mode (kernel/README.md): only a kernel that was built for
            that, or the one of the settings, will do.

    Raises:
        ImageError: the setting `kernel` names something that is no uncompressed kernel.
    """
    named: Path | None = settings.kernel
    if named is not None:
        check_vmlinux(named)
        return GuestKernel(named, None, release_of(named), "setting")
    wanted = ("built-emulated",) if emulated else ("built-hardware", "debian")
    for kind in wanted:
        for folder in _newest_first(kernels_folder(settings), kind):
            kernel = load(folder)
            if kernel is not None:
                return kernel
    return None


def find_debian_kernel(settings: Settings) -> GuestKernel | None:
    """Debian's kernel in the cache, whatever else there is."""
    return next(filter(None, map(load, _newest_first(kernels_folder(settings), "debian"))), None)


def load(folder: Path) -> GuestKernel | None:
    """The kernel of a folder, or None where it is not whole. Files that were not touched since they were written are
    not read; others must have their digest."""
    try:
        manifest = KernelManifest.model_validate_json((folder / MANIFEST).read_bytes())
        if VMLINUX not in manifest.files:
            return None
        for name, wanted in manifest.files.items():
            path = folder / Path(name).name
            info = path.stat()
            if info.st_size != wanted.size:
                return None
            if info.st_mtime_ns != wanted.mtime_ns and _digest(path) != wanted.sha256:
                return None
    except (OSError, ValidationError):
        return None
    initrd = folder / INITRD if INITRD in manifest.files else None
    return GuestKernel(folder / VMLINUX, initrd, manifest.release, manifest.origin)


def save(building: Path, folder: Path, manifest: KernelManifest) -> GuestKernel:
    """Make the files in `building` the kernel of `folder`, in place of what is there; older ones of its kind go.

    Raises:
        OSError: the disk refused.
        ImageError: what was written is not what was read back.
    """
    files = {}
    for name in (VMLINUX, INITRD):
        path = building / name
        if path.is_file():
            path.chmod(0o444)
            info = path.stat()
            files[name] = _File(size=info.st_size, sha256=_digest(path), mtime_ns=info.st_mtime_ns)
    whole = manifest.model_copy(update={"files": files})
    (building / MANIFEST).write_text(whole.model_dump_json(indent=1), encoding="utf-8")
    building.chmod(0o755)
    os.sync()  # the rename that follows must not reach the disk before the files
    with contextlib.suppress(FileNotFoundError):  # at no moment is there half of one; `making` removes what is left
        folder.rename(building.with_name(f"{building.name}.old"))
    building.rename(folder)
    shutil.rmtree(building.with_name(f"{building.name}.old"), ignore_errors=True)
    kernel = load(folder)
    if kernel is None:
        raise ImageError(f"The kernel in {folder} is not what was written.", remediation="Look after the disk.")
    for old in _newest_first(folder.parent, _kind(folder))[_MOST_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return kernel


def key_of(made_from: Mapping[str, str]) -> str:
    """Names a folder: the same parts give the same key."""
    words = "\0".join(f"{name}={value}" for name, value in sorted(made_from.items()))
    return hashlib.sha256(words.encode()).hexdigest()[:12]


@contextlib.contextmanager
def making(settings: Settings, progress: Progress = no_progress) -> Iterator[Path]:
    """A new folder to make a kernel in, one maker at a time; afterwards it is gone, unless it was renamed.

    Raises:
        ImageError: the folder cannot be made, or another maker did not end within an hour.
    """
    parent = kernels_folder(settings)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(parent / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ImageError(f"Cannot make {parent}: {exc.strerror}.") from exc
    try:
        _lock(fd, parent, progress)
        for left in parent.glob(".new-*"):  # of makers that were killed: whoever holds the lock is alone
            shutil.rmtree(left, ignore_errors=True)
        building = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        try:
            yield building
        finally:
            shutil.rmtree(building, ignore_errors=True)
    finally:
        os.close(fd)


def _lock(fd: int, parent: Path, progress: Progress) -> None:
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise ImageError(f"Another process has been making a kernel in {parent} for too long.") from None
            progress("waiting for another process that makes a kernel", None)
            time.sleep(0.2)
        else:
            return


def _kind(folder: Path) -> str:
    return folder.name.rpartition("-")[0]


def _newest_first(parent: Path, kind: str) -> list[Path]:
    """The folders of one kind: `debian`, `built-hardware`, `built-emulated`."""
    found = []
    for path in parent.glob(f"{kind}-*"):
        with contextlib.suppress(OSError):
            found.append(((path / MANIFEST).stat().st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_vmlinux(path: Path) -> None:
    """Whether a file is a kernel as machines want it, uncompressed.

    Raises:
        ImageError: it is not; the message says what it is, as far as its first bytes tell.
    """
    remedy = (
        "Give an uncompressed vmlinux (ELF, x86-64), or remove the setting `kernel`: `emberbox image build-kernel` "
        "builds one, `emberbox image fetch-kernel` fetches Debian's."
    )
    try:
        with path.open("rb") as file:
            head = file.read(0x206)
    except OSError as exc:
        raise ImageError(f"The guest kernel {path} cannot be read: {exc.strerror}.", remediation=remedy) from exc
    if is_bzimage(head):
        raise ImageError(f"The guest kernel {path} is compressed (a bzImage).", remediation=remedy)
    if not is_vmlinux(head[:20]):
        raise ImageError(f"{path} is no kernel (an ELF program for x86-64).", remediation=remedy)


def release_of(vmlinux: Path) -> str:
    """The release in a kernel's banner (init/version.c of Linux), or nothing; raises OSError."""
    before = b""
    with vmlinux.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found = _BANNER.search(before + chunk)
            if found:
                return found[1].decode("ascii")
            before = chunk[-128:]
    return ""
