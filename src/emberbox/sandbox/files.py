"""Files of a sandbox, over its channel. Paths are guest paths; nothing of them touches the host's file system."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

from emberbox._text import check_path, printable
from emberbox.errors import ExecutionFailed, GuestFileError, ValidationFailed
from emberbox.guest.protocol import CHUNK_SIZE, Header
from emberbox.machines.channel import Channel, Event
from emberbox.models import EntryInfo
from emberbox.sandbox.uploads import MOST_AT_ONCE, Data, pieces_of, too_large

_CALL_TIMEOUT = 60.0
_IN_FLIGHT = 8
"""Chunks of an upload that are under way at once: enough to keep the pipe full, few enough to hold in memory."""
_MAX_ENTRIES = 100_000
_AT_ONCE = 500
"""Entries that are made before others are served: a few milliseconds."""
_TYPES = {"file", "dir", "symlink", "other"}


class HasChannel(Protocol):
    """What the files need of their sandbox."""

    def open_channel(self) -> Channel:
        """The channel; raises VmNotAvailable when the sandbox is gone."""

    def touched(self) -> None:
        """Its state is about to change."""


class GuestFiles:
    """`files` of a sandbox, asynchronous.

    Args:
        owner: the sandbox.
    """

    _how: ClassVar[Mapping[str, Any]] = {}
    """Sent with each request."""

    def __init__(self, owner: HasChannel) -> None:
        self._owner = owner

    async def _call(self, op: str, payload: bytes = b"", **fields: Any) -> Event:
        try:
            return await self._owner.open_channel().call(op, payload, timeout=_CALL_TIMEOUT, **fields, **self._how)
        except GuestFileError as exc:
            raise _with_path(exc, fields["path"]) from exc

    async def read_stream(self, path: str) -> AsyncIterator[bytes]:
        """The file's bytes in pieces of at most 256 KiB.

        Raises:
            GuestFileError: there is no such file, it is no regular file, or another took its name meanwhile (ESTALE).
        """
        async for piece in self._pieces(check_path(path)):
            yield piece

    async def _pieces(self, path: str, most: int | None = None) -> AsyncIterator[bytes]:
        """The same; a file of more than `most` bytes is an error, whatever its size was said to be."""
        offset, ident = 0, None
        while True:
            header, data = await self._call("read", path=path, offset=offset, length=CHUNK_SIZE, ident=ident)
            ident = header.get("ident")
            if most is not None and max(_natural(header.get("size")), offset + len(data)) > most:
                raise too_large(path)
            if data:
                yield data
            offset += len(data)
            if header.get("eof") is not False:
                return
            if not data:
                raise ExecutionFailed(f"The machine sent no data for {printable(path)} before its end.")

    async def read_bytes(self, path: str) -> bytes:
        """The whole file. Use `read_stream` for large ones: more than 1 GiB is an error."""
        return b"".join([piece async for piece in self._pieces(check_path(path), MOST_AT_ONCE)])

    async def write(self, path: str, data: Data, *, mode: int | None = None) -> EntryInfo:
        """Write a file, whole or not at all; missing parent directories are made. Streams are read in pieces.

        Raises:
            GuestFileError: for example ENOSPC when the sandbox's disk is full, EROFS outside home and /tmp.
        """
        await self._upload(path, data, mode)
        return await self.get_info(path)

    async def _upload(self, path: str, data: Data, mode: int | None, *, sparse: bool = False) -> Header:
        """Write a file; the answer to the last piece. `sparse`: pieces of zeros are left out, and take no space."""
        self._owner.touched()
        path = check_path(path)
        upload = secrets.token_hex(8)
        channel = self._owner.open_channel()
        under_way: deque[asyncio.Task[Event]] = deque()
        offset = 0

        def send(chunk: bytes, *, final: bool) -> None:
            fields = {"path": path, "upload": upload, "offset": offset, "final": final, "mode": mode, **self._how}
            under_way.append(asyncio.ensure_future(channel.call("write", chunk, timeout=_CALL_TIMEOUT, **fields)))

        try:
            async for chunk in pieces_of(data, CHUNK_SIZE):
                if not (sparse and offset and chunk.count(0) == len(chunk)):
                    send(chunk, final=False)
                offset += len(chunk)
                self._owner.open_channel()  # it is in use, however long the client takes
                while len(under_way) >= _IN_FLIGHT:
                    await under_way.popleft()
            while under_way:
                await under_way.popleft()
            self._owner.touched()  # a snapshot that was taken meanwhile has not got the file
            send(b"", final=True)
            header, _ = await under_way.popleft()
        except BaseException as exc:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            with contextlib.suppress(Exception):  # the first error is the one to tell
                await asyncio.shield(
                    asyncio.ensure_future(channel.call("write_abort", path=path, upload=upload, timeout=5, **self._how))
                )
            if isinstance(exc, GuestFileError):
                raise _with_path(exc, path) from exc
            raise
        return header

    async def list(self, path: str = ".", *, depth: int = 1) -> list[EntryInfo]:
        """Entries of a directory, `depth` levels deep.

        Raises:
            ExecutionFailed: there are more than 100,000.
        """
        if depth < 1:
            raise ValidationFailed(f"depth must be at least 1, not {depth}.", remediation="Leave it out for one level.")
        header, payload = await self._call("list", path=check_path(path), depth=depth, limit=_MAX_ENTRIES)
        if header.get("truncated"):
            raise ExecutionFailed(
                f"{printable(path)} has more entries than can be listed at once ({_MAX_ENTRIES}, or 6 MB of them).",
                remediation="List a smaller directory or depth, or use commands.run(['find', …]).",
            )
        try:
            entries = json.loads(payload)
        except (ValueError, RecursionError):
            entries = None
        if not isinstance(entries, list):
            raise ExecutionFailed("The guest's answer is not valid.", remediation="Create a new sandbox.")
        found: list[EntryInfo] = []
        for start in range(0, len(entries), _AT_ONCE):
            found += map(_entry, entries[start : start + _AT_ONCE])
            await asyncio.sleep(0)  # others are served meanwhile
        return found

    async def get_info(self, path: str) -> EntryInfo:
        """One file or directory (of a symbolic link: the link itself)."""
        header, _ = await self._call("stat", path=check_path(path))
        return _entry(header.get("entry"))

    async def make_dir(self, path: str) -> bool:
        """Make a directory and its parents; False if it was there already."""
        self._owner.touched()
        header, _ = await self._call("mkdir", path=check_path(path))
        return header.get("created") is True

    async def remove(self, path: str) -> None:
        """Remove a file, or a directory with all it holds."""
        self._owner.touched()
        await self._call("remove", path=check_path(path))

    async def rename(self, path: str, new_path: str) -> EntryInfo:
        """Rename or move; an existing file of the new name is replaced."""
        self._owner.touched()
        await self._call("rename", path=check_path(path), to=check_path(new_path))
        return await self.get_info(new_path)


class ExactFiles(GuestFiles):
    """Files by their very names, below the folders that the user can write to: `read_stream`, `write`, `make_dir`
    (without its parents) and `remove` (no directory with content) follow no link."""

    _how: ClassVar[Mapping[str, Any]] = {"exact": True}

    async def put(self, path: str, data: Data, mode: int) -> str:
        """Write a file, and answer with the mark that a `tree` of now would have of it. Zeros take no space."""
        return str((await self._upload(path, data, mode, sparse=True)).get("mark"))

    async def symlink(self, path: str, target: str) -> str:
        """Make a symbolic link; it replaces what has its name, but a directory. No link is followed on the way. The
        answer is its mark."""
        self._owner.touched()
        header, _ = await self._call("symlink", path=check_path(path), target=target, upload=secrets.token_hex(8))
        return str(header.get("mark"))

    async def chmod_dir(self, path: str, mode: int) -> None:
        """Set the permissions of a directory. No link is followed on the way."""
        self._owner.touched()
        await self._call("chmod", path=check_path(path), mode=mode)


def _with_path(error: GuestFileError, path: str) -> GuestFileError:
    """The same error, naming the file."""
    return GuestFileError(f"{printable(path)}: {error.message}", details=error.details)


def _entry(value: object) -> EntryInfo:
    if not isinstance(value, dict) or value.get("type") not in _TYPES or not _is_name(value.get("path")):
        raise ExecutionFailed("The machine described a file in a way that is not valid.")
    path, target = value["path"], value.get("target")
    return EntryInfo(
        name=path.rstrip("/").rpartition("/")[2] or "/",
        path=path,
        type=value["type"],
        size=_natural(value.get("size")),
        mode=_natural(value.get("mode")) & 0o7777,
        modified=_time(value.get("mtime")),
        target=target if _is_name(target) else None,
    )


def _is_name(value: object) -> bool:
    """Whether it is text that stands for bytes, as `os.fsdecode` makes it."""
    if not isinstance(value, str):
        return False
    if value.isascii():
        return "\0" not in value
    try:
        return b"\0" not in value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _time(value: object) -> datetime | None:
    if not isinstance(value, int | float):
        return None
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(value, UTC)
    return None


def _natural(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
