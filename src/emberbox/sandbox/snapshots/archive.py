"""Kept snapshots as one file, to carry to another host: a tar archive, compressed where its name ends in `.gz`.

It holds, in this order and under these names: `archive.json` (what this is), `snapshot.json` (the record), `guest/…`
(the agent that runs inside), `files/…` (memory and state). Whoever sends one is not trusted to have made it by this
program: nothing but plain files of expected names and bounded sizes is accepted, every byte is checked against a
digest, and the snapshot appears when it is whole. What is *in* the memory of the machine is another matter: see
SECURITY.md.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import secrets
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import ValidationError

from emberbox.errors import SnapshotFailed, ValidationFailed
from emberbox.images.store import guest_digest, guest_files
from emberbox.models import Model
from emberbox.sandbox.snapshots.store import BUILDING, FORMAT, SnapshotRecord, SnapshotStore
from emberbox.sandbox.snapshots.tree import RECORD

Progress = Callable[[str, float | None], None]

_HEAD = "archive.json"
_GUEST, _FILES = "guest/", "files/"
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_MOST_TEXT = 4 << 20
_MOST_GUEST = 8 << 20
_MOST_FILES = 200
_MOST_PADDING = 20 * tarfile.RECORDSIZE
"""Zeros at the end; tar(1) fills its last record with them."""
_GUEST_NAME = re.compile(r"[a-z_][a-z0-9_]{0,60}(/[a-z_][a-z0-9_]{0,60})?\.(py|js|sh)")
_SPARE = 64 << 20
"""Bytes that an import leaves free on the disk."""
_PLACE = "Correct the path, or the rights or the space there."


class Head(Model):
    """What `archive.json` holds."""

    kind: Literal["emberbox-snapshot"] = "emberbox-snapshot"
    format: int = FORMAT
    snapshot_id: str
    size_bytes: int


# --- export -----------------------------------------------------------------------------------------------------------


def export_snapshot(store: SnapshotStore, snapshot_id: str, target: Path, progress: Progress) -> int:
    """Write a snapshot to a new file, which only this user can read; its size in bytes. Blocks.

    Raises:
        SnapshotNotFound, SnapshotFailed: there is none, it is damaged, or the disk refused; nothing is left.
        ValidationFailed: there is such a file.
    """
    record = store.record(snapshot_id)
    if target.exists():
        raise ValidationFailed(f"{target} exists already.", remediation="Remove it, or choose another name.")
    building = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                _write_archive(store, record, file, progress, compress=target.name.endswith(".gz"))
            os.link(building, target)  # unlike a rename, it never replaces what somebody has made meanwhile
        finally:
            building.unlink()
        return target.stat().st_size
    except FileExistsError:
        raise ValidationFailed(f"{target} exists already.", remediation="Choose another name.") from None
    except OSError as exc:
        where = exc.filename or target
        raise SnapshotFailed(
            f"Cannot export snapshot {snapshot_id}: {where}: {exc.strerror or exc}.", remediation=_PLACE
        ) from exc


def _write_archive(
    store: SnapshotStore, record: SnapshotRecord, file: BinaryIO, progress: Progress, *, compress: bool
) -> None:
    with contextlib.ExitStack() as stack:
        out: BinaryIO = file
        if compress:
            out = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=1))  # type: ignore[assignment]
        head = Head(snapshot_id=record.info.snapshot_id, size_bytes=record.info.size_bytes)
        _write_text(out, _HEAD, head.model_dump_json(indent=1))
        _write_text(out, RECORD, record.model_dump_json(indent=1))
        for name, path in guest_files(_guest_dir(store, record)):
            _write_text(out, _GUEST + name, path.read_bytes())
        done = 0
        for name, digest in record.digests.items():
            with (store.folder / record.info.snapshot_id / name).open("rb") as source:
                size = os.fstat(source.fileno()).st_size
                out.write(_header(_FILES + name, size))
                hashed, copied = hashlib.sha256(), 0
                while copied < size and (data := source.read(min(_CHUNK, size - copied))):
                    out.write(data)
                    hashed.update(data)
                    copied += len(data)
                    done += len(data)
                    progress("writing", min(1.0, done / max(1, record.info.size_bytes)))
            if copied != size or hashed.hexdigest() != digest:
                raise SnapshotFailed(
                    f"{name} of snapshot {record.info.snapshot_id} is damaged.",
                    remediation="Delete it with `emberbox snapshot delete`, and take a new one.",
                    retryable=False,
                )
            out.write(bytes(-size % _BLOCK))
        out.write(bytes(2 * _BLOCK))


def _guest_dir(store: SnapshotStore, record: SnapshotRecord) -> Path:
    path = store.images.settings.cache_dir / "guest" / record.guest
    if not path.is_dir():
        raise SnapshotFailed(
            f"The guest agent of snapshot {record.info.snapshot_id} is not here.",
            remediation=f"Copy guest/{record.guest} of the time when it was taken to {path.parent}.",
        )
    return path


def _write_text(out: BinaryIO, name: str, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    out.write(_header(name, len(data)) + data + bytes(-len(data) % _BLOCK))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")


# --- import -----------------------------------------------------------------------------------------------------------


def import_snapshot(store: SnapshotStore, source: Path, progress: Progress) -> SnapshotRecord:
    """Take a snapshot in from a file, whole or not at all. Blocks.

    Raises:
        ValidationFailed: the file is no such archive, or is damaged, or this snapshot is here already.
        SnapshotFailed: it cannot be used here (another back end, no image), or the disk refused.
    """
    try:
        with source.open("rb") as file:
            magic = file.read(2)
            file.seek(0)
            stream: BinaryIO = gzip.GzipFile(fileobj=file) if magic == b"\x1f\x8b" else file  # type: ignore[assignment]
            return _Import(store, _Reader(stream, source), progress).run()
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise _bad(source, f"it is cut short or damaged ({exc})") from exc
    except OSError as exc:
        where = exc.filename or store.folder
        raise SnapshotFailed(f"Cannot import {source}: {where}: {exc.strerror or exc}.", remediation=_PLACE) from exc


def _bad(source: Path, why: str) -> ValidationFailed:
    return ValidationFailed(
        f"{source} cannot be imported: {why}.", remediation="Export it again, and compare the copies."
    )


class _Reader:
    """Reads a tar archive of plain files, from its beginning to its end; no other kind of entry is known here."""

    def __init__(self, stream: BinaryIO, source: Path) -> None:
        self._stream = stream
        self.source = source

    def entries(self) -> Iterator[tuple[str, int]]:
        """Name and size of each; its content must be read (`content`) before the next."""
        while True:
            block = self._exactly(_BLOCK)
            if block == bytes(_BLOCK):
                end = self._stream.read(_MOST_PADDING + 1)
                if len(end) < _BLOCK or len(end) > _MOST_PADDING or end.strip(b"\0"):
                    raise _bad(self.source, "it is cut short, or something follows its end")
                return
            try:
                info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
            except (tarfile.HeaderError, UnicodeDecodeError) as exc:
                raise _bad(self.source, f"it is no tar archive of a snapshot ({exc})") from exc
            if info.type != tarfile.REGTYPE or info.size < 0 or info.linkname or not info.name.isprintable():
                raise _bad(self.source, f"{info.name!r:.80} is not a plain file")
            yield info.name, info.size

    def content(self, size: int) -> Iterator[bytes]:
        """So many bytes, in pieces."""
        left = size
        while left:
            data = self._stream.read(min(_CHUNK, left))
            if not data:
                raise _bad(self.source, "it is cut short")
            left -= len(data)
            yield data
        if self._exactly(-size % _BLOCK).strip(b"\0"):
            raise _bad(self.source, "something is hidden between its files")

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._stream.read(size - len(data))
            if not piece:
                raise _bad(self.source, "it is cut short")
            data += piece
        return data


class _Import:
    """One archive on its way in."""

    def __init__(self, store: SnapshotStore, reader: _Reader, progress: Progress) -> None:
        self._store = store
        self._reader = reader
        self._progress = progress
        self._entries = reader.entries()
        self._next: tuple[str, int] | None = None
        self._left: list[Path] = []

    def run(self) -> SnapshotRecord:
        head = self._head()
        record = self._record(head)
        target = self._store.folder / record.info.snapshot_id
        if target.exists():
            raise ValidationFailed(
                f"Snapshot {record.info.snapshot_id} is here already.",
                remediation="Delete it with `emberbox snapshot delete` first.",
            )
        try:
            guest = self._guest(record)
            self._check_usable(record)
            building = self._files(record)
            self._install(guest, record.guest)
            self._store.node(record)
            self._store.write(record, building)
            building.rename(target)
        finally:
            for path in self._left:
                shutil.rmtree(path, ignore_errors=True)
        return record

    def _head(self) -> Head:
        text = self._text(_HEAD)
        try:
            head = Head.model_validate_json(text)
        except ValidationError as exc:
            raise _bad(self._reader.source, "it is no archive of a snapshot") from exc
        if head.format != FORMAT:
            raise ValidationFailed(
                f"{self._reader.source} is of format {head.format}, and this Emberbox reads format {FORMAT}.",
                remediation="Import it with the version of Emberbox that wrote it, or a newer one.",
            )
        return head

    def _record(self, head: Head) -> SnapshotRecord:
        try:
            record = SnapshotRecord.model_validate_json(self._text(RECORD))
        except ValidationError as exc:
            raise _bad(self._reader.source, f"its {RECORD} is not valid ({exc.error_count()} fields)") from exc
        self._store.check_id(record.info.snapshot_id)
        if record.format != FORMAT or record.info.snapshot_id != head.snapshot_id or not record.digests:
            raise _bad(self._reader.source, f"its {RECORD} is of something else")
        # of no sandbox and no folder of this host, whatever it says
        template = record.template.model_copy(update={"files": [], "directory": Path("/")})
        info = record.info.model_copy(update={"kept": True, "parent_id": None})
        return record.model_copy(update={"imported": True, "info": info, "template": template})

    def _check_usable(self, record: SnapshotRecord) -> None:
        """As far as that can be told before the long part."""
        self._store.check_backend(record)
        self._store.images.check(record.image, record.built_at)
        most = self._store.images.settings.vm_execution.security_settings.resource_limits.max_memory_mb
        if record.limits.memory_mb > most:
            raise ValidationFailed(
                f"A sandbox of {self._reader.source} needs {record.limits.memory_mb} MiB; the limit is {most}.",
                remediation="Raise security_settings.resource_limits.max_memory_mb.",
            )

    def _text(self, wanted: str) -> bytes:
        name, size = next(self._entries, ("", 0))
        if name != wanted or size > _MOST_TEXT:
            raise _bad(self._reader.source, f"{wanted} is not where it must be")
        return b"".join(self._reader.content(size))

    def _guest(self, record: SnapshotRecord) -> Path:
        """The guest agent, in a folder beside its place; its digest is its name."""
        guests = self._store.images.settings.cache_dir / "guest"
        guests.mkdir(parents=True, exist_ok=True)
        building = guests / f".{record.guest}.{secrets.token_hex(4)}"
        self._left.append(building)
        building.mkdir(mode=0o755)
        names: set[str] = set()
        total = 0
        for entry, size in self._entries:
            if not entry.startswith(_GUEST):
                self._next = entry, size
                break
            total, name = total + size, entry.removeprefix(_GUEST)
            if name in names or not _GUEST_NAME.fullmatch(name) or total > _MOST_GUEST or len(names) > _MOST_FILES:
                raise _bad(self._reader.source, f"{name!r:.80} is no file of a guest agent")
            names.add(name)
            path = building / name
            path.parent.mkdir(exist_ok=True)
            with path.open("xb") as file:
                file.writelines(self._reader.content(size))
        if guest_digest(guest_files(building)) != record.guest:
            raise _bad(self._reader.source, "its guest agent is not the one of the snapshot")
        for path in [building, *building.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        return building

    def _files(self, record: SnapshotRecord) -> Path:
        """Memory and state, in a folder beside their place."""
        self._store.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        building = self._store.folder / f"{BUILDING}{record.info.snapshot_id}.{secrets.token_hex(4)}"
        self._left.append(building)
        building.mkdir(mode=0o700)
        missing, done = dict(record.digests), 0
        while self._next is not None:
            name, size = self._next
            digest = missing.pop(name.removeprefix(_FILES), None) if name.startswith(_FILES) else None
            if digest is None:
                raise _bad(self._reader.source, f"{name!r:.80} does not belong to a snapshot")
            self._check_space(size)
            hashed = hashlib.sha256()
            with (building / name.removeprefix(_FILES)).open("xb") as file:
                os.fchmod(file.fileno(), 0o600)
                for data in self._reader.content(size):
                    file.write(data)
                    hashed.update(data)
                    done += len(data)
                    self._progress("reading", min(1.0, done / max(1, record.info.size_bytes)))
            if hashed.hexdigest() != digest:
                raise _bad(self._reader.source, f"{name} is damaged")
            self._next = next(self._entries, None)
        if missing:
            raise _bad(self._reader.source, f"{', '.join(sorted(missing))} of the snapshot are missing")
        record.info.size_bytes = done
        return building

    def _check_space(self, size: int) -> None:
        free = shutil.disk_usage(self._store.folder).free
        if size > free - _SPARE:
            raise SnapshotFailed(
                f"Cannot import {self._reader.source}: it needs {size >> 20} MiB more, and {self._store.folder} has "
                f"{free >> 20} MiB left.",
                remediation="Make space on the file system of `state_dir`.",
            )

    def _install(self, building: Path, digest: str) -> None:
        target = building.with_name(digest)
        try:
            building.rename(target)
        except OSError:
            if not target.is_dir():  # else it is here already, with the same content
                raise
