"""Takes the uncompressed kernel (vmlinux, an ELF file) out of a bzImage, as distributions install it.

The place of the compressed kernel is in the setup header: `payload_offset` and `payload_length`
(Documentation/arch/x86/boot.rst of Linux, protocol 2.08). Its last four bytes are its uncompressed size.
"""

from __future__ import annotations

import bz2
import lzma
import shutil
import struct
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable, Mapping

from emberbox.errors import ImageError

MOST_BYTES = 256 << 20
"""No kernel or module is larger."""
ELF = b"\x7fELF"
_X86_64 = 62
_SECTOR = 512
_LEAST_PROTOCOL = 0x208
_LZ4_BLOCK = 8 << 20
_SECONDS = 60
_GZIP = b"\x1f\x8b"
DAMAGED = (ValueError, EOFError, OSError, lzma.LZMAError, zlib.error, subprocess.SubprocessError)
"""What `decompress` raises."""
_REMEDY = "Give a kernel image of a Debian package (boot/vmlinuz-…), or an uncompressed vmlinux."


def is_vmlinux(head: bytes) -> bool:
    """Whether a file that begins so (20 bytes) is an ELF program for x86-64."""
    return head.startswith(ELF + b"\x02\x01") and len(head) >= 20 and int.from_bytes(head[18:20], "little") == _X86_64


def is_bzimage(head: bytes) -> bool:
    """Whether a file that begins so (0x206 bytes) is a kernel with a setup header."""
    return head[0x202:0x206] == b"HdrS"


def extract_vmlinux(image: bytes, name: str = "the kernel image") -> bytes:
    """The kernel in a bzImage.

    Args:
        image: the file.
        name: of it, for messages.

    Raises:
        ImageError: it is none, or is compressed in a way that cannot be undone here.
    """
    if not is_bzimage(image[:0x206]):
        raise ImageError(f"{name} is no bzImage: it has no setup header.", remediation=_REMEDY)
    (version,) = struct.unpack_from("<H", image, 0x206)
    if version < _LEAST_PROTOCOL or len(image) < 0x250:
        raise ImageError(f"{name} has the boot protocol {version >> 8}.{version & 255:02}.", remediation=_REMEDY)
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((image[0x1F1] or 4) + 1) * _SECTOR + offset
    payload = image[start : start + length]
    if len(payload) != length or length < 8:
        raise ImageError(f"{name} is cut short: its kernel would end at byte {start + length}.", remediation=_REMEDY)
    (size,) = struct.unpack("<I", payload[-4:])
    if size > MOST_BYTES:
        raise ImageError(f"{name} says that its kernel has {size} bytes.", remediation=_REMEDY)
    if not payload.startswith(_GZIP):  # the size is a part of that format; elsewhere it follows the stream
        payload = payload[:-4]
    try:
        kernel = decompress(payload, size)
    except DAMAGED as exc:
        raise ImageError(f"The kernel in {name} cannot be unpacked: {exc}.", remediation=_REMEDY) from exc
    if len(kernel) != size or not is_vmlinux(kernel[:20]):
        raise ImageError(f"What is in {name} is no kernel for x86-64.", remediation=_REMEDY)
    return kernel


def decompress(data: bytes, most: int = MOST_BYTES) -> bytes:
    """Undo a compression that the kernel knows, told by the first bytes; what follows the stream is ignored.

    Args:
        data: compressed by gzip, bzip2, lzma, xz, lz4 (legacy format) or zstd.
        most: bytes that may come out.

    Raises:
        DAMAGED: it is damaged, larger than that, or of another kind.
    """
    for magic, method in _METHODS.items():
        if data.startswith(magic):
            out = method(data, most)
            if len(out) > most:
                raise ValueError(f"it has more than {most} bytes")
            return out
    raise ValueError(f"it is compressed in an unknown way (it begins with {data[:4].hex()})")


