"""Builds the minimal guest kernel from Debian's source of Linux, by the recipe in `kernel/` (kernel/README.md)."""

from __future__ import annotations

import asyncio
import collections
import hashlib
import importlib.resources
import os
import shutil
import subprocess
from pathlib import Path
from typing import IO

from emberbox.config import Settings
from emberbox.errors import ConfigError, ImageError
from emberbox.host.rundir import make_run_dir
from emberbox.host.spawner import Spawner
from emberbox.images.builder import clear_dead_builds, end_of_build, exclusively
from emberbox.images.kernel import (
    VMLINUX,
    GuestKernel,
    KernelManifest,
    kernels_folder,
    key_of,
    load,
    release_of,
    save,
)
from emberbox.images.store import Progress, no_progress

SOURCE = Path("/usr/src/linux-source-6.1.tar.xz")
_SOURCE_PACKAGE = "linux-source-6.1"
_PROGRAMS = {
    "bash": "bash", "tar": "tar", "xz": "xz-utils", "patch": "patch", "make": "make", "gcc": "gcc", "ld": "binutils",
    "strip": "binutils", "flex": "flex", "bison": "bison", "bc": "bc", "awk": "mawk",
}  # fmt: skip
"""What the recipe runs, and the packages that have it."""
_HEADERS = {"gelf.h": "libelf-dev", "stdio.h": "libc6-dev"}
_STEPS = {"hardware": 1580, "emulated": 1300}
"""Lines that make prints, about: for the bar."""
_COUNTED = ("CC", "AS", "AR", "LD", "HOSTCC", "GEN")
_SECONDS = 2 * 3600.0
_SPACE = 3 << 30
"""Bytes that the unpacked source and the objects take."""
_LINE_KEPT, _LINES_KEPT = 400, 60
_CHUNK = 1 << 16


async def build_kernel(
    settings: Settings, *, emulated: bool = False, source: Path | None = None, progress: Progress = no_progress
) -> GuestKernel:
    """The kernel of the recipe, built now where it is not in the cache (some minutes).

    Args:
        settings: name the cache directory.
        emulated: the variant for hosts whose KVM emulates the guest's kernel mode, for tests only.
        source: archive of the source; by default where Debian's package has it.
        progress: told what is being done.

    Raises:
        ImageError: packages or space are missing (the message says which), or the build failed (it has the end of the
            output); nothing is left.
    """
    recipe, archive = recipe_folder(), source or SOURCE
    missing = await asyncio.to_thread(missing_packages, archive)
    if missing:
        raise ImageError(
            f"To build a kernel, these packages are missing: {', '.join(missing)}.",
            remediation=f"Install them: apt-get install {' '.join(missing)}",
            details={"packages": missing},
        )
    variant = "emulated" if emulated else "hardware"
    progress("reading the source", 0.0)
    made_from = await asyncio.to_thread(_inputs, recipe, archive, variant)
    folder = kernels_folder(settings) / f"built-{variant}-{key_of(made_from)}"
    if (found := load(folder)) is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ImageError(f"Cannot make {folder.parent}: {exc.strerror}.") from exc
    async with exclusively(folder.parent / f".{folder.name}.lock", progress, "builds the same kernel"):
        if (found := load(folder)) is not None:
            return found
        return await _build(folder, recipe, archive, KernelManifest.of_build(variant, made_from), progress)


def recipe_folder() -> Path:
    """Where the recipe is: in the installed package, or in the checkout beside the source.

    Raises:
        ImageError: it is nowhere.
    """
    packed = importlib.resources.files("emberbox.images") / "kernel_recipe"
    for folder in (Path(str(packed)), Path(__file__).parents[3] / "kernel"):
        if (folder / "build.sh").is_file():
            return folder
    raise ImageError("The recipe of the kernel is not installed.", remediation="Install emberbox again.")


def missing_packages(source: Path = SOURCE) -> list[str]:
    """Debian packages that a build would lack on this host."""
    missing = {package for program, package in _PROGRAMS.items() if shutil.which(program) is None}
    if shutil.which("gcc") is not None:
        for header, package in _HEADERS.items():
            look = ["gcc", "-E", "-include", header, "-x", "c", os.devnull]
            if subprocess.run(look, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False).returncode:
                missing.add(package)
    if not source.is_file():
        if source != SOURCE:
            raise ImageError(f"There is no archive {source}.", remediation="Give a linux-source-….tar.xz.")
        missing.add(_SOURCE_PACKAGE)
    return sorted(missing)


