"""Debian's kernel from package files, as a host without a network has them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from emberbox import Settings
from emberbox.errors import ImageError, VmNotAvailable
from emberbox.images import kernel_debian
from emberbox.images.kernel import find_kernel, kernels_folder
from emberbox.images.kernel_debian import ensure_debian_kernel

from .kernels import MODULES, RELEASE, VMLINUX, busybox_package, kernel_package, package

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="this host has no dpkg-deb")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> list[Path]:
        raise VmNotAvailable("There is no network in this test.")

    monkeypatch.setattr(kernel_debian, "download_packages", refuse)


def left(settings: Settings) -> list[str]:
    return sorted(path.name for path in kernels_folder(settings).iterdir() if path.name != ".lock")


def test_packages_become_a_kernel_and_its_initramfs(own_settings: Settings, tmp_path: Path) -> None:
    steps: list[str] = []
    packages = [busybox_package(tmp_path), kernel_package(tmp_path)]
    made = ensure_debian_kernel(own_settings, packages=packages, progress=lambda step, _: steps.append(step))
    assert (made.release, made.origin) == (RELEASE, "debian")
    assert made.vmlinux.read_bytes() == VMLINUX
    assert made.initrd is not None
    archive = made.initrd.read_bytes()
    assert b"busybox" in archive
    assert all(content in archive for content in MODULES.values())
    assert steps[-1] == "finished"
    assert left(own_settings) == [made.vmlinux.parent.name]
    # both are found again: by what they are made from, and without the packages
    assert ensure_debian_kernel(own_settings, packages=packages) == made
    assert ensure_debian_kernel(own_settings) == made == find_kernel(own_settings)


def test_another_version_is_another_kernel(own_settings: Settings, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
    first, second = (
        ensure_debian_kernel(
            own_settings,
            packages=[kernel_package(tmp_path / str(number), f"1.0-{number}"), busybox_package(tmp_path / str(number))],
        )
        for number in (1, 2)
    )
    assert first.vmlinux != second.vmlinux
    assert find_kernel(own_settings) == second


def test_a_damaged_one_is_made_anew(own_settings: Settings, tmp_path: Path) -> None:
    packages = [busybox_package(tmp_path), kernel_package(tmp_path)]
    made = ensure_debian_kernel(own_settings, packages=packages)
    made.vmlinux.unlink()
    assert find_kernel(own_settings) is None
    assert ensure_debian_kernel(own_settings, packages=packages) == made
    assert made.vmlinux.read_bytes() == VMLINUX


def test_wrong_packages_are_named(own_settings: Settings, tmp_path: Path) -> None:
    kernel, busybox = kernel_package(tmp_path), busybox_package(tmp_path)
    other, arm = package(tmp_path, "hello"), package(tmp_path, "linux-image-9-arm64", arch="arm64")
    text = tmp_path / "text.deb"
    text.write_text("no package")
    empty = package(tmp_path, "linux-image-9.9.8-cloud-amd64")
    (tmp_path / "few").mkdir()
    few = {name: content for name, content in MODULES.items() if "vsock" not in name}
    for packages, said in (
        ([kernel], "no package of busybox-static"),
        ([busybox], "no package of a kernel"),
        ([kernel, other], "is the package hello"),
        ([arm, busybox], "is for arm64"),
        ([text, busybox], r"text\.deb cannot be read as a Debian package"),
        ([tmp_path / "none.deb", busybox], r"none\.deb cannot be read"),
        ([empty, busybox], "holds no kernel with modules"),
        ([kernel_package(tmp_path / "few", modules=few), busybox], "no module vmw_vsock"),
    ):
        with pytest.raises(ImageError, match=said) as error:
            ensure_debian_kernel(own_settings, packages=packages)
        assert error.value.remediation
        assert left(own_settings) == []


def test_without_apt_it_says_how_to_go_on(own_settings: Settings) -> None:
    with pytest.raises(ImageError, match="no network in this test") as error:
        ensure_debian_kernel(own_settings)
    assert "emberbox image fetch-kernel linux-image-" in error.value.remediation
    assert left(own_settings) == []
