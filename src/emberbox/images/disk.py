"""The root disk of a virtual machine: an image's tree and the guest agent's source as one read-only ext4 file system.

Made by mke2fs and debugfs (e2fsprogs) without mounting anything, and kept beside the tree as
`root-<guest agent>-<format>.ext4`, with its SHA-256 in a file beside it. Identifiers and times in it are fixed, so that
the same tree read in the same order gives the same bytes: machines that are restored from a snapshot must find the very
disk that they had.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emberbox.errors import ImageError
from emberbox.images.store import Image, guest_files

_FORMAT = 1
_AGENT = "/opt/emberbox/guest"
_BLOCK = 4096
_INODE = 256
_ROOT = 2
_RESERVED = 10
"""Inodes up to here are the file system's own, but for that of the root directory."""
_SPARE_BLOCKS = 2048
_SPARE_INODES = 256
_TIMEOUT = 600.0
_MOST_KEPT = 3
_REMEDY = "Install the package e2fsprogs, and see that there is space beside the image."


@dataclass(frozen=True, slots=True)
class RootDisk:
    """A finished root disk."""

    path: Path
    digest: str
    """SHA-256."""


def ensure_disk(image: Image) -> RootDisk:
    """The root disk of an image, made now if it is not there (some seconds). Two makers at once do no harm.

    Raises:
        ImageError: a tool is missing or failed, or the disk is full; nothing is left.
    """
    path = image.directory / f"root-{image.guest_dir.name}-{_FORMAT}.ext4"
    digest = path.with_suffix(".sha256")
    with contextlib.suppress(OSError):
        if path.is_file():
            found = digest.read_text(encoding="ascii").strip()
            with contextlib.suppress(OSError):  # another user's
                os.utime(path)  # the least recently used ones are removed
            return RootDisk(path, found)
    try:
        building = Path(tempfile.mkdtemp(prefix=".disk-", dir=image.directory))
    except OSError as exc:
        raise ImageError(f"Cannot make a root disk in {image.directory}: {exc.strerror}.", remediation=_REMEDY) from exc
    try:
        _make(image, building / "disk", building / "commands")
        (building / "disk").chmod(0o444)
        with (building / "disk").open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        (building / "digest").write_text(f"{found}\n", encoding="ascii")
        (building / "digest").replace(digest)
        (building / "disk").replace(path)
    except OSError as exc:
        raise ImageError(f"Cannot make the root disk of {image.name!r}: {exc}.", remediation=_REMEDY) from exc
    finally:
        shutil.rmtree(building, ignore_errors=True)
    _remove_old(image.directory)
    return RootDisk(path, found)


def _remove_old(directory: Path) -> None:
    """Disks of agents that were used longest ago. Whoever still has one open keeps it; another machine of theirs makes
    it anew."""
    with contextlib.suppress(OSError):
        disks = sorted(directory.glob("root-*.ext4"), key=lambda path: path.stat().st_mtime, reverse=True)
        for disk in disks[_MOST_KEPT:]:
            disk.unlink(missing_ok=True)
            disk.with_suffix(".sha256").unlink(missing_ok=True)


def _make(image: Image, disk: Path, commands: Path) -> None:
    blocks, inodes = _size_of(image.rootfs)
    agent = guest_files(image.guest_dir)
    blocks += sum(path.stat().st_size // _BLOCK + 1 for _, path in agent)
    inodes += len(agent) + _SPARE_INODES
    blocks += inodes * _INODE // _BLOCK + blocks // 50 + _SPARE_BLOCKS
    name = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{image.key}/{image.guest_dir.name}"))
    # where the builder was an ordinary user, the files are its own: in a user namespace they are root's
    prefix = () if os.getuid() == 0 else ("unshare", "--user", "--map-root-user", "--")
    _run(
        *prefix, "mke2fs", "-q", "-t", "ext4", "-b", str(_BLOCK), "-I", str(_INODE), "-N", str(inodes), "-m", "0",
        "-O", "^has_journal,^resize_inode", "-U", name, "-L", "emberbox", "-E", f"hash_seed={name},root_owner=0:0",
        "-d", str(image.rootfs), str(disk), str(blocks),
    )  # fmt: skip
    lines = [*_agent_commands(agent), *_time_commands(disk)]
    commands.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    said = _run("debugfs", "-w", "-f", str(commands), str(disk))
    if said.count("Allocated inode") != len(agent):  # debugfs does not fail when one of its commands does
        raise ImageError(f"The guest agent could not be written to the root disk: {said[-800:].strip()}")


def _agent_commands(agent: list[tuple[str, Path]]) -> Iterator[str]:
    """Of debugfs(8), to write the agent's files. Their names are those of Python modules: nothing need be quoted."""
    folders = sorted({str(Path(name).parent) for name, _ in agent} - {"."})
    yield from (f"mkdir {_AGENT}/{folder}" for folder in folders)
    for name, path in agent:
        yield f'write "{path}" {_AGENT}/{name}'
        yield f"sif {_AGENT}/{name} mode 0100644"


def _time_commands(disk: Path) -> Iterator[str]:
    """Of debugfs(8), to forget when files were read last, and when their inodes changed: mke2fs copies that, and a disk
    that is made again would be another one."""
    for inode in _used_inodes(disk):
        yield f"sif <{inode}> atime @1"
        yield f"sif <{inode}> ctime @1"


def _used_inodes(disk: Path) -> Iterator[int]:
    """Find the inodes of all files (the layout: https://docs.kernel.org/filesystems/ext4/)."""
    with disk.open("rb") as file:

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        head = read(1024, 1024)
        count, first, per_group = (int.from_bytes(head[at : at + 4], "little") for at in (0, 20, 40))
        large = int.from_bytes(head[96:100], "little") & 0x80  # 64bit
        size = int.from_bytes(head[254:256], "little") if large else 32
        for group in range(-(-count // per_group)):
            entry = read((first + 1) * _BLOCK + group * size, size)
            if entry[0x12] & 1:  # INODE_UNINIT: none
                continue
            block = int.from_bytes(entry[4:8], "little") | (int.from_bytes(entry[0x24:0x28], "little") << 32)
            bits = int.from_bytes(read(block * _BLOCK, per_group // 8), "little")
            for place in range(per_group):
                inode = group * per_group + place + 1
                if bits >> place & 1 and (inode == _ROOT or inode > _RESERVED):
                    yield inode


def _size_of(tree: Path) -> tuple[int, int]:
    """Blocks and inodes that a tree needs."""
    blocks = inodes = 0
    for folder, folders, files in os.walk(tree):
        inodes += 1 + len(folders) + len(files)
        blocks += 1
        for name in files:
            blocks += os.lstat(os.path.join(folder, name)).st_size // _BLOCK + 1  # noqa: PTH118 (thousands of files)
    return blocks, inodes


def _run(*argv: str) -> str:
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SOURCE_DATE_EPOCH": "1", "E2FSPROGS_FAKE_TIME": "1"}
    try:
        done = subprocess.run(
            argv, capture_output=True, stdin=subprocess.DEVNULL, env=env, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise ImageError(f"{argv[0]} could not be run: {exc}.", remediation=_REMEDY) from exc
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    if done.returncode != 0:
        raise ImageError(f"{argv[0]} ended with status {done.returncode}: {said[-800:].strip()}", remediation=_REMEDY)
    return said