def _inputs(recipe: Path, archive: Path, variant: str) -> dict[str, str]:
    """What the kernel is made from, by digests."""
    last = "emukvm.patch" if variant == "emulated" else "hardware.config"
    found = {"variant": variant}
    for path in (recipe / "build.sh", recipe / "frag.config", recipe / last, archive):
        try:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as exc:
            raise ImageError(f"{path} cannot be read: {exc.strerror}.") from exc
    return found


async def _build(
    folder: Path, recipe: Path, archive: Path, manifest: KernelManifest, progress: Progress
) -> GuestKernel:
    building = folder.parent / "building"
    await asyncio.to_thread(clear_dead_builds, building)
    try:
        free = shutil.disk_usage(folder.parent).free
        if free < _SPACE:
            raise ImageError(
                f"{folder.parent} has {free >> 20} MiB left; a build takes {_SPACE >> 20}.",
                remediation="Make space, or set cache_dir (EMBERBOX_CACHE_DIR) to a larger file system.",
            )
        run_dir = make_run_dir(building, socket_paths=False)
    except ConfigError as exc:
        raise ImageError(exc.message) from exc
    spawner: Spawner | None = None
    try:
        made, tmp = run_dir.path / "kernel", run_dir.path / "tmp"
        made.mkdir()
        tmp.mkdir()
        spawner = await Spawner.start(run_dir.path, run_dir.lock_fd, user_namespace=False)
        async with asyncio.timeout(_SECONDS):
            await _run(spawner, recipe, archive, made / VMLINUX, tmp, manifest, progress)
        return await asyncio.to_thread(_finish, made, folder, manifest)
    except TimeoutError as exc:
        raise ImageError(f"The build of the kernel took more than {_SECONDS / 60:.0f} minutes.") from exc
    except OSError as exc:
        raise ImageError(f"The build of the kernel failed: {exc}.") from exc
    finally:
        await asyncio.shield(asyncio.ensure_future(end_of_build(spawner, run_dir)))


def _finish(made: Path, folder: Path, manifest: KernelManifest) -> GuestKernel:
    return save(made, folder, manifest.model_copy(update={"release": release_of(made / VMLINUX)}))


async def _run(
    spawner: Spawner, recipe: Path, archive: Path, target: Path, tmp: Path, manifest: KernelManifest, progress: Progress
) -> None:
    """Run the recipe and turn its lines into progress; raises ImageError."""
    argv = ["bash", str(recipe / "build.sh"), *(["--emulated"] if manifest.variant == "emulated" else []), str(target)]
    env = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "TMPDIR": str(tmp),
        "LC_ALL": "C.UTF-8",
        "SOURCE": str(archive),
        "HOME": str(tmp),
    }
    lines = _Lines(_STEPS[manifest.variant], progress)
    progress("unpacking the source", 0.02)
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb", buffering=0) as pipe:
        try:
            with Path(os.devnull).open("rb") as null:
                process = await spawner.spawn(
                    argv, stdin=null.fileno(), stdout=write_fd, stderr=write_fd, env=env, cwd=str(tmp)
                )
        finally:
            os.close(write_fd)
        await lines.read(pipe)
        status = await asyncio.shield(process.ended)
    if status != 0:
        raise ImageError(
            f"The build of the kernel ended with status {status}:\n{lines.tail()}",
            remediation="Look at the last lines: is a package missing, or the disk full?",
            details={"status": status},
        )


class _Lines:
    """What a build prints: counted for the bar, and the last lines kept."""

    def __init__(self, expected: int, progress: Progress) -> None:
        self._expected, self._progress = expected, progress
        self._count = 0
        self._rest = b""
        self._kept: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)

    async def read(self, pipe: IO[bytes]) -> None:
        """Read until the other end is closed."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            while data := await reader.read(_CHUNK) or (self._rest and b"\n"):
                *lines, rest = (self._rest + data).split(b"\n")
                self._rest = rest[:_LINE_KEPT]
                for line in lines:
                    self._take(line[:_LINE_KEPT].decode("utf-8", "replace").rstrip())
        finally:
            transport.close()

    def _take(self, line: str) -> None:
        if not line.strip():
            return
        self._kept.append(line)
        if line.strip().partition(" ")[0] in _COUNTED:
            self._count += 1
            done = min(1.0, self._count / self._expected)
            # where there is no bar, each message is a line: ten of them say as much
            self._progress(f"compiling, {int(done * 10) * 10} % done", 0.1 + 0.88 * done)

    def tail(self) -> str:
        """The last lines, at most 1,500 characters."""
        return "\n".join(self._kept)[-1500:]
