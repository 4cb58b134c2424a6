"""Gets runsc for hosts that have none, into a private folder: signed Debian package first, official release else."""

from __future__ import annotations

import hashlib
import os
import platform
import urllib.request
from collections.abc import Callable
from pathlib import Path

from emberbox.config import Settings
from emberbox.errors import VmExecutionError, VmNotAvailable
from emberbox.host.apt import fetch_package
from emberbox.machines.gvisor.runsc import PINNED_VERSION, Runsc, find_runsc, private_runsc

_SUITES = ("bookworm-backports",)
_RELEASE = "https://storage.googleapis.com/gvisor/releases/release/20240729.0"
"""The release that Debian's package is made from; the layout of the URL: https://gvisor.dev/docs/user_guide/install/."""
_MAX_BYTES = 200 << 20
_TIMEOUT = 120


def install_runsc(settings: Settings, say: Callable[[str], None]) -> Runsc:
    """Fetch runsc and see that it answers.

    Raises:
        VmNotAvailable: no source had it; the message lists what each said.
    """
    target = private_runsc(settings)
    problems: list[str] = []
    for fetch in (_from_debian, _from_release):
        try:
            fetch(target, settings, say)
        except (VmExecutionError, OSError) as exc:
            problems.append(str(exc))
            continue
        found, why = find_runsc(settings)
        if found is not None:
            return found
        problems.extend(why)
    raise VmNotAvailable(
        "runsc could not be installed: " + "; ".join(problems),
        remediation="Install gVisor's runsc by hand (https://gvisor.dev/docs/user_guide/install/) and put it on the "
        "PATH, or set EMBERBOX_RUNSC to its path.",
    )


def _from_debian(target: Path, settings: Settings, say: Callable[[str], None]) -> None:
    folder = settings.cache_dir / "packages" / "runsc"
    fetch_package("runsc", PINNED_VERSION, _SUITES, folder, say)
    _publish(folder / "usr/bin/runsc", target)


def _publish(program: Path, target: Path) -> None:
    """Put a program into place at once, never half."""
    target.parent.mkdir(parents=True, exist_ok=True)
    link = target.with_name(f".{target.name}.{os.getpid()}")
    link.unlink(missing_ok=True)
    link.symlink_to(program)
    link.replace(target)


def _from_release(target: Path, settings: Settings, say: Callable[[str], None]) -> None:
    """The official release. Its checksum comes from the release itself over HTTPS, or from `runsc_sha512`."""
    url = f"{_RELEASE}/{platform.machine()}/runsc"
    say(f"downloading {url}")
    wanted = settings.runsc_sha512 or _download(f"{url}.sha512", 1 << 12).split()[0].decode()
    data = _download(url, _MAX_BYTES)
    if hashlib.sha512(data).hexdigest() != wanted:
        raise VmNotAvailable(f"{url} does not have the checksum {wanted[:16]}….", remediation="Do not use this file.")
    folder = settings.cache_dir / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    building = folder / f".runsc-release.{os.getpid()}"
    try:
        building.write_bytes(data)
        building.chmod(0o755)
        building.rename(folder / "runsc-release")
    finally:
        building.unlink(missing_ok=True)
    _publish(folder / "runsc-release", target)


def _download(url: str, most: int) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:  # noqa: S310 (constant https URL)
        data: bytes = answer.read(most + 1)
    if len(data) > most:
        raise VmNotAvailable(f"{url} is larger than {most} bytes.")
    return data
