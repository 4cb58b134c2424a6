"""Debian packages: install them with rights, or fetch and unpack one without touching the system.

`fetch_package` works as any user and with the signatures of the archive: apt runs on folders of its own, next to the
host's sources, which stay as they are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from emberbox.errors import VmNotAvailable

Say = Callable[[str], None]
_TIMEOUT = 1800
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True, slots=True)
class Privilege:
    """How to run a program as root: directly, with sudo, or not at all."""

    prefix: tuple[str, ...] | None

    @classmethod
    def find(cls) -> Privilege:
        if os.getuid() == 0:
            return cls(())
        sudo = shutil.which("sudo")
        return cls((sudo,) if sudo else None)


def has_apt() -> bool:
    """Whether this host is Debian or a child of it."""
    return shutil.which("apt-get") is not None and shutil.which("dpkg-deb") is not None


def install_packages(packages: Sequence[str], say: Say) -> None:
    """Install Debian packages on the host (as root, or through sudo, which may ask for its password).

    Raises:
        VmNotAvailable: no apt, no rights, or apt failed; the message says which.
    """
    names = " ".join(packages)
    remedy = f"Install them yourself: apt-get install {names}"
    if not has_apt():
        raise VmNotAvailable(f"These packages are missing, and this host has no apt: {names}.", remediation=remedy)
    privilege = Privilege.find()
    if privilege.prefix is None:
        raise VmNotAvailable(f"These packages are missing and need root to install: {names}.", remediation=remedy)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    install = [*privilege.prefix, "apt-get", "install", "--yes", "--no-install-recommends", *packages]
    say(f"installing {names}")
    first = subprocess.run(install, env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if first.returncode == 0:
        return
    # the package lists of a fresh machine are empty or old
    say("reading package lists")
    update = [*privilege.prefix, "apt-get", "update"]
    subprocess.run(update, env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    say(f"installing {names}")
    second = subprocess.run(install, env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if second.returncode != 0:
        raise VmNotAvailable(f"apt-get could not install {names}: {second.stderr.strip()[-800:]}", remediation=remedy)


def fetch_package(package: str, least: str, suites: Sequence[str], into: Path, say: Say) -> str:
    """Fetch a package of at least version `least`, check it, unpack it into `into` (made anew); the version.

    First from the host's own sources, then from these suites of the mirror that the host uses for Debian.

    Raises:
        VmNotAvailable: it cannot be had; the message has apt's words.
    """
    if not has_apt():
        raise VmNotAvailable("This host has no apt.", remediation="Install the program by hand and set its path.")
    with tempfile.TemporaryDirectory(prefix="emberbox-apt-") as folder:
        work = Path(folder)
        problems = []
        for options in _sources(suites, work, say):
            answer = _apt(["apt-get", *options, "download", package], work)
            debs = sorted(work.glob(f"{package}_*.deb"))
            if answer.returncode != 0 or not debs:
                problems.append(answer.stderr.strip()[-300:])
                continue
            version = _field(debs[0], "Version")
            if _apt(["dpkg", "--compare-versions", version, "ge", least], work).returncode == 0:
                say(f"unpacking {debs[0].name}")
                _unpack(debs[0], into)
                return version
            problems.append(f"{version} is older than {least}")
            debs[0].unlink()
        raise VmNotAvailable(f"The package {package} cannot be fetched: {'; '.join(problems) or 'no source has it'}.")


def download_packages(packages: Sequence[str], into: Path, say: Say) -> list[Path]:
    """Fetch packages, unopened, from the host's own sources; apt checks their signatures.

    Args:
        packages: their names.
        into: a folder of the caller's.
        say: told what is being done.

    Raises:
        VmNotAvailable: one of them cannot be had; the message has apt's words.
    """
    if not has_apt():
        raise VmNotAvailable("This host has no apt.", remediation=f"Fetch {' and '.join(packages)} elsewhere.")
    found = []
    for package in packages:
        say(f"downloading {package}")
        answer = _apt(["apt-get", "download", package], into)
        debs = sorted(into.glob(f"{package}_*.deb"))
        if answer.returncode != 0 or not debs:
            raise VmNotAvailable(
                f"The package {package} cannot be fetched: {answer.stderr.strip()[-300:] or 'apt has none'}.",
                remediation="Is the network reachable? Package lists that are old are read anew by: apt-get update",
            )
        found.append(debs[-1])
    return found


def package_fields(deb: Path, *names: str) -> dict[str, str]:
    """Fields of a package file by their names, such as `Version`; empty where it has none.

    Raises:
        VmNotAvailable: it is no package, or there is no dpkg-deb.
    """
    try:
        return {name: _field(deb, name) for name in names}
    except (OSError, subprocess.SubprocessError) as exc:
        words = getattr(exc, "stderr", None) or exc
        raise VmNotAvailable(f"{deb} cannot be read as a Debian package: {str(words).strip()[-300:]}.") from exc


def unpack_package(deb: Path, into: Path) -> None:
    """Unpack a package file into a folder, which is made anew; raises VmNotAvailable."""
    _unpack(deb, into)


def _sources(suites: Sequence[str], work: Path, say: Say) -> list[list[str]]:
    """Option lists for apt: the host's own state, then private states with one suite each."""
    found: list[list[str]] = [[]]
    mirror = _debian_mirror(work)
    if mirror is None or not _KEYRING.is_file():
        return found
    for suite in suites:
        state = work / suite
        for part in ("lists/partial", "cache/archives/partial", "parts"):
            (state / part).mkdir(parents=True)
        (state / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n")
        options = [
            "-o", f"Dir::Etc::sourcelist={state}/sources.list", "-o", f"Dir::Etc::sourceparts={state}/parts",
            "-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::Cache={state}/cache",
            "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root",
        ]  # fmt: skip
        say(f"reading package lists of {suite}")
        if _apt(["apt-get", *options, "update"], work).returncode == 0:
            found.append(options)
    return found


def _debian_mirror(work: Path) -> str | None:
    answer = _apt(["apt-get", "indextargets", "--format", "$(ORIGIN)|$(SITE)", "Identifier: Packages"], work)
    match = re.search(r"(?m)^Debian\|(https?://\S+)$", answer.stdout)
    return match[1] if match else None


def _apt(argv: list[str], work: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        argv, cwd=work, env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=False
    )


def _field(deb: Path, name: str) -> str:
    argv = ["dpkg-deb", "-f", str(deb), name]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=_TIMEOUT).stdout.strip()


def _unpack(deb: Path, into: Path) -> None:
    building = into.with_name(f".{into.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        subprocess.run(["dpkg-deb", "-x", deb, building], check=True, capture_output=True, timeout=_TIMEOUT)
        building.chmod(0o755)
        shutil.rmtree(into, ignore_errors=True)
        building.rename(into)
    except (OSError, subprocess.SubprocessError) as exc:
        raise VmNotAvailable(f"Cannot unpack {deb.name}: {exc}.") from exc
    finally:
        shutil.rmtree(building, ignore_errors=True)
