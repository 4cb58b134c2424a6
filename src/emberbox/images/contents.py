"""What stands in a root file system: the last touches of a build, and the lists for its manifest.

Paths inside an image are never followed blindly: an absolute symbolic link in it would lead out to the host.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from emberbox.errors import ImageError

if TYPE_CHECKING:
    from emberbox.images.template import Template

SKELETON = "/opt/emberbox/skel"
"""Template files for the home directory wait here: the home directory itself is a fresh tmpfs in every machine."""
HOME = "/home/user"
_NOT_PERSISTENT = ("/tmp", "/run", "/dev", "/proc", "/sys")  # noqa: S108 (paths of the guest)
_DIRECTORIES = (HOME, "/opt/emberbox/guest", *_NOT_PERSISTENT)
_MAX_LINKS = 40


def prepare_rootfs(rootfs: Path, template: Template) -> None:
    """The last touches: mount points, the user, names, no set-uid programs, the template's files."""
    for path in (*_DIRECTORIES, *template.writable):
        _make_dir(rootfs, inside(rootfs, path))
    _append(rootfs, "/etc/passwd", "user:x:1000:1000::/home/user:/bin/bash\n")
    _append(rootfs, "/etc/group", "user:x:1000:\n")
    write_file(rootfs, "/etc/hostname", b"emberbox\n")
    write_file(rootfs, "/etc/hosts", b"127.0.0.1 localhost emberbox\n::1 localhost\n")
    write_file(rootfs, "/etc/resolv.conf", b"")
    write_file(rootfs, "/etc/machine-id", b"")
    _drop_privileged_modes(rootfs)
    for file in template.files:
        path = file.path
        there = f"/{inside(rootfs, path).relative_to(rootfs)}"  # /var/run/x is in /run
        if any(there == top or there.startswith(f"{top}/") for top in _NOT_PERSISTENT):
            raise ImageError(f"Template {template.name!r} puts a file at {path}, which is empty in every machine.")
        if path.startswith(f"{HOME}/"):
            path = SKELETON + path.removeprefix(HOME)
        write_file(rootfs, path, file.data(template.directory), file.mode)
    for path, target in template.links.items():
        link = inside(rootfs, str(PurePosixPath(path).parent)) / PurePosixPath(path).name
        _make_dir(rootfs, link.parent)
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def inside(rootfs: Path, path: str) -> Path:
    """The host path of a guest path, with the image's symbolic links resolved as the guest would resolve them.

    Raises:
        ImageError: too many links.
    """
    todo = list(PurePosixPath(path).parts[1:])
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop(0)
        if part in ("", ".", "/"):
            continue
        if part == "..":
            done = done[:-1]
            continue
        here = rootfs.joinpath(*done, part)
        if here.is_symlink():
            links += 1
            if links > _MAX_LINKS:
                raise ImageError(f"Too many symbolic links in the image at {path}.")
            target = PurePosixPath(here.readlink())
            if target.is_absolute():
                done = []
            todo = [p for p in target.parts if p != "/"] + todo
        else:
            done.append(part)
    return rootfs.joinpath(*done)


def write_file(rootfs: Path, path: str, data: bytes, mode: int = 0o644) -> None:
    """Write a file of the image, and the folders above it; raises ImageError: too many symbolic links."""
    _make_dir(rootfs, inside(rootfs, str(PurePosixPath(path).parent)))
    target = inside(rootfs, path)
    _make_dir(rootfs, target.parent)
    target.write_bytes(data)
    target.chmod(mode)


def _make_dir(rootfs: Path, folder: Path) -> None:
    """Make a folder and its parents as everybody in the guest may enter them, whatever the umask of who builds."""
    if folder.exists():
        return
    if folder != rootfs:
        _make_dir(rootfs, folder.parent)
    folder.mkdir()
    folder.chmod(0o755)


