"""What QEMU may: limits, a uid, and a root directory of its own, with what of the host's files it needs."""

from __future__ import annotations

import resource
import stat
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from emberbox.errors import VmNotAvailable
from emberbox.host import confinement
from emberbox.host.spawner import Confinement, OwnRoot
from emberbox.machines.qemu.checkpoint import MOST_DEVICES
from emberbox.machines.qemu.options import QemuOptions

_OPEN_FILES, _THREADS = 512, 256
_SECONDS = 20.0
_LINKS = ("/lib", "/lib64", "/lib32", "/libx32", "/bin", "/sbin")
"""Into /usr, on most hosts: programs name their loader by them."""
_FIRMWARE = ("qemu", "seabios")
_CACHE = Path("/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/urandom")
_MOST_LINKS = 20


def limits_of(*, confined: bool) -> dict[int, int]:
    """Of setrlimit(2). Threads are counted by user: only one who is nobody else's has a limit of them."""
    found = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: MOST_DEVICES, resource.RLIMIT_NOFILE: _OPEN_FILES}
    return found | ({resource.RLIMIT_NPROC: _THREADS} if confined else {})


def rights(options: QemuOptions, directory: Path, uid: int | None) -> Confinement:
    """Of a machine in that folder; `uid` is its own, where it has one."""
    if uid is None:
        return Confinement(limits_of(confined=False))
    groups = [options.kvm.stat().st_gid] if options.chosen == "kvm" else []
    root = None
    if not root_problem(options):
        files = [*files_of(options.qemu), *([options.kvm] if options.chosen == "kvm" else [])]
        place = directory / "root"
        place.mkdir(mode=0o700, exist_ok=True)
        root = OwnRoot(place, files)
    return Confinement(limits_of(confined=True), uid, groups, namespaces=True, root=root)


def root_problem(options: QemuOptions) -> str:
    """Why machines have no root directory of their own; empty where they have."""
    try:
        files_of(options.qemu)
    except OSError as exc:
        return exc.strerror or str(exc)
    return refusal()


def check_readable(files: list[Path]) -> None:
    """A machine with a uid of its own reads them through a descriptor, and opens that once more.

    Raises:
        VmNotAvailable: others may not read one.
    """
    for path in files:
        if not path.stat().st_mode & stat.S_IROTH:
            raise VmNotAvailable(
                f"QEMU cannot be used: other users may not read {path}.", remediation=f"chmod a+r {path}"
            )


@lru_cache(maxsize=4)
def files_of(program: Path) -> tuple[Path, ...]:
    """The program, the folders of its libraries and of its firmware, and two devices; raises OSError: what it needs
    cannot be told."""
    with program.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            raise OSError(8, f"{program} is a script, and may need any file")
    try:
        answer = subprocess.run(["ldd", program], capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.SubprocessError as exc:
        raise OSError(5, f"ldd {program}: {exc}") from exc
    words = [Path(word) for word in answer.stdout.decode("utf-8", "replace").split() if word.startswith("/")]
    libraries = [path for path in words if path.is_file()]
    if answer.returncode == 0 and not libraries:
        raise OSError(2, f"ldd {program} names no library that is there")
    folders = {path.resolve().parent for path in libraries} | {path.parent.resolve() for path in libraries}
    shares = [prefix / "share" / name for prefix in _prefixes(program) for name in _FIRMWARE]
    shares += [Path("/usr/share") / name for name in _FIRMWARE]
    for share in shares:
        if share.is_dir():
            folders |= {share, *(path.resolve().parent for path in share.iterdir() if path.is_symlink())}
    links = [path for path in map(Path, _LINKS) if path.is_symlink()]
    steps = [step for path in libraries for step in _steps(path) if folders.isdisjoint(step.parent.resolve().parents)]
    links += [step for step in steps if step.is_symlink() and step.parent.resolve() not in folders]
    return (*links, *sorted(folders), *_steps(program), *filter(Path.exists, [_CACHE, *map(Path, _DEVICES)]))


def _prefixes(program: Path) -> list[Path]:
    """`/usr` of `/usr/bin/qemu-system-x86_64`, also where a link leads there."""
    return list(dict.fromkeys([program.parent.parent, program.resolve().parent.parent]))


def _steps(path: Path) -> list[Path]:
    """A file, and the links on the way to it (`/etc/alternatives` may be one)."""
    found = [path]
    while path.is_symlink() and len(found) < _MOST_LINKS:
        path = path.parent / path.readlink()
        found.append(path)
    return found


@lru_cache(maxsize=1)
def refusal() -> str:
    """Why this kernel gives no program a root directory and a pid namespace of its own; empty where it does. It is
    tried out, once."""
    with tempfile.TemporaryDirectory(prefix="emberbox-") as place:
        argv = [sys.executable, "-I", "-S", confinement.__file__, place]
        try:
            tried = subprocess.run(argv, capture_output=True, timeout=_SECONDS, check=False)
        except (OSError, subprocess.SubprocessError) as exc:
            return str(exc)
        said = tried.stderr.decode("utf-8", "replace").strip().splitlines()
        return "" if tried.returncode == 0 else (said[-1] if said else f"status {tried.returncode}")[:200]
