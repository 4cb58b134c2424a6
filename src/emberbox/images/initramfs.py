"""The first file system of a kernel whose drivers are modules: loads them and goes over to the root disk.

An uncompressed archive in the format "newc" of cpio (Documentation/driver-api/early-userspace/buffer-format.rst of
Linux) with busybox, the modules in the order in which they must be loaded, and a script. Times, owners and numbers in
it are fixed, so that the same parts give the same bytes.
"""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from emberbox.errors import ImageError
from emberbox.images.bzimage import DAMAGED, decompress

WANTED = (
    "virtio_mmio", "virtio_blk", "ext4", "virtio_console", "virtio_rng", "vmw_vsock_virtio_transport",
)  # fmt: skip
"""What a machine does not start without."""
WELCOME = ("overlay", "virtio_balloon", "vmgenid")
"""What is used where the kernel has it."""
_APPLETS = ("insmod", "mount", "sh", "sleep", "switch_root", "umount")
_DEVICES = {"dev/console": (5, 1), "dev/null": (1, 3)}
_MOST_DEPTH = 32
INIT = """#!/bin/sh
# The kernel calls this with what follows "--" on its command line, and takes init= for its own.
fail() {
  echo "emberbox-initramfs: $1" > /dev/console
  exit 1
}
mount -t devtmpfs dev /dev || fail "there is no devtmpfs"
mount -t proc proc /proc || fail "there is no /proc"
set -f
init=/sbin/init
read -r line < /proc/cmdline
for word in $line; do
  case "$word" in
    --) break ;;
    init=*) init=${word#init=} ;;
  esac
done
read -r modules < /modules/order
for module in $modules; do
  insmod "/modules/$module" || fail "the module $module cannot be loaded"
done
tries=0
until [ -b /dev/vda ]; do
  tries=$((tries + 1))
  [ $tries -le 1000 ] || fail "there is no root disk /dev/vda"
  sleep 0.01
done
mount -t ext4 -o ro /dev/vda /root || fail "the root disk /dev/vda cannot be mounted"
umount /proc
mount --move /dev /root/dev || fail "the root disk has no folder /dev"
exec switch_root /root "$init" "$@"
"""
"""Ends where it cannot go on: the kernel panics then, with these words before it on the console."""


def build(busybox: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """The archive.

    Args:
        busybox: a program that needs no libraries.
        modules: names and contents, in the order in which they are loaded.
    """
    archive = _Archive()
    for folder in ("bin", "dev", "modules", "proc", "root"):
        archive.add(folder, stat.S_IFDIR | 0o755)
    for name, device in _DEVICES.items():
        archive.add(name, stat.S_IFCHR | 0o600, device=device)
    archive.add("bin/busybox", stat.S_IFREG | 0o755, busybox)
    for applet in _APPLETS:
        archive.add(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
    for name, content in modules:
        archive.add(f"modules/{name}", stat.S_IFREG | 0o644, content)
    order = " ".join(name for name, _ in modules) + "\n"
    archive.add("modules/order", stat.S_IFREG | 0o644, order.encode())
    archive.add("init", stat.S_IFREG | 0o755, INIT.encode())
    return archive.finish()


class _Archive:
    """Writes the format "newc"."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._count = 0

    def add(self, name: str, mode: int, content: bytes = b"", *, device: tuple[int, int] = (0, 0)) -> None:
        self._count += 1
        fields = (self._count, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode("ascii") + b"\0"
        self._parts += [_padded(head), _padded(content)]

    def finish(self) -> bytes:
        self._count = -1
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def modules_of(tree: Path) -> list[tuple[str, bytes]]:
    """The modules that are wanted, and what they lean on, in the order in which they must be loaded.

    Args:
        tree: of a kernel: lib/modules/RELEASE.

    Raises:
        ImageError: one is missing or cannot be read.
    """
    found = {_plain(path.name): path for path in sorted(tree.glob("kernel/**/*.ko*"))}
    try:
        built_in = {_plain(Path(line).name) for line in (tree / "modules.builtin").read_text("utf-8").splitlines()}
    except OSError as exc:
        raise ImageError(f"{tree.name} has no list of its modules: {exc.strerror}.") from exc
    order: dict[str, bytes] = {}
    for name in (*WANTED, *(name for name in WELCOME if name in found)):
        for step, content in _with_needs(name, found, built_in, 0):
            order.setdefault(step, content)
    return [(f"{name}.ko", content) for name, content in order.items()]


def _with_needs(name: str, found: Mapping[str, Path], built_in: set[str], depth: int) -> Iterator[tuple[str, bytes]]:
    if name in built_in:
        return
    if name not in found or depth > _MOST_DEPTH:
        raise ImageError(
            f"The kernel has no module {name}.", remediation="Use the kernel of Debian's linux-image-cloud-amd64."
        )
    content = _content(found[name])
    facts = modinfo(content)
    needs = [need for line in facts.get("depends", []) for need in line.split(",") if need]
    for line in facts.get("softdep", []):  # "pre: a b post: c"
        words = re.findall(r"pre:((?:\s+[\w-]+(?!\S*:))*)", line)
        needs += [_plain(word) for part in words for word in part.split() if _plain(word) in found]
    for need in needs:
        yield from _with_needs(_plain(need), found, built_in, depth + 1)
    yield name, content


def _plain(name: str) -> str:
    """A module's name as the kernel compares it: without suffixes, `-` as `_`."""
    return name.partition(".ko")[0].replace("-", "_")


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".ko":
        return data
    try:
        return decompress(data)
    except DAMAGED as exc:
        raise ImageError(f"The module {path.name} cannot be unpacked: {exc}.") from exc


def modinfo(module: bytes) -> dict[str, list[str]]:
    """What a module says of itself: the section .modinfo, strings `name=value` (elf(5); include/linux/module.h).

    A package of Debian's has no modules.dep, which would say it: depmod writes that where a package is installed.

    Raises:
        ImageError: it is no module.
    """
    try:
        (table,) = struct.unpack_from("<Q", module, 0x28)
        size, count, names = struct.unpack_from("<HHH", module, 0x3A)
        sections = [struct.unpack_from("<II16xQQ", module, table + size * number) for number in range(count)]
        words = sections[names][2]
        for name, _, offset, length in sections:
            end = module.index(b"\0", words + name)
            if module[words + name : end] == b".modinfo":
                return _pairs(module[offset : offset + length])
    except (struct.error, IndexError, ValueError) as exc:
        raise ImageError(f"A module of the kernel cannot be read: {exc}.") from exc
    return {}


def _pairs(section: bytes) -> dict[str, list[str]]:
    facts: dict[str, list[str]] = {}
    for entry in section.split(b"\0"):
        name, found, value = entry.decode("utf-8", "replace").partition("=")
        if found:
            facts.setdefault(name, []).append(value)
    return facts