def _gzip(data: bytes, most: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    return _whole(unpacker.decompress(data, most + 1), most, whole=unpacker.eof)


def _bzip2(data: bytes, most: int) -> bytes:
    unpacker = bz2.BZ2Decompressor()
    return _whole(unpacker.decompress(data, most + 1), most, whole=unpacker.eof)


def _lzma(data: bytes, most: int) -> bytes:
    unpacker = lzma.LZMADecompressor()
    return _whole(unpacker.decompress(data, most + 1), most, whole=unpacker.eof)


def _whole(out: bytes, most: int, *, whole: bool) -> bytes:
    """Without its end a stream's checksum was not looked at."""
    if not whole and len(out) <= most:
        raise EOFError("it is cut short")
    return out


def _zstd(data: bytes, most: int) -> bytes:
    """By the program `zstd`: Python's library has it from 3.14 on only."""
    program = shutil.which("zstd")
    if program is None:
        raise ValueError("it is compressed by zstd; install the package zstd")
    argv = [program, "--decompress", "--stdout", "--quiet", "--no-progress", f"--memory={MOST_BYTES >> 20}MB"]
    out = b""
    with tempfile.TemporaryFile() as packed, tempfile.TemporaryFile() as words:
        packed.write(data)
        packed.seek(0)
        with subprocess.Popen(argv, stdin=packed, stdout=subprocess.PIPE, stderr=words) as process:
            timer = threading.Timer(_SECONDS, process.kill)
            timer.start()
            try:
                if process.stdout is not None:
                    out = process.stdout.read(most + 1)  # no more than that is ever held
            finally:
                timer.cancel()
                if len(out) > most:
                    process.kill()
        if process.returncode != 0 and len(out) <= most:
            words.seek(0)
            said = words.read(200).decode("utf-8", "replace")
            raise ValueError(f"zstd ended with status {process.returncode}: {said}")
    return out


def _lz4(data: bytes, most: int) -> bytes:
    """The legacy frame format: blocks of up to 8 MiB, each after its compressed size
    (lz4_Frame_format.md of lz4). The kernel of Debian 12 (linux-image-cloud-amd64 6.1) is compressed so."""
    out = bytearray()
    position = 4
    while position + 4 < len(data):
        (size,) = struct.unpack_from("<I", data, position)
        block = data[position + 4 : position + 4 + size]
        if len(block) != size:
            raise EOFError("a block of lz4 is cut short")
        position += 4 + size
        try:
            _lz4_block(block, out, min(most, len(out) + _LZ4_BLOCK))
        except IndexError:
            raise EOFError("a block of lz4 is cut short") from None
    return bytes(out)


def _fits(size: int, most: int) -> None:
    """Looked at before bytes are made: a block can ask for a thousand times its own size."""
    if size > most:
        raise ValueError(f"a block of lz4 has more than {most} bytes")


def _lz4_block(block: bytes, out: bytearray, most: int) -> None:
    """One block (lz4_Block_format.md): sequences of literals and a copy of bytes that came before."""
    start, position, end = len(out), 0, len(block)
    while position < end:
        token = block[position]
        position += 1
        count = token >> 4
        if count == 15:
            while (more := block[position]) == 255:
                count += 255
                position += 1
            count += more
            position += 1
        if position + count > end:
            raise IndexError
        _fits(len(out) + count, most)
        out += block[position : position + count]
        position += count
        if position >= end:
            break
        distance = block[position] | block[position + 1] << 8
        position += 2
        count = (token & 15) + 4
        if count == 19:
            while (more := block[position]) == 255:
                count += 255
                position += 1
            count += more
            position += 1
        _fits(len(out) + count, most)
        source = len(out) - distance
        if source < start or not distance:
            raise ValueError("a block of lz4 refers to bytes before it")
        if distance >= count:
            out += out[source : source + count]
        else:
            out += (out[source:] * (count // distance + 1))[:count]
        if len(out) > most:
            raise ValueError("a block of lz4 is too long")


_METHODS: Mapping[bytes, Callable[[bytes, int], bytes]] = {
    _GZIP: _gzip,
    b"BZh": _bzip2,
    b"\x5d\x00\x00": _lzma,
    b"\xfd7zXZ\x00": _lzma,
    b"\x02\x21\x4c\x18": _lz4,
    b"\x28\xb5\x2f\xfd": _zstd,
}
"""By the magic bytes: lib/decompress.c of Linux."""
