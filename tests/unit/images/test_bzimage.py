"""Kernels out of kernel images."""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import subprocess
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberbox.errors import ImageError
from emberbox.images.bzimage import DAMAGED, decompress, extract_vmlinux, is_bzimage, is_vmlinux

from .kernels import COMPRESSIONS, VMLINUX, bzimage, literals, lz4, with_size


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize(("sectors", "offset"), [(2, 64), (39, 716), (0, 0)])
def test_the_kernel_is_found_by_the_header_and_unpacked(name: str, sectors: int, offset: int) -> None:
    image = bzimage(COMPRESSIONS[name](VMLINUX), sectors=sectors or 4, offset=offset)
    if not sectors:  # boot.rst: zero means four
        image = image[:0x1F1] + b"\0" + image[0x1F2:]
    assert extract_vmlinux(image) == VMLINUX


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the program zstd is not installed")
def test_zstd_is_undone_by_its_program() -> None:
    packed = subprocess.run(["zstd", "-c", "-q"], input=VMLINUX, capture_output=True, check=True, timeout=60).stdout
    assert extract_vmlinux(bzimage(with_size(packed, VMLINUX))) == VMLINUX


def test_without_the_program_zstd_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ImageError, match="install the package zstd"):
        extract_vmlinux(bzimage(with_size(b"\x28\xb5\x2f\xfd" + bytes(20), VMLINUX)))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"", "has no setup header"),
        (b"#!/bin/sh\n" * 200, "has no setup header"),
        (bzimage(b"x" * 100, version=0x207), r"boot protocol 2\.07"),
        (bzimage(COMPRESSIONS["xz"](VMLINUX))[:-1], "cut short"),
        (bzimage(COMPRESSIONS["xz"](VMLINUX))[:0x24A], "boot protocol"),
        (bzimage(b"????" + bytes(100)), r"unknown way \(it begins with 3f3f3f3f\)"),
        (bzimage(with_size(lzma.compress(b"no kernel"), b"no kernel")), "is no kernel for x86-64"),
        (bzimage(with_size(lzma.compress(VMLINUX)[:-20], VMLINUX)), "cannot be unpacked: it is cut short"),
        (bzimage(with_size(lzma.compress(VMLINUX), VMLINUX[1:])), "cannot be unpacked: it has more than"),
        (bzimage(lzma.compress(VMLINUX) + b"\xff\xff\xff\xff"), "says that its kernel has 4294967295 bytes"),
        (bzimage(with_size(b"\x02\x21\x4c\x18" + struct.pack("<I", 50) + b"\xf0", VMLINUX)), "lz4 is cut short"),
    ],
)
def test_what_is_no_kernel_is_refused_with_the_reason(image: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=said) as error:
        extract_vmlinux(image, "boot/vmlinuz")
    assert "boot/vmlinuz" in error.value.message
    assert error.value.remediation


def test_more_than_the_bound_never_comes_out() -> None:
    bomb = {name: compress(bytes(1 << 20)) for name, compress in COMPRESSIONS.items()}
    for data in bomb.values():
        with pytest.raises(DAMAGED, match=r"more than|too long"):
            decompress(data, 1000)


@given(st.lists(st.tuples(st.binary(max_size=600), st.integers(1, 700), st.integers(4, 900)), max_size=8), st.binary())
def test_lz4_copies_what_came_before(sequences: list[tuple[bytes, int, int]], last: bytes) -> None:
    block, plain = b"", b""
    for data, distance, count in sequences:
        plain += data
        if not plain:
            continue
        near = min(distance, len(plain))
        block += literals(data, (near, count))
        for _ in range(count):
            plain += plain[-near : len(plain) - near + 1]
    block, plain = block + literals(last), plain + last
    assert decompress(b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block) == plain


@pytest.mark.parametrize("copy", [(0, 4), (6, 4), (60000, 20)])
def test_lz4_copies_from_nowhere_are_refused(copy: tuple[int, int]) -> None:
    block = literals(b"12345", copy)
    with pytest.raises(ValueError, match="bytes before it"):
        decompress(b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block)


@pytest.mark.parametrize("block", [b"\x1fa\x01\x00" + b"\xff" * 100_000 + b"\0", b"\xf0" + b"\xff" * 100_000 + b"\0"])
def test_lz4_that_asks_for_too_much_gets_no_memory(block: bytes) -> None:
    data = b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, EOFError)):
            decompress(data, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_lz4_has_blocks() -> None:
    data = os.urandom(1000) * 9000
    assert decompress(lz4(data)) == data


@given(st.binary(max_size=300))
def test_damage_is_an_error_that_is_known(data: bytes) -> None:
    for magic in (b"\x1f\x8b", b"BZh", b"\x5d\x00\x00", b"\xfd7zXZ\x00", b"\x02\x21\x4c\x18", b""):
        try:
            decompress(magic + data, 1 << 16)
        except DAMAGED:
            continue


def test_kinds_are_told_by_their_first_bytes() -> None:
    assert is_vmlinux(VMLINUX[:20])
    assert not is_vmlinux(b"\x7fELF\x02\x01" + bytes(12) + b"\xb7\0")  # for arm64
    assert not is_vmlinux(b"\x7fELF")
    assert is_bzimage(bzimage(b"")[:0x206])
    assert not is_bzimage(VMLINUX[:0x206])
