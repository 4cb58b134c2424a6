"""Debian's cloud kernel as a guest kernel: its package and busybox-static, turned into vmlinux and an initramfs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emberbox.config import Settings
from emberbox.errors import ImageError, VmNotAvailable
from emberbox.host.apt import download_packages, package_fields, unpack_package
from emberbox.images import initramfs
from emberbox.images.bzimage import extract_vmlinux
from emberbox.images.kernel import (
    INITRD,
    MANIFEST,
    VMLINUX,
    GuestKernel,
    KernelManifest,
    find_debian_kernel,
    kernels_folder,
    key_of,
    load,
    making,
    save,
)
from emberbox.images.store import Progress, no_progress

_RECIPE = "1"
"""Of what is made from the packages; a new number makes new kernels of old packages."""
_META, _BUSYBOX = "linux-image-cloud-amd64", "busybox-static"
_REAL = re.compile(r"linux-image-\d[\w.+~-]*")
_ARCHITECTURE = "amd64"
_REMEDY = (
    f"Give both packages as files: emberbox image fetch-kernel linux-image-…-cloud-{_ARCHITECTURE}_….deb "
    f"{_BUSYBOX}_….deb"
)


def ensure_debian_kernel(
    settings: Settings,
    *,
    packages: Sequence[Path] = (),
    refresh: bool = False,
    progress: Progress = no_progress,
) -> GuestKernel:
    """Debian's kernel, made now where it is not in the cache (about 12 MB to download, some seconds to unpack).

    Blocks; call it in a thread. apt checks the signatures of what it downloads; files that are given are taken as they
    are.

    Args:
        settings: name the cache directory.
        packages: files of the packages linux-image-…-cloud-amd64 and busybox-static, for hosts without a network.
        refresh: ask apt for the newest even if there is one in the cache.
        progress: told what is being done.

    Raises:
        ImageError: a package cannot be had, is another one or is damaged, or the disk is full; nothing is left.
    """
    if not packages and not refresh and (found := find_debian_kernel(settings)) is not None:
        return found
    with making(settings, progress) as building:
        if not packages and not refresh and (found := find_debian_kernel(settings)) is not None:
            return found  # another process made it meanwhile
        try:
            with tempfile.TemporaryDirectory(prefix=".new-", dir=building.parent) as work:
                return _make(settings, packages, building, Path(work), progress)
        except VmNotAvailable as exc:
            raise ImageError(f"Debian's kernel cannot be had: {exc.message}", remediation=_remedy(exc)) from exc
        except OSError as exc:
            raise ImageError(f"Cannot make a kernel in {building.parent}: {exc.strerror or exc}.") from exc


def _remedy(exc: VmNotAvailable) -> str:
    own = exc.remediation if exc.remediation != VmNotAvailable.default_remediation else ""
    return f"{own} {_REMEDY}".strip()


def _make(settings: Settings, packages: Sequence[Path], building: Path, work: Path, progress: Progress) -> GuestKernel:
    kernel_deb, busybox_deb = _given(packages) if packages else _fetched(work, progress)
    made_from = {"recipe": _RECIPE}
    for deb in (kernel_deb, busybox_deb):
        fields = package_fields(deb, "Package", "Version")
        made_from[fields["Package"]] = fields["Version"]
    folder = kernels_folder(settings) / f"debian-{key_of(made_from)}"
    if (found := load(folder)) is not None:
        (folder / MANIFEST).touch()  # the newest is the one that was asked for last
        return found
    for deb, name in ((kernel_deb, "kernel"), (busybox_deb, "busybox")):
        progress(f"unpacking {deb.name}", 0.5)
        unpack_package(deb, work / name)
    image, tree = _parts(work / "kernel")
    progress("unpacking the kernel", 0.7)
    (building / VMLINUX).write_bytes(extract_vmlinux(image.read_bytes(), image.name))
    progress("making the initramfs", 0.9)
    busybox = _one(work / "busybox", ("bin/busybox", "usr/bin/busybox"), _BUSYBOX)
    (building / INITRD).write_bytes(initramfs.build(busybox.read_bytes(), initramfs.modules_of(tree)))
    manifest = KernelManifest(release=tree.name, origin="debian", made_from=made_from)
    kernel = save(building, folder, manifest)
    progress("finished", 1.0)
    return kernel


def _fetched(work: Path, progress: Progress) -> tuple[Path, Path]:
    """Both packages by apt. Which kernel is the current one, an empty package says that depends on it."""

    def say(message: str) -> None:
        progress(message, 0.1)

    meta, busybox = download_packages([_META, _BUSYBOX], work, say)
    depends = package_fields(meta, "Depends")["Depends"]
    found = _REAL.search(depends)
    if found is None:
        raise ImageError(f"The package {_META} depends on no kernel: {depends!r}.", remediation=_REMEDY)
    (kernel,) = download_packages([found[0]], work, say)
    return kernel, busybox


def _given(packages: Sequence[Path]) -> tuple[Path, Path]:
    """Which of the files is which; raises ImageError, VmNotAvailable."""
    kernel = busybox = None
    for deb in packages:
        fields = package_fields(deb, "Package", "Architecture")
        if fields["Architecture"] != _ARCHITECTURE:
            raise ImageError(f"{deb} is for {fields['Architecture']}, not {_ARCHITECTURE}.", remediation=_REMEDY)
        if fields["Package"] == _BUSYBOX:
            busybox = deb
        elif _REAL.fullmatch(fields["Package"]):
            kernel = deb
        else:
            raise ImageError(
                f"{deb} is the package {fields['Package']}: no kernel, and not {_BUSYBOX}.", remediation=_REMEDY
            )
    if kernel is None or busybox is None:
        missing = "a kernel (linux-image-…-cloud-amd64)" if kernel is None else _BUSYBOX
        raise ImageError(f"Among the files that were given is no package of {missing}.", remediation=_REMEDY)
    return kernel, busybox


def _parts(root: Path) -> tuple[Path, Path]:
    """The kernel image of an unpacked package, and the folder of its modules."""
    for image in sorted(root.glob("boot/vmlinuz-*")):
        release = image.name.removeprefix("vmlinuz-")
        for tree in (root / "lib/modules" / release, root / "usr/lib/modules" / release):
            if tree.is_dir():
                return image, tree
    raise ImageError("The package of the kernel holds no kernel with modules.", remediation=_REMEDY)


def _one(root: Path, names: Sequence[str], package: str) -> Path:
    for name in names:
        path = root / name
        if path.is_file() and not path.is_symlink():
            return path
    raise ImageError(f"The package {package} has no {names[0]}.", remediation=_REMEDY)
