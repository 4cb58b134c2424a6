"""Gets firecracker and jailer for hosts that have none, into a private folder: the official release, version pinned.

A file that was fetched elsewhere does as well, for hosts without a network: the release's archive, or a wheel or any
other zip archive that holds the two programs. Either way the programs must have the digests below.
"""

from __future__ import annotations

import hashlib
import io
import platform
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from emberbox._files import write_whole
from emberbox.config import Settings
from emberbox.errors import VmNotAvailable
from emberbox.machines.firecracker.options import PINNED_VERSION, private_folder, version_of

RELEASE = (
    f"https://github.com/firecracker-microvm/firecracker/releases/download/v{PINNED_VERSION}/"
    f"firecracker-v{PINNED_VERSION}-{{machine}}.tgz"
)
"""The layout of the URL and of the archive: docs/getting-started.md of Firecracker."""
DIGESTS: Mapping[str, Mapping[str, str]] = {
    "x86_64": {
        "firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
        "jailer": "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
    }
}
"""SHA-256 of the programs, by the processor's architecture."""
_MAX_BYTES = 100 << 20
_TIMEOUT = 120
_BY_HAND = (
    "Fetch the release by hand and give it to `emberbox setup --backend firecracker --from FILE`, or put firecracker "
    "and jailer on the PATH."
)


def install_firecracker(settings: Settings, say: Callable[[str], None], archive: Path | None = None) -> Path:
    """Install both programs and see that they answer; the folder.

    Args:
        settings: name the cache directory.
        say: told what is being done.
        archive: a file to take them from, instead of the network.

    Raises:
        VmNotAvailable: they could not be had, or are not what they must be; nothing is left.
    """
    wanted = DIGESTS.get(platform.machine())
    if wanted is None:
        raise VmNotAvailable(
            f"No digests of Firecracker {PINNED_VERSION} are known for {platform.machine()}.",
            remediation="Put firecracker and jailer on the PATH.",
        )
    try:
        if archive is not None:
            say(f"reading {archive}")
            data = archive.read_bytes()
        else:
            data = _download(RELEASE.format(machine=platform.machine()), say)
        programs = _programs(data, wanted)
        folder = private_folder(settings)
        folder.mkdir(parents=True, exist_ok=True)
        for name, program in programs.items():
            write_whole(folder / name, program, mode=0o755)
    except OSError as exc:
        raise VmNotAvailable(f"Firecracker could not be installed: {exc}.", remediation=_BY_HAND) from exc
    for name in wanted:
        if version_of(folder / name) != PINNED_VERSION:
            raise VmNotAvailable(f"{folder / name} does not run on this host.", remediation=_BY_HAND)
    return folder


def _download(url: str, say: Callable[[str], None]) -> bytes:
    say(f"downloading {url}")
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:  # noqa: S310 (constant https URL)
        data: bytes = answer.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise VmNotAvailable(f"{url} is larger than {_MAX_BYTES} bytes.")
    return data


def _programs(data: bytes, wanted: Mapping[str, str]) -> dict[str, bytes]:
    """The two programs of an archive, found by name (`firecracker`, `firecracker-v1.12.1-x86_64`) and checked."""
    found: dict[str, bytes] = {}
    try:
        for path, content in _members(data):
            name = PurePosixPath(path).name
            for program, digest in wanted.items():
                plain = name in (program, f"{program}-v{PINNED_VERSION}-{platform.machine()}")
                if plain and hashlib.sha256(content()).hexdigest() == digest:
                    found[program] = content()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as exc:
        raise VmNotAvailable(f"The archive of Firecracker cannot be read: {exc}.", remediation=_BY_HAND) from exc
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise VmNotAvailable(
            f"The archive holds no {' and no '.join(missing)} of Firecracker {PINNED_VERSION} with the known digest.",
            remediation="Do not use this file. " + _BY_HAND,
        )
    return found


def _members(data: bytes) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names and contents of the plain files of a zip or tar archive, none larger than is sensible."""
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                if not info.is_dir() and info.file_size <= _MAX_BYTES:
                    yield info.filename, lambda info=info: archive.read(info)  # type: ignore[misc]
        return
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            if member.isfile() and member.size <= _MAX_BYTES:
                yield member.name, lambda member=member: _content(archive, member)  # type: ignore[misc]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file is not None else b""
