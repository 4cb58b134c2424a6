"""Which kernel machines get, and what is kept of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from emberbox import Settings
from emberbox.errors import ImageError
from emberbox.images.kernel import (
    INITRD,
    MANIFEST,
    VMLINUX,
    GuestKernel,
    KernelManifest,
    Origin,
    check_vmlinux,
    find_kernel,
    kernels_folder,
    key_of,
    load,
    making,
    release_of,
    save,
)

from .kernels import VMLINUX as PROGRAM
from .kernels import bzimage


def make(settings: Settings, name: str, origin: Origin = "built", *, initrd: bool = False) -> GuestKernel:
    with making(settings) as building:
        (building / VMLINUX).write_bytes(PROGRAM)
        if initrd:
            (building / INITRD).write_bytes(b"070701")
        manifest = KernelManifest(release="9.9.9", origin=origin, made_from={"name": name})
        return save(building, kernels_folder(settings) / name, manifest)


def test_there_is_none_at_first(own_settings: Settings) -> None:
    assert find_kernel(own_settings) is None
    assert not kernels_folder(own_settings).exists()


def test_the_setting_comes_before_a_built_one_and_that_before_debians(own_settings: Settings, tmp_path: Path) -> None:
    make(own_settings, "debian-1", "debian", initrd=True)
    debian = find_kernel(own_settings)
    assert debian is not None
    assert (debian.origin, debian.initrd) == ("debian", kernels_folder(own_settings) / "debian-1" / INITRD)
    make(own_settings, "built-hardware-1")
    built = find_kernel(own_settings)
    assert built is not None
    assert (built.origin, built.initrd, built.release) == ("built", None, "9.9.9")
    named = tmp_path / "vmlinux"
    named.write_bytes(PROGRAM)
    assert find_kernel(own_settings.model_copy(update={"kernel": named})) == GuestKernel(
        named, None, "9.9.9-cloud-amd64", "setting"
    )


def test_an_emulated_kvm_gets_no_kernel_that_cannot_run_there(own_settings: Settings) -> None:
    make(own_settings, "debian-1", "debian")
    make(own_settings, "built-hardware-1")
    assert find_kernel(own_settings, emulated=True) is None
    made = make(own_settings, "built-emulated-1")
    assert find_kernel(own_settings, emulated=True) == made
    hardware = find_kernel(own_settings)
    assert hardware is not None
    assert hardware.vmlinux.parent.name == "built-hardware-1"


def test_the_newest_of_a_kind_is_taken_and_few_are_kept(own_settings: Settings) -> None:
    for number in range(4):
        made = make(own_settings, f"built-hardware-{number}")
        os.utime(made.vmlinux.parent / MANIFEST, ns=(number, number))
    made = make(own_settings, "built-hardware-9")
    assert find_kernel(own_settings) == made
    assert len(list(kernels_folder(own_settings).glob("built-*"))) == 2


@pytest.mark.parametrize("damage", ["size", "content", "missing", "manifest", "empty"])
def test_one_that_is_not_whole_is_not_used(own_settings: Settings, damage: str) -> None:
    made = make(own_settings, "debian-1", "debian", initrd=True)
    folder = made.vmlinux.parent
    assert load(folder) == made
    if damage == "size":
        made.vmlinux.chmod(0o644)
        made.vmlinux.write_bytes(PROGRAM + b"x")
    elif damage == "content":
        made.vmlinux.chmod(0o644)
        made.vmlinux.write_bytes(PROGRAM[:-1] + b"x")
    elif damage == "missing":
        (folder / INITRD).unlink()
    elif damage == "manifest":
        (folder / MANIFEST).write_text("{")
    else:
        (folder / MANIFEST).write_text('{"release": "1", "origin": "debian", "made_from": {}}')
    assert load(folder) is None
    assert find_kernel(own_settings) is None


def test_a_copy_of_the_cache_is_as_good(own_settings: Settings) -> None:
    made = make(own_settings, "debian-1", "debian")
    os.utime(made.vmlinux, (1, 1))  # what a copy without times does: now the digest is looked at
    assert load(made.vmlinux.parent) == made


def test_names_in_a_manifest_lead_nowhere_else(own_settings: Settings, tmp_path: Path) -> None:
    made = make(own_settings, "debian-1", "debian")
    manifest = made.vmlinux.parent / MANIFEST
    manifest.write_text(manifest.read_text().replace('"vmlinux"', '"../../vmlinux"'))
    (tmp_path / "cache/vmlinux").write_bytes(PROGRAM)
    assert load(made.vmlinux.parent) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"cannot be read: No such file"),
        (b"not a kernel at all", r"is no kernel \(an ELF"),
        (b"", r"is no kernel"),
        (bzimage(b"payload"), r"is compressed \(a bzImage\)"),
    ],
)
def test_a_setting_that_names_no_kernel_is_refused(
    own_settings: Settings, tmp_path: Path, content: bytes | None, said: str
) -> None:
    named = tmp_path / "named"
    if content is not None:
        named.write_bytes(content)
    with pytest.raises(ImageError, match=said) as error:
        find_kernel(own_settings.model_copy(update={"kernel": named}))
    assert str(named) in error.value.message
    assert "build-kernel" in error.value.remediation
    with pytest.raises(ImageError, match=said):
        check_vmlinux(named)


def test_a_failed_making_leaves_nothing(own_settings: Settings) -> None:
    def fail() -> None:
        with making(own_settings) as building:
            (building / VMLINUX).write_bytes(PROGRAM)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in kernels_folder(own_settings).iterdir()] == [".lock"]


def test_what_a_killed_maker_left_goes_with_the_next(own_settings: Settings) -> None:
    left = kernels_folder(own_settings) / ".new-left"
    left.mkdir(parents=True)
    (left / VMLINUX).write_bytes(PROGRAM)
    make(own_settings, "debian-1", "debian")
    assert not left.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with (
        pytest.raises(ImageError, match=r"Cannot make .*/cache/kernels"),
        making(Settings(cache_dir=tmp_path / "cache")),
    ):
        pass


def test_a_kernel_replaces_a_damaged_one(own_settings: Settings) -> None:
    made = make(own_settings, "debian-1", "debian")
    made.vmlinux.unlink()
    assert make(own_settings, "debian-1", "debian") == made
    shutil.rmtree(made.vmlinux.parent)


def test_keys_tell_parts_apart() -> None:
    assert key_of({"a": "1", "b": "2"}) == key_of({"b": "2", "a": "1"})
    assert len({key_of({"a": "1"}), key_of({"a": "2"}), key_of({"b": "1"}), key_of({})}) == 4


def test_the_banner_is_found_across_chunks(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    for before in (0, (1 << 20) - 9, (1 << 20) + 5):
        path.write_bytes(bytes(before) + b"Linux version 6.1.0-1 (gcc) " + bytes(1000))
        assert release_of(path) == "6.1.0-1"
    path.write_bytes(b"Linux version %s (%s)")
    assert release_of(path) == ""