def _append(rootfs: Path, path: str, line: str) -> None:
    target = inside(rootfs, path)
    old = target.read_text(encoding="utf-8") if target.exists() else ""
    if not any(existing.startswith("user:") for existing in old.splitlines()):
        write_file(rootfs, path, (old + line).encode())


def _drop_privileged_modes(rootfs: Path) -> None:
    """User code gains no rights by set-uid programs; the sandbox forbids it as well."""
    for entry in _files(rootfs):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            Path(entry.path).chmod(stat.S_IMODE(mode) & 0o777)


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    stack = [str(folder)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                elif not entry.is_symlink():
                    yield entry


def adopt_programs(rootfs: Path, folder: Path) -> None:
    """Move the programs that pip has installed to /usr/local/bin, to be run by the image's Python."""
    programs = list(folder.iterdir()) if folder.is_dir() else []
    for program in programs:
        data = program.read_bytes()
        if data.startswith(b"#!"):
            data = b"#!/usr/bin/python3\n" + data.partition(b"\n")[2]
        write_file(rootfs, f"/usr/local/bin/{program.name}", data, 0o755)
        program.unlink()
    if programs:
        folder.rmdir()


def size_of(folder: Path) -> int:
    """Bytes on disk of all regular files."""
    return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in _files(folder))


def python_version(rootfs: Path) -> str:
    """`3.11` and the like, of the image's `python3`."""
    target = inside(rootfs, "/usr/bin/python3").name
    match = re.fullmatch(r"python(3\.\d+)", target)
    if match is None:
        raise ImageError(f"The image has no Python 3 (/usr/bin/python3 is {target!r}).")
    return match[1]


def glibc_version(rootfs: Path) -> tuple[int, int]:
    """Major and minor number of the image's C library."""
    match = re.match(r"(\d+)\.(\d+)", debian_packages(rootfs).get("libc6", ""))
    if match is None:
        raise ImageError("The image has no package libc6: is it one of Debian?")
    return int(match[1]), int(match[2])


def debian_packages(rootfs: Path) -> dict[str, str]:
    """Installed packages and versions, from dpkg's status file (deb822, Debian Policy 5)."""
    found: dict[str, str] = {}
    path = inside(rootfs, "/var/lib/dpkg/status")
    if path.is_file():
        for paragraph in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            fields = dict(re.findall(r"(?m)^(Package|Version|Status): (.*)$", paragraph))
            if fields.get("Status", "").endswith(" installed"):
                found[fields["Package"]] = fields.get("Version", "")
    return found


def python_packages(rootfs: Path) -> dict[str, str]:
    """Installed distributions by normalised name (PEP 503), from their metadata."""
    from importlib.metadata import distributions

    folders = [
        inside(rootfs, "/usr/lib/python3/dist-packages"),
        inside(rootfs, f"/usr/local/lib/python{python_version(rootfs)}/dist-packages"),
    ]
    found: dict[str, str] = {}
    for distribution in distributions(path=[str(f) for f in folders]):
        name = distribution.metadata["Name"]
        if name:
            found[re.sub(r"[-_.]+", "-", name).lower()] = distribution.version
    return found


def npm_packages(rootfs: Path) -> dict[str, str]:
    """Packages that `require` finds from anywhere, with versions."""
    import json

    found: dict[str, str] = {}
    for top in ("/node_modules", "/usr/share/nodejs"):
        for name in _npm_names(rootfs, top):
            manifest = inside(rootfs, f"{top}/{name}/package.json")
            try:
                fields = json.loads(manifest.read_text(encoding="utf-8"))
                found.setdefault(str(fields["name"]), str(fields.get("version", "")))
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return found


def _npm_names(rootfs: Path, top: str) -> list[str]:
    names: list[str] = []
    for name in _names(inside(rootfs, top)):
        scoped = [f"{name}/{inner}" for inner in _names(inside(rootfs, f"{top}/{name}"))]
        names.extend(scoped if name.startswith("@") else [name])
    return names


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
