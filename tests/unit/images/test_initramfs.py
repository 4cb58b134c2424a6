"""The archive that a kernel with modules starts from."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from emberbox.errors import ImageError
from emberbox.images import initramfs

from .kernels import MODULES, module, write_modules


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_modules(tmp_path / "9.9.9")


def test_modules_come_after_what_they_lean_on(tree: Path) -> None:
    names = [name for name, _ in initramfs.modules_of(tree)]
    assert sorted(names) == sorted(Path(path).name.replace("-", "_") for path in MODULES)  # each once
    for path, content in MODULES.items():
        place = names.index(Path(path).name.replace("-", "_"))
        for need in filter(None, initramfs.modinfo(content)["depends"][0].split(",")):
            assert names.index(f"{need}.ko") < place


def test_built_in_ones_are_left_out(tree: Path) -> None:
    (tree / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio-mmio.ko\n")
    assert "virtio_mmio.ko" not in dict(initramfs.modules_of(tree))


def test_packed_modules_are_unpacked(tree: Path) -> None:
    path = tree / "kernel/drivers/block/virtio_blk.ko"
    path.with_suffix(".ko.xz").write_bytes(lzma.compress(path.read_bytes(), check=lzma.CHECK_CRC32))
    path.unlink()
    assert dict(initramfs.modules_of(tree))["virtio_blk.ko"] == MODULES["drivers/block/virtio_blk.ko"]


def test_soft_dependencies_before_a_module_are_kept(tmp_path: Path) -> None:
    own = {
        "fs/ext4/ext4.ko": module(depends="", softdep="pre: crc32c-generic nowhere post: virtio"),
        "crypto/crc32c_generic.ko": module(depends=""),
    }
    names = [name for name, _ in initramfs.modules_of(write_modules(tmp_path / "k", {**MODULES, **own}, built_in=""))]
    assert names.index("crc32c_generic.ko") + 1 == names.index("ext4.ko")


def test_what_is_welcome_is_taken_where_it_is(tmp_path: Path) -> None:
    own = {"fs/overlayfs/overlay.ko": module(depends="")}
    assert "overlay.ko" in dict(initramfs.modules_of(write_modules(tmp_path / "k", {**MODULES, **own})))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("drivers/block/virtio_blk.ko", b"", "cannot be read"),
        ("drivers/block/virtio_blk.ko", module(depends="nothing"), "no module nothing"),
        ("drivers/block/virtio_blk.ko", module(depends="virtio_blk"), "no module virtio_blk"),
    ],
)
def test_modules_that_do_not_fit_are_named(tree: Path, name: str, content: bytes, said: str) -> None:
    (tree / "kernel" / name).write_bytes(content)
    with pytest.raises(ImageError, match=said):
        initramfs.modules_of(tree)


def test_a_damaged_packed_module_is_named(tree: Path) -> None:
    (tree / "kernel/drivers/block/virtio_blk.ko").rename(tree / "kernel/drivers/block/virtio_blk.ko.xz")
    with pytest.raises(ImageError, match=r"virtio_blk\.ko\.xz cannot be unpacked"):
        initramfs.modules_of(tree)


def test_a_missing_module_is_named(tree: Path) -> None:
    shutil.rmtree(tree / "kernel/net")
    with pytest.raises(ImageError, match="no module vmw_vsock_virtio_transport"):
        initramfs.modules_of(tree)


def test_the_same_parts_give_the_same_bytes(tree: Path) -> None:
    first, second = (initramfs.build(b"busybox", initramfs.modules_of(tree)) for _ in range(2))
    assert first == second
    assert len(first) % 4 == 0


@pytest.mark.skipif(shutil.which("cpio") is None, reason="the program cpio is not installed")
def test_cpio_reads_the_archive(tree: Path, tmp_path: Path) -> None:
    archive = initramfs.build(b"\x7fELF", initramfs.modules_of(tree))
    listed = subprocess.run(["cpio", "-tv"], input=archive, capture_output=True, check=True, timeout=30).stdout.decode()
    assert re.search(r"(?m)^-rwxr-xr-x\s+1 root\s+root\s+4 \S+ +\d+ +\d+ bin/busybox$", listed)
    assert re.search(r"(?m)^crw-------.* 5, +1 .*dev/console$", listed)
    assert "bin/switch_root -> busybox" in listed


def test_the_script_is_one_for_a_shell() -> None:
    subprocess.run(["sh", "-n"], input=initramfs.INIT.encode(), check=True, timeout=10)
    used = set(re.findall(r"(?m)^\s*(?:exec )?(\w+) ", initramfs.INIT))
    assert {"insmod", "mount", "sleep", "switch_root", "umount"} <= used
    assert {"insmod", "mount", "sleep", "switch_root", "umount", "sh"} == set(initramfs._APPLETS)
