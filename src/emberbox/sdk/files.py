"""Files of a sandbox, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Literal, overload

from emberbox import models
from emberbox.errors import GuestFileError
from emberbox.sandbox.uploads import Data


class AsyncFiles(ABC):
    """Files of a sandbox. Relative paths start in the work directory; errors are GuestFileError."""

    @overload
    async def read(self, path: str) -> str: ...
    @overload
    async def read(self, path: str, format: Literal["text"]) -> str: ...
    @overload
    async def read(self, path: str, format: Literal["bytes"]) -> bytes: ...
    @overload
    async def read(self, path: str, format: Literal["stream"]) -> AsyncIterator[bytes]: ...

    async def read(
        self,
        path: str,
        format: Literal["text", "bytes", "stream"] = "text",  # noqa: A002 (the field's name for it)
    ) -> str | bytes | AsyncIterator[bytes]:
        """Read a file as `text` (UTF-8, nonsense replaced), `bytes`, or a `stream` of pieces of at most 256 KiB."""
        if format == "stream":
            return self._read_stream(path)
        data = await self._read_bytes(path)
        return data if format == "bytes" else data.decode("utf-8", "replace")

    @abstractmethod
    def _read_stream(self, path: str) -> AsyncIterator[bytes]: ...

    @abstractmethod
    async def _read_bytes(self, path: str) -> bytes: ...

    @abstractmethod
    async def write(self, path: str, data: Data, *, mode: int | None = None) -> models.EntryInfo:
        """Write text, bytes, an open file or an iterable of bytes. The file appears when it is whole."""

    @abstractmethod
    async def list(self, path: str = ".", *, depth: int = 1) -> list[models.EntryInfo]:
        """List the entries of a directory, `depth` levels deep."""

    async def exists(self, path: str) -> bool:
        """Tell whether something has this name."""
        try:
            await self.get_info(path)
        except GuestFileError as exc:
            if exc.details.get("errno") in ("ENOENT", "ENOTDIR"):
                return False
            raise
        return True

    @abstractmethod
    async def get_info(self, path: str) -> models.EntryInfo:
        """Describe one file or directory (of a symbolic link: the link itself)."""

    @abstractmethod
    async def make_dir(self, path: str) -> bool:
        """Make a directory and its parents; False if it was there already."""

    @abstractmethod
    async def remove(self, path: str) -> None:
        """Remove a file, or a directory with all it holds."""

    @abstractmethod
    async def rename(self, path: str, new_path: str) -> models.EntryInfo:
        """Rename or move; an existing file of the new name is replaced."""
