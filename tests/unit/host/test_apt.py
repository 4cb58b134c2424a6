"""What of apt can be tested without a mirror."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from emberbox.errors import VmNotAvailable
from emberbox.host import apt
from emberbox.host.apt import fetch_package, has_apt, install_packages


def forget(message: str) -> None:
    """Nobody watches."""


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH with nothing on it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_host_without_apt_is_told_what_to_install(no_programs: Path) -> None:
    assert not has_apt()
    with pytest.raises(VmNotAvailable, match="no apt: mmdebstrap tar") as info:
        install_packages(["mmdebstrap", "tar"], forget)
    assert info.value.remediation == "Install them yourself: apt-get install mmdebstrap tar"
    with pytest.raises(VmNotAvailable, match="no apt"):
        fetch_package("runsc", "1", [], no_programs / "into", forget)


def test_an_ordinary_user_without_sudo_is_told_what_to_install(
    no_programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("apt-get", "dpkg-deb"):
        program(no_programs, name, "exit 1")
    monkeypatch.setattr("emberbox.host.apt.os.getuid", lambda: 1000)
    with pytest.raises(VmNotAvailable, match="need root to install: tar"):
        install_packages(["tar"], forget)


def test_a_failed_installation_is_tried_again_with_fresh_lists_and_has_apts_words(
    no_programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(no_programs, "dpkg-deb", "exit 1")
    program(no_programs, "apt-get", f'echo "$1" >> {tmp_path}/calls; echo "E: Unable to locate" >&2; exit 100')
    monkeypatch.setattr("emberbox.host.apt.os.getuid", lambda: 0)
    with pytest.raises(VmNotAvailable, match="could not install tar: E: Unable to locate"):
        install_packages(["tar"], forget)
    assert (tmp_path / "calls").read_text().split() == ["install", "update", "install"]


@pytest.mark.skipif(not has_apt(), reason="no dpkg here")
def test_a_package_is_unpacked_whole_or_not_at_all(tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    (into / "old").touch()
    broken = tmp_path / "broken.deb"
    broken.write_text("no package")
    with pytest.raises(VmNotAvailable, match=r"Cannot unpack broken\.deb"):
        apt._unpack(broken, into)
    assert (into / "old").exists()
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True, mode=0o755)
    (tree / "DEBIAN" / "control").write_text(
        "Package: small\nVersion: 1.2~3\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: small\n"
    )
    (tree / "new").write_text("new")
    deb = tmp_path / "small.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, deb], check=True, capture_output=True)
    apt._unpack(deb, into)
    assert [path.name for path in into.iterdir()] == ["new"]
    assert apt._field(deb, "Version") == "1.2~3"
    assert not list(tmp_path.glob(".into*"))
