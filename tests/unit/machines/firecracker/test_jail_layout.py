"""Files of a machine: what Firecracker reads, and what it wrote, which may have been written by a guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emberbox.machines.firecracker import FirecrackerOptions
from emberbox.machines.firecracker.jail_layout import WRITABLE, JailLayout, install_program


@pytest.fixture
def place(tmp_path: Path) -> JailLayout:
    place = JailLayout.of(tmp_path / "owner", "fc1", None)
    place.make()
    return place


def test_without_a_jail_files_are_linked(place: JailLayout, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"disk")
    place.offer(tmp_path / "disk", "root.ext4")
    place.offer(tmp_path / "disk", "root.ext4")
    assert (place.root / "root.ext4").readlink() == tmp_path / "disk"
    assert place.directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to another user")
def test_in_a_jail_files_are_hard_links_or_copies(tmp_path: Path) -> None:
    place = JailLayout.of(tmp_path / "owner", "fc1", 300_001)
    place.make()
    assert place.root == tmp_path / "owner/firecracker/fc1/root"
    for name, mode in (("shared", 0o444), ("private", 0o600)):
        (tmp_path / name).write_bytes(name.encode())
        (tmp_path / name).chmod(mode)
        place.offer(tmp_path / name, name)
        assert (place.root / name).read_bytes() == name.encode()
    assert (place.root / "shared").stat().st_ino == (tmp_path / "shared").stat().st_ino
    assert (place.root / "private").stat().st_uid == 300_001
    assert (tmp_path / "private").stat().st_uid == 0
    place.close_root()
    assert place.root.stat().st_uid == 0
    assert (place.root / WRITABLE).stat().st_uid == 300_001
    place.remove()
    assert not place.directory.exists()


def test_a_file_that_was_written_is_taken(place: JailLayout, tmp_path: Path) -> None:
    (place.root / place.written("memory")).write_bytes(b"memory")
    place.take("memory", tmp_path / "taken")
    assert (tmp_path / "taken").read_bytes() == b"memory"
    assert (tmp_path / "taken").stat().st_mode & 0o777 == 0o444
    assert not (place.root / place.written("memory")).exists()


def test_links_are_not_taken_for_snapshots(place: JailLayout, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    secret.chmod(0o600)
    written = place.root / place.written("memory")
    written.symlink_to(secret)
    with pytest.raises(OSError, match="symbolic"):
        place.take("memory", tmp_path / "taken")
    written.unlink()
    os.link(secret, written)
    with pytest.raises(OSError, match="no plain file"):
        place.take("memory", tmp_path / "taken")
    written.unlink()
    os.mkfifo(written)
    with pytest.raises(OSError, match="no plain file"):
        place.take("memory", tmp_path / "taken")
    assert secret.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "taken").exists()


def test_command_lines(tmp_path: Path) -> None:
    options = FirecrackerOptions(Path("/x/fc-1.12"), Path("/x/jailer"), Path("/x/vmlinux"))
    plain = JailLayout.of(tmp_path, "fc1", None).command(options, tmp_path)
    assert plain[0] == "/x/fc-1.12"
    assert f"{tmp_path}/fc1/api.sock" in plain
    jailed = JailLayout.of(tmp_path, "fc1", 7).command(options, tmp_path)
    assert jailed[0] == "/x/jailer"
    assert "--new-pid-ns" in jailed
    assert "--no-seccomp" not in (*plain, *jailed)
    assert list(jailed[jailed.index("--") :]) == ["--", "--api-sock", "/api.sock", "--level", "Warn"]


def test_the_program_is_copied_once(tmp_path: Path) -> None:
    (tmp_path / "fc").write_bytes(b"program")
    options = FirecrackerOptions(tmp_path / "fc", Path("/x/jailer"), Path("/x/vmlinux"))
    for _ in range(2):
        install_program(options, tmp_path)
    assert (tmp_path / "firecracker/firecracker").read_bytes() == b"program"
