"""Template snapshots: a machine as it is right after its agent was configured and its interpreters warmed.

The first sandbox of a template boots, and is written down before any user code; the ones after it are forked from that,
in this process and in later ones. What a snapshot depends on is in its key, so that it is never used for anything else.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from pathlib import Path

from pydantic import ValidationError

from emberbox.images.store import Image
from emberbox.machines.contract import Snapshot
from emberbox.models import MachineLimits, Model
from emberbox.sandbox.snapshots.store import digests_of

_FORMAT = 1
_MANIFEST = "snapshot.json"
_ABANDONED_SECONDS = 3600
_MOST_KEPT = 8
"""Of each back end: one of gVisor is made in a second and takes some ten MB, one of a microVM takes longer to make.
Every other set of limits is another one."""


class _Manifest(Model):
    last_request: int
    size_bytes: int
    digests: dict[str, str]


class TemplateSnapshots:
    """The cache of them: `<folder>/<key>/`, private to this user.

    Args:
        folder: where they are kept.
        backend: name of what makes the machines.
        identity: its name and version, and whatever else it depends on.
    """

    def __init__(self, folder: Path, backend: str, identity: str) -> None:
        self._folder = folder
        self._backend = backend
        self._identity = identity

    def key(self, image: Image, limits: MachineLimits) -> str:
        """A digest of everything that such a machine's memory depends on."""
        template = image.template
        parts = {
            "format": _FORMAT,
            "backend": self._identity,
            "processor": os.uname().machine,
            "image": str(image.directory),
            "built": image.manifest.built_at.isoformat(),
            "guest": image.guest_dir.name,
            "limits": limits.model_dump(),
            "env": template.env,
            "workdir": template.workdir,
            "languages": template.languages,
            "warm": template.warm,
            "warmup": template.warmup,
        }
        return f"{self._backend}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]}"

    def find(self, image: Image, limits: MachineLimits) -> Snapshot | None:
        """The snapshot of such machines, or None. Its files are checked when it is used."""
        directory = self._folder / self.key(image, limits)
        try:
            manifest = _Manifest.model_validate_json((directory / _MANIFEST).read_bytes())
            os.utime(directory)  # the least recently used ones are removed
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            shutil.rmtree(directory, ignore_errors=True)  # what is damaged must not be in the way of the next one
            return None
        return Snapshot(directory, image, limits, manifest.last_request, manifest.size_bytes, digests=manifest.digests)

    def place(self, image: Image, limits: MachineLimits) -> Path:
        """A directory of a name of its own for a snapshot that is about to be taken; raises OSError."""
        for folder in (self._folder.parent, self._folder):  # `parents` would make the first one as the umask has it
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_old()
        return self._folder / f"{self.key(image, limits)}.{secrets.token_hex(4)}"

    def keep(self, snapshot: Snapshot) -> None:
        """Put a snapshot that was taken into its `place` where `find` sees it; the first of two wins."""
        manifest = _Manifest(
            last_request=snapshot.last_request,
            size_bytes=snapshot.size_bytes,
            digests=digests_of(snapshot.directory),
        )
        (snapshot.directory / _MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
        try:
            snapshot.directory.rename(snapshot.directory.with_suffix(""))
        except OSError:
            shutil.rmtree(snapshot.directory, ignore_errors=True)

    def discard(self, snapshot: Snapshot) -> None:
        """Remove a snapshot that cannot be used."""
        shutil.rmtree(snapshot.directory, ignore_errors=True)

    def _remove_old(self) -> None:
        """What a killed process has left half-made, and what has not been used for longest. A snapshot that is removed
        under a fork that just begins costs that one a boot."""
        age = {path: time.time() - path.lstat().st_mtime for path in self._folder.iterdir()}
        ours = (path for path in age if "." not in path.name and path.name.startswith(f"{self._backend}-"))
        finished = sorted(ours, key=lambda path: age[path])
        for path, seconds in age.items():
            if "." in path.name and seconds > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        for path in finished[_MOST_KEPT - 1 :]:
            shutil.rmtree(path, ignore_errors=True)
