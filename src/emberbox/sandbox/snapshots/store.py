"""Snapshots that outlive the process: `<state_dir>/snapshots/<id>/{snapshot.json, memory and state}`.

A directory is a snapshot from the moment on at which it has its `snapshot.json`, which is written last and whole. It
holds all that is needed to go on from it, but the image, and a digest of every other file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, ValidationError

from emberbox._files import write_whole
from emberbox.errors import ImageError, SnapshotFailed, SnapshotNotFound
from emberbox.images.store import Image, ImageStore
from emberbox.images.template import Template
from emberbox.machines.contract import Snapshot
from emberbox.machines.digests import state_of
from emberbox.models import MachineLimits, Model, SnapshotInfo
from emberbox.sandbox.lineage import SnapshotPoint
from emberbox.sandbox.snapshots.tree import RECORD, Node

FORMAT = 1
BUILDING = ".new-"
"""A directory whose name begins so is a snapshot that somebody is just putting together."""
_ABANDONED_SECONDS = 3600


def _not_the_record(name: str) -> str:
    if name == RECORD:
        raise ValueError("the record has no digest of itself")
    return name


FileName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,99}$"), AfterValidator(_not_the_record)]
"""Of a file of a snapshot, beside its record. A record may have come from elsewhere: no name in it is a path."""
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class SnapshotRecord(Model):
    """What `snapshot.json` holds."""

    model_config = ConfigDict(hide_input_in_errors=True)
    """What is wrong with one is told to users and logged; an environment may be secret."""

    format: int = FORMAT
    info: SnapshotInfo
    path: list[str] = Field(default_factory=list)
    path_count: int = Field(default=0, description="how many executions it consists of; 0: those of the path")
    last_request: int
    digests: dict[FileName, Digest]
    backend: str
    processor: str
    image: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,150}$")]
    built_at: datetime
    guest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{20}$")]
    imported: bool = Field(default=False, description="it came from elsewhere, and belongs to no sandbox of this host")
    template: Template
    limits: MachineLimits
    envs: dict[str, str] = Field(default_factory=dict)
    metadata: dict[str, str] = Field(default_factory=dict)


class SnapshotStore:
    """The snapshots of one state directory. Any number of processes may use it at once.

    Args:
        folder: where they are; private to this user.
        images: where the images are that they need.
        identity: name and version of what runs the machines.
    """

    def __init__(self, folder: Path, images: ImageStore, identity: Callable[[], str]) -> None:
        self.folder = folder
        self.images = images
        self._identity = identity
        self._sizes: dict[str, tuple[str, int]] = {}
        """Agent and bytes of each snapshot that `bytes_of` has read."""
        self._reading = threading.Lock()

    # --- write ----------------------------------------------------------------------------------------------------

    def seal(self, node: Node, envs: dict[str, str], metadata: dict[str, str]) -> None:
        """Make a snapshot in this folder whole: from here on it survives. Blocks for the digests.

        Raises:
            SnapshotFailed: the disk refused.
        """
        image = node.snapshot.image
        try:
            record = SnapshotRecord(
                info=node.info,
                path=list(node.moment.executions),
                path_count=node.moment.count,
                last_request=node.snapshot.last_request,
                digests=digests_of(node.snapshot.directory),
                backend=self._identity(),
                processor=os.uname().machine,
                image=image.directory.name,
                built_at=image.manifest.built_at,
                guest=image.guest_dir.name,
                template=image.template,
                limits=node.snapshot.limits,
                envs=envs,
                metadata=metadata,
            )
            self._check_untouched(node.snapshot)
            self.write(record, node.snapshot.directory)
            node.verified(record.digests)
        except OSError as exc:
            raise SnapshotFailed(f"Cannot keep snapshot {node.info.snapshot_id}: {exc.strerror or exc}.") from exc

    @staticmethod
    def _check_untouched(snapshot: Snapshot) -> None:
        """Raises SnapshotFailed: the digests may be those of something else than what was written."""
        for name, then in (snapshot.written or {}).items():
            now = state_of(snapshot.directory / name)
            if now._replace(changed_ns=then.changed_ns) == then:  # links to it come and go
                continue
            raise SnapshotFailed(f"Somebody changed {snapshot.directory} while the snapshot was taken.")

    def keep(self, node: Node, envs: dict[str, str], metadata: dict[str, str]) -> None:
        """Keep a copy of a snapshot that would end with its sandbox (of the same files, where the file system can).

        Raises:
            SnapshotFailed: the disk refused.
        """
        building = self.folder / f"{BUILDING}{node.info.snapshot_id}"
        self._check_untouched(node.snapshot)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            building.mkdir(mode=0o700)
            for path in node.snapshot.directory.iterdir():
                try:
                    os.link(path, building / path.name)
                except OSError:
                    shutil.copyfile(path, building / path.name)
            copy = Node(node.info, replace(node.snapshot, directory=building, written=None), node.moment)
            node.info.kept = True
            self.seal(copy, envs, metadata)
            building.rename(self.folder / node.info.snapshot_id)
            node.verified(copy.snapshot.digests)  # links changed its files' inodes
        except BaseException as exc:
            node.info.kept = False
            shutil.rmtree(building, ignore_errors=True)
            if isinstance(exc, OSError):
                words = f"Cannot keep snapshot {node.info.snapshot_id} in {self.folder}: {exc.strerror or exc}."
                raise SnapshotFailed(words) from exc
            raise

    @staticmethod
    def write(record: SnapshotRecord, directory: Path) -> None:
        """Write the record of a snapshot into its directory, whole or not at all; raises OSError."""
        write_whole(directory / RECORD, record.model_dump_json(indent=1))

    # --- read -----------------------------------------------------------------------------------------------------

    def records(self) -> list[SnapshotRecord]:
        """All that can be read, oldest first."""
        found = []
        with contextlib.suppress(OSError):
            for directory in self.folder.iterdir():
                with contextlib.suppress(SnapshotNotFound, SnapshotFailed):
                    found.append(self.record(directory.name))
        return sorted(found, key=lambda record: record.info.created_at)

    def record(self, snapshot_id: str) -> SnapshotRecord:
        """The record of a snapshot.

        Raises:
            SnapshotNotFound: there is none of this id.
            SnapshotFailed: it cannot be read.
        """
        directory = self._directory(snapshot_id)
        try:
            record = SnapshotRecord.model_validate_json((directory / RECORD).read_bytes())
        except FileNotFoundError:
            raise SnapshotNotFound(
                f"There is no kept snapshot {snapshot_id!r:.80}.", remediation="`emberbox snapshot list` shows them."
            ) from None
        except (OSError, ValidationError) as exc:
            raise SnapshotFailed(f"{directory / RECORD} cannot be read: {exc}.", remediation=_DELETE) from exc
        if record.format != FORMAT or record.info.snapshot_id != snapshot_id:
            raise SnapshotFailed(f"{directory} is no snapshot of this version of Emberbox.", remediation=_DELETE)
        return record

    def bytes_of(self, agent_id: str, without: Container[str]) -> int:
        """Sum up what an agent's snapshots take here, but for those of the ids `without`. Blocks; each record is read
        once."""
        with self._reading, contextlib.suppress(OSError):
            there = {entry.name for entry in os.scandir(self.folder) if not entry.name.startswith(".")}
            for gone in self._sizes.keys() - there:
                del self._sizes[gone]
            for name in there - self._sizes.keys():
                with contextlib.suppress(SnapshotNotFound, SnapshotFailed):  # it is not finished yet, or damaged
                    info = self.record(name).info
                    self._sizes[name] = (info.agent_id, info.size_bytes)
        with self._reading:
            mine = [(name, size) for name, (owner, size) in self._sizes.items() if owner == agent_id]
        return sum(size for name, size in mine if name not in without)

    def node(self, record: SnapshotRecord) -> Node:
        """What machines can be forked from. The digests of its files are checked when that is done.

        Raises:
            SnapshotFailed: it was taken by another back end, or its image is not there any more.
        """
        self.check_backend(record)
        snapshot = Snapshot(
            self.folder / record.info.snapshot_id,
            self._image(record),
            record.limits,
            record.last_request,
            record.info.size_bytes,
            digests=record.digests,
        )
        moment = SnapshotPoint(tuple(record.path), record.info.good, count=record.path_count)
        return Node(record.info, snapshot, moment)

    def check_backend(self, record: SnapshotRecord) -> None:
        """Raises SnapshotFailed: it was taken by another back end, or on another processor."""
        here = f"{self._identity()} on {os.uname().machine}"
        if (there := f"{record.backend} on {record.processor}") != here:
            raise SnapshotFailed(
                f"Snapshot {record.info.snapshot_id} is of {there}, and this is {here}.",
                remediation="A snapshot needs the back end, version and processor that it was taken with. (For gVisor, "
                "`emberbox setup --runsc FILE` takes another version.)",
                retryable=False,
            )

    def _image(self, record: SnapshotRecord) -> Image:
        try:
            return self.images.reopen(record.image, record.built_at, record.guest, record.template)
        except ImageError as exc:
            raise SnapshotFailed(
                f"Snapshot {record.info.snapshot_id} cannot be used: {exc.message}",
                remediation=exc.remediation,
                retryable=False,
            ) from exc

    # --- remove ---------------------------------------------------------------------------------------------------

    def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot; raises SnapshotNotFound."""
        directory = self._directory(snapshot_id)
        try:
            (directory / RECORD).unlink()  # from here on it is none, whatever happens
        except OSError:
            raise SnapshotNotFound(
                f"There is no kept snapshot {snapshot_id!r:.80}.", remediation="`emberbox snapshot list` shows them."
            ) from None
        shutil.rmtree(directory, ignore_errors=True)

    def sweep(self, unwanted: Callable[[SnapshotInfo], bool]) -> None:
        """Remove what is not wanted any more. (Sealed or not: see `sweep_unfinished`.)"""
        for record in self.records():
            if unwanted(record.info):
                with contextlib.suppress(SnapshotNotFound):
                    self.remove(record.info.snapshot_id)

    def sweep_unfinished(self) -> None:
        """Remove what was never finished. Only for whoever keeps the sandboxes of this state directory, and takes no
        snapshot now: others put one together under another name (`BUILDING`), which may take a while."""
        self.sweep_copies()
        with contextlib.suppress(OSError):
            for directory in self.folder.iterdir():
                if not directory.name.startswith(BUILDING) and not (directory / RECORD).exists():
                    shutil.rmtree(directory, ignore_errors=True)

    def sweep_copies(self) -> None:
        """Remove what somebody was putting together when he was killed. Any process may do so."""
        with contextlib.suppress(OSError):
            for directory in self.folder.glob(f"{BUILDING}*"):
                if time.time() - directory.lstat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(directory, ignore_errors=True)

    def names(self) -> list[str]:
        """Ids of all that have a record, whether it can be read or not."""
        return sorted(path.parent.name for path in self.folder.glob(f"snap-*/{RECORD}"))

    @staticmethod
    def check_id(snapshot_id: str) -> None:
        """Raises SnapshotNotFound: it cannot be the id of a snapshot."""
        if not re.fullmatch(r"snap-[0-9a-f]{1,40}", snapshot_id):
            raise SnapshotNotFound(
                f"{snapshot_id!r:.80} is no id of a snapshot.", remediation="`emberbox snapshot list` shows them."
            )

    def _directory(self, snapshot_id: str) -> Path:
        self.check_id(snapshot_id)
        return self.folder / snapshot_id


_DELETE = "Delete it with `emberbox snapshot delete`, if it is not wanted."


def digests_of(directory: Path, skipped: Iterable[str] = (RECORD, f".{RECORD}")) -> dict[str, str]:
    """SHA-256 of every file; raises OSError."""
    found = {}
    for path in sorted(directory.iterdir()):
        if path.name not in skipped:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
