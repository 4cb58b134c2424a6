"""Kernels, modules and packages of the tests' own, as small as their formats allow."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

VMLINUX = (
    b"\x7fELF\x02\x01" + bytes(12) + (62).to_bytes(2, "little") + b"Linux version 9.9.9-cloud-amd64 (x) " + bytes(500)
)


def lz4(data: bytes) -> bytes:
    """In lz4's legacy format, as literals alone."""
    out = b"\x02\x21\x4c\x18"
    for start in range(0, len(data), 8 << 20):
        block = literals(data[start : start + (8 << 20)])
        out += struct.pack("<I", len(block)) + block
    return out


def literals(data: bytes, copy: tuple[int, int] | None = None) -> bytes:
    """A sequence of lz4: literals, and a copy (distance, count of 4 and more)."""
    count = 0 if copy is None else copy[1] - 4
    head = bytes([min(len(data), 15) << 4 | min(count, 15)])
    block = head + _more(len(data)) + data
    return block if copy is None else block + struct.pack("<H", copy[0]) + _more(count)


def _more(count: int) -> bytes:
    return b"" if count < 15 else b"\xff" * ((count - 15) // 255) + bytes([(count - 15) % 255])


def with_size(compressed: bytes, data: bytes) -> bytes:
    """What the kernel's build appends where the format has no size at its end (scripts/Makefile.lib)."""
    return compressed + struct.pack("<I", len(data))


COMPRESSIONS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": lambda data: with_size(bz2.compress(data), data),
    "lzma": lambda data: with_size(lzma.compress(data, lzma.FORMAT_ALONE), data),
    "xz": lambda data: with_size(lzma.compress(data, check=lzma.CHECK_CRC32), data),
    "lz4": lambda data: with_size(lz4(data), data),
}


def bzimage(payload: bytes, *, sectors: int = 2, offset: int = 64, version: int = 0x20F) -> bytes:
    """A kernel image with a setup header and what it boots."""
    head = bytearray((sectors + 1) * 512 + offset)
    head[0x1F1] = sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, version)
    struct.pack_into("<II", head, 0x248, offset, len(payload))
    return bytes(head) + payload


def module(**facts: str) -> bytes:
    """An ELF file with a section .modinfo."""
    info = b"\0".join(f"{name}={value}".encode() for name, value in facts.items()) + b"\0"
    names = b"\0.modinfo\0.shstrtab\0"
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0, 64, 0, 64, 0, 0, 64, 3, 2)
    start = 64 + 3 * 64
    sections = bytes(64)
    for name, offset, size in ((1, start, len(info)), (10, start + len(info), len(names))):
        sections += struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)
    return head + sections + info + names


MODULES = {
    "drivers/virtio/virtio.ko": module(name="virtio", depends=""),
    "drivers/virtio/virtio_ring.ko": module(name="virtio_ring", depends=""),
    "drivers/virtio/virtio_mmio.ko": module(name="virtio_mmio", depends="virtio,virtio_ring"),
    "drivers/block/virtio_blk.ko": module(name="virtio_blk", depends="virtio_ring"),
    "drivers/char/virtio_console.ko": module(name="virtio_console", depends="virtio"),
    "drivers/char/hw_random/virtio-rng.ko": module(name="virtio_rng", depends=""),
    "net/vmw_vsock/vsock.ko": module(name="vsock", depends=""),
    "net/vmw_vsock/vmw_vsock_virtio_transport.ko": module(name="vmw_vsock_virtio_transport", depends="vsock"),
}
RELEASE = "9.9.9-cloud-amd64"


def write_modules(
    tree: Path, modules: Mapping[str, bytes] = MODULES, built_in: str = "kernel/fs/ext4/ext4.ko\n"
) -> Path:
    """lib/modules/RELEASE of a kernel."""
    for name, content in modules.items():
        path = tree / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tree / "modules.builtin").write_text(built_in)
    return tree


def package(
    folder: Path, name: str, version: str = "1.0-1", files: Mapping[str, bytes] = {}, arch: str = "amd64"
) -> Path:
    """A real package, made by dpkg-deb."""
    root = folder / f"tree-{name}"
    control = root / "DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: {arch}\n"
        "Maintainer: Test <t@example.org>\nDescription: test\n"
    )
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    deb = folder / f"{name}_{version}_{arch}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", root, deb], check=True, capture_output=True, timeout=60
    )
    return deb


def kernel_package(folder: Path, version: str = "1.0-1", modules: Mapping[str, bytes] = MODULES) -> Path:
    """A package as linux-image-…-cloud-amd64 is one."""
    base = f"lib/modules/{RELEASE}"
    files = {f"{base}/kernel/{name}": content for name, content in modules.items()}
    files[f"{base}/modules.builtin"] = b"kernel/fs/ext4/ext4.ko\n"
    files[f"boot/vmlinuz-{RELEASE}"] = bzimage(COMPRESSIONS["lz4"](VMLINUX))
    return package(folder, f"linux-image-{RELEASE}", version, files)


def busybox_package(folder: Path, version: str = "1:1.35.0-4") -> Path:
    """A package as busybox-static is one."""
    return package(folder, "busybox-static", version.replace(":", "-"), {"bin/busybox": b"\x7fELF busybox"})
