"""Gets runsc: for hosts that have none a signed Debian package, else an official release; or the one asked for."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from emberbox._files import write_whole
from emberbox.config import Settings
from emberbox.errors import VmExecutionError, VmNotAvailable
from emberbox.host.apt import fetch_package
from emberbox.machines.gvisor.build import build_runsc
from emberbox.machines.gvisor.runsc import PINNED_VERSION, Runsc, ask, chosen_runsc, find_runsc, private_runsc

_SUITES = ("bookworm-backports",)
_RELEASES = "https://storage.googleapis.com/gvisor/releases/release"
"""Official releases; the layout of the URL: https://gvisor.dev/docs/user_guide/install/. Up to 20260817.0 they have the
program by itself, from then on an archive with it and the programs that it starts (runsc/cmd/install_sidecars.go)."""
_RELEASE = "20240729.0"
"""The one that Debian's package is made from."""
_ARCHIVE = "gvisor.tar.bz2"
_MEMBER = re.compile(r"(?:\./)?((?:gvisor-bin/)?[A-Za-z0-9_][A-Za-z0-9_.-]*)")
_MAX_BYTES = 400 << 20
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


def choose_runsc(settings: Settings, wanted: str, say: Callable[[str], None]) -> Runsc:
    """Take one runsc before all others from now on.

    Args:
        wanted: `newest`: the official release of today, or, where none is reached, the pinned one built from its
            source; `default`: none is chosen any more; else the path of a program.

    Raises:
        VmNotAvailable: it cannot be had, or does not answer; what was chosen before stays.
    """
    target = chosen_runsc(settings)
    if wanted == "default":
        target.unlink(missing_ok=True)
        found, _ = find_runsc(settings)
        return found or install_runsc(settings, say)
    try:
        program = _newest(settings, say) if wanted == "newest" else Path(wanted).resolve(strict=True)
    except OSError as exc:
        raise VmNotAvailable(f"{wanted}: {exc.strerror or exc}", remediation="Name a runsc program.") from exc
    ask(program, "")
    _publish(program, target)
    return ask(target, "emberbox setup --runsc")


def _newest(settings: Settings, say: Callable[[str], None]) -> Path:
    try:
        return _release_archive(settings, "latest", say)
    except OSError as exc:  # what is reached and has a wrong checksum is an error
        say(f"no official release is reached ({exc}); it is built from its source")
        return build_runsc(settings, say)


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
    _publish(_release(settings, _RELEASE, say), target)


def _release(settings: Settings, release: str, say: Callable[[str], None]) -> Path:
    """An official release. Its checksum comes from the release itself over HTTPS, or from `runsc_sha512`."""
    url = f"{_RELEASES}/{release}/{platform.machine()}/runsc"
    say(f"downloading {url}")
    wanted = settings.runsc_sha512 or _download(f"{url}.sha512", 1 << 12).split()[0].decode()
    data = _download(url, _MAX_BYTES)
    if hashlib.sha512(data).hexdigest() != wanted:
        raise VmNotAvailable(f"{url} does not have the checksum {wanted[:16]}….", remediation="Do not use this file.")
    program = settings.cache_dir / "packages" / f"runsc-release-{wanted[:12]}" / "runsc"
    program.parent.mkdir(parents=True, exist_ok=True)
    write_whole(program, data, mode=0o755)
    return program


def _release_archive(settings: Settings, release: str, say: Callable[[str], None]) -> Path:
    """An official release as they are now: runsc, and beside it the programs that it starts."""
    url = f"{_RELEASES}/{release}/{platform.machine()}/{_ARCHIVE}"
    say(f"downloading {url}")
    wanted = _download(f"{url}.sha512", 1 << 12).split()[0].decode()
    folder = settings.cache_dir / "packages" / f"gvisor-{wanted[:12]}"
    if (folder / "runsc").is_file():
        return folder / "runsc"
    data = _download(url, _MAX_BYTES)
    if hashlib.sha512(data).hexdigest() != wanted:
        raise VmNotAvailable(f"{url} does not have the checksum {wanted[:16]}….", remediation="Do not use this file.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder.parent) as place:
        unpack(data, Path(place) / "release")
        shutil.rmtree(folder, ignore_errors=True)
        (Path(place) / "release").rename(folder)
    return folder / "runsc"


def unpack(archive: bytes, folder: Path) -> None:
    """Unpack the programs of a release (names without anything that leads elsewhere) into a new folder.

    Raises:
        VmNotAvailable: it is damaged, larger than a release is, or has no runsc.
    """
    left = _MAX_BYTES * 4
    (folder / "gvisor-bin").mkdir(parents=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:bz2") as members:
            for member in members:
                name = _MEMBER.fullmatch(member.name)
                source = members.extractfile(member) if member.isfile() and name is not None else None
                if source is None or name is None:
                    continue
                left -= member.size
                if left < 0:
                    raise VmNotAvailable("The archive of this release unpacks to more than a release has.")
                target = folder / name[1]
                target.write_bytes(source.read(member.size))
                target.chmod(0o755)
    except (tarfile.TarError, OSError, EOFError) as exc:
        raise VmNotAvailable(f"The archive of this release cannot be unpacked: {exc}.") from exc
    if not (folder / "runsc").is_file():
        raise VmNotAvailable("The archive of this release has no runsc.")


def _download(url: str, most: int) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:  # noqa: S310 (constant https URL)
        data: bytes = answer.read(most + 1)
    if len(data) > most:
        raise VmNotAvailable(f"{url} is larger than {most} bytes.")
    return data
