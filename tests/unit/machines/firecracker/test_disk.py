"""Root disks, made by the real mke2fs and read back by debugfs."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from emberbox.errors import ImageError
from emberbox.images import disk as module
from emberbox.images.disk import ensure_disk
from emberbox.images.store import Image, Manifest
from emberbox.images.template import Template

pytestmark = pytest.mark.skipif(shutil.which("mke2fs") is None, reason="mke2fs (e2fsprogs) is not there")


@pytest.fixture
def image(tmp_path: Path) -> Image:
    manifest = Manifest(
        name="mine",
        key="k",
        suite="bookworm",
        built_at=datetime.now(UTC),
        build_seconds=1,
        size_bytes=1,
        languages=["python"],
    )
    image = Image(tmp_path / "image", Template(name="mine", directory=tmp_path), manifest, tmp_path / "a1b2")
    (image.rootfs / "opt/emberbox/guest").mkdir(parents=True)
    (image.rootfs / "etc").mkdir()
    (image.rootfs / "etc/name").write_text("mine")
    (image.rootfs / "home/user").mkdir(parents=True)
    (image.rootfs / "big").write_bytes(os.urandom(3_000_000))
    (image.guest_dir / "kernels").mkdir(parents=True)
    (image.guest_dir / "vm_init.py").write_text("print('up')\n")
    (image.guest_dir / "kernels" / "x.py").write_text("x\n")
    return image


def look(path: Path, command: str) -> str:
    done = subprocess.run(["debugfs", "-R", command, str(path)], capture_output=True, text=True, check=True)
    return done.stdout


def test_it_holds_the_tree_and_the_agent(image: Image) -> None:
    made = ensure_disk(image)
    assert made.path.name == f"root-a1b2-{module._FORMAT}.ext4"
    assert look(made.path, "cat /etc/name") == "mine"
    assert look(made.path, "cat /opt/emberbox/guest/vm_init.py") == "print('up')\n"
    assert look(made.path, "cat /opt/emberbox/guest/kernels/x.py") == "x\n"
    assert "User:     0" in look(made.path, "stat /etc/name")
    checked = subprocess.run(["e2fsck", "-fn", str(made.path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert made.path.stat().st_mode & 0o777 == 0o444
    assert [path.name for path in image.directory.iterdir() if path.name.startswith(".")] == []


def test_it_is_made_once_and_the_same_again(image: Image) -> None:
    made = ensure_disk(image)
    inode = made.path.stat().st_ino
    assert ensure_disk(image) == made
    assert made.path.stat().st_ino == inode
    made.path.unlink()
    for path in [image.rootfs, *image.rootfs.rglob("*")]:
        os.utime(path, ns=(86_400, path.stat().st_mtime_ns))  # as if it had been read: another atime, and ctime
    assert ensure_disk(image).digest == made.digest


def test_the_disks_of_few_agents_are_kept(image: Image) -> None:
    made = []
    for number in range(module._MOST_KEPT + 1):
        agent = image.guest_dir.with_name(f"agent{number}")
        shutil.copytree(image.guest_dir, agent)
        made.append(ensure_disk(replace(image, guest_dir=agent)).path)
        os.utime(made[-1], (number, number))
    assert [path.exists() for path in made] == [False, *[True] * module._MOST_KEPT]
    assert not made[0].with_suffix(".sha256").exists()


def test_a_failure_leaves_nothing(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(image.directory.iterdir())
    monkeypatch.setattr(module, "_size_of", lambda _: (1, 1))
    monkeypatch.setattr(module, "_SPARE_BLOCKS", 0)
    with pytest.raises(ImageError, match="mke2fs ended with status") as error:
        ensure_disk(image)
    assert "e2fsprogs" in error.value.remediation
    assert sorted(image.directory.iterdir()) == before


def test_an_agent_that_does_not_fit_is_noticed(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(image.rootfs / "opt")
    with pytest.raises(ImageError, match="guest agent could not be written"):
        ensure_disk(image)
