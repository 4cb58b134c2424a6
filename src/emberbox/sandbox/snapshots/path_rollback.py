"""Taking back some files of a sandbox to what they were at another point of its life.

Code in the sandbox may have put a link where a folder or a file was, and may do so while this goes on. Therefore the
guest reaches every name without following one, what cannot be taken back without touching something that was not named
is refused before anything is changed, and at the end the files are looked at once more.
"""

from __future__ import annotations

import posixpath
from bisect import bisect_left
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, field

from emberbox.errors import ExecutionFailed, GuestFileError, RollbackFailed, ValidationFailed
from emberbox.sandbox.files import ExactFiles
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.outcome import printable
from emberbox.sandbox.snapshots.file_trees import LONGEST_COMPARED, File, content, tree

_MOST_PATHS = 1000
_MOST_NAMED = 20
"""Of the files that an error lists."""
_KINDS = {"dir": "a folder", "symlink": "a link", "file": "a file"}


async def take_back(then: SandboxInstance, now: SandboxInstance, paths: Sequence[str]) -> list[str]:
    """Make the named files and folders in `now` what they are in `then`; the files and links that were not the same.

    Raises:
        ValidationFailed: a path exists in neither, or is none.
        RollbackFailed: something that was not named would have to change (nothing has been changed); or a file could
            not be written, or is not as it was after all: the message says which, and what is done.
    """
    before, after = await tree(then, folders=True), await tree(now, folders=True)
    full = _full(paths, now.image.template.workdir)
    work = _Work(then, now, before, after, full)
    await work.plan()
    work.refuse()
    await work.carry_out()
    await work.look_again()
    return [printable(path) for path in work.affected if not work.only_folders(path)]


def _full(paths: Sequence[str], workdir: str) -> list[str]:
    if len(paths) > _MOST_PATHS:
        raise ValidationFailed(
            f"{len(paths)} paths are more than {_MOST_PATHS}.", remediation="Name the folders that they are in."
        )
    full = []
    for path in paths:
        if not isinstance(path, str) or not path or "\0" in path or len(path) > 4096:
            raise ValidationFailed(f"{path!r:.80} is no path.", remediation="Name files or folders of the sandbox.")
        full.append("/" + posixpath.normpath(posixpath.join(workdir, path)).lstrip("/"))
    return full


def _below(full: Sequence[str], known: Sequence[str]) -> Iterator[list[str]]:
    """For each path, of those known (sorted) itself and what is below it."""
    for path in full:
        prefix = path.rstrip("/") + "/"
        start, end = bisect_left(known, prefix), bisect_left(known, prefix[:-1] + "0")  # what follows "/" in order
        at = bisect_left(known, path)
        yield [*([path] if at < len(known) and known[at] == path else []), *known[start:end]]


def _parents(path: str) -> Iterator[str]:
    """The folders that a path is in, the outermost first."""
    at = path.find("/", 1)
    while at > 0:
        yield path[:at]
        at = path.find("/", at + 1)


@dataclass(slots=True)
class _Work:
    then: SandboxInstance
    now: SandboxInstance
    before: dict[str, File]
    after: dict[str, File]
    full: list[str]
    wanted: set[str] = field(default_factory=set)
    affected: list[str] = field(default_factory=list)
    """Of the wanted those that differ, in order."""
    made: list[str] = field(default_factory=list)
    """Folders above them that are missing."""

    def __post_init__(self) -> None:
        known = sorted(self.before.keys() | self.after.keys())
        for path, found in zip(self.full, _below(self.full, known), strict=True):
            if not found:
                raise self._nothing(path)
            self.wanted.update(found)

    def _nothing(self, path: str) -> ValidationFailed:
        for parent in _parents(path):
            for link in (self.before.get(parent), self.after.get(parent)):
                if link is not None and link.kind == "symlink":
                    return ValidationFailed(
                        f"{path!r:.200} cannot be taken back by that name: {parent!r:.200} is a link, and none is "
                        "followed.",
                        remediation=f"Name the file itself, not the link: it leads to {link.target!r:.200}.",
                    )
        return ValidationFailed(
            f"There is no file {path!r:.200}, neither now nor then.",
            remediation="Name files or folders below the home directory or /tmp; diff() lists what differs.",
        )

    async def plan(self) -> None:
        """Find what differs."""
        missing: set[str] = set()
        for path in sorted(self.wanted):
            old, new = self.before.get(path), self.after.get(path)
            if await self._same(path, old, new):
                continue
            self.affected.append(path)
            if old is not None:
                missing.update(p for p in _parents(path) if p in self.before and p not in self.after)
        self.made = sorted(missing - self.wanted)

    async def _same(self, path: str, old: File | None, new: File | None) -> bool:
        if old == new:
            return True
        if old is None or new is None or not _look_alike(old, new):
            return False
        if old.kind != "file":
            return old.kind in ("dir", "symlink")
        if old.size > LONGEST_COMPARED:
            return False
        try:
            a = await content(self.then, path, LONGEST_COMPARED)
            return a is not None and a == await content(self.now, path, LONGEST_COMPARED)
        except GuestFileError:
            return False

    def refuse(self) -> None:
        """Raises RollbackFailed: something that was not named stands in the way, or cannot be made."""
        for path in self.affected:
            old = self.before.get(path)
            if old is not None and old.kind not in _KINDS:
                raise RollbackFailed(
                    f"{printable(path)} was a pipe, a socket or a device, which cannot be taken back alone. "
                    "Nothing was changed.",
                    remediation="Name other files, or roll back without `paths`.",
                    retryable=False,
                )
            for parent in _parents(path):
                if parent not in self.wanted:
                    self._check_parent(path, parent, exists_then=old is not None)

    def _check_parent(self, path: str, parent: str, *, exists_then: bool) -> None:
        there, here = self.before.get(parent), self.after.get(parent)
        if exists_then and here is not None and here.kind != "dir":
            words = f"{printable(parent)} is {_KINDS.get(here.kind, 'no folder')} now, and was a folder then"
        elif not exists_then and there is not None and there.kind != "dir":
            words = f"{printable(parent)} is a folder now, and was {_KINDS.get(there.kind, 'none')} then"
        else:
            return
        raise RollbackFailed(
            f"{printable(path)} cannot be taken back alone: {words}. Nothing was changed.",
            remediation=f"Name {printable(parent)}, if it is to be taken back as well.",
            retryable=False,
        )

    async def carry_out(self) -> None:
        """Remove what was not there, from the inside out; then make the rest; then set the rights of folders."""
        files = ExactFiles(self.now)
        done: list[str] = []
        for path in reversed(self.affected):
            if self._goes(path):
                await self._do(files.remove(path), path, done)
        folders = []
        for path in sorted([*self.affected, *self.made]):
            old = self.before.get(path)
            if old is None:
                continue
            if old.kind == "dir":
                folders.append(path)
                if path not in self.after or self._goes(path):
                    await self._do(files.make_dir(path), path, done)
            elif old.kind == "symlink":
                await self._do(files.symlink(path, old.target or ""), path, done)
            else:
                source = ExactFiles(self.then).read_stream(path)
                await self._do(files.write(path, source, mode=old.mode), path, done)
        for path in reversed(folders):
            await self._do(files.chmod_dir(path, self.before[path].mode), path, done)

    def _goes(self, path: str) -> bool:
        """Whether what is there has to be removed first; a file or link takes the place of another in one step."""
        old, new = self.before.get(path), self.after.get(path)
        if new is None:
            return False
        return old is None or (old.kind == "dir") is not (new.kind == "dir")

    @staticmethod
    async def _do(step: Awaitable[object], path: str, done: list[str]) -> None:
        try:
            await step
        except ExecutionFailed as exc:
            names = [printable(name) for name in done[:_MOST_NAMED]]
            more = f" and {len(done) - _MOST_NAMED} more" if len(done) > _MOST_NAMED else ""
            told = f"; these are done: {', '.join(names)}{more}" if names else ""
            raise RollbackFailed(f"{printable(path)} could not be taken back: {exc.message}{told}") from exc
        if path not in done[-1:]:
            done.append(path)

    async def look_again(self) -> None:
        """Raises RollbackFailed: something is not as it was, because code in the sandbox changed it meanwhile."""
        after = await tree(self.now, folders=True)
        known = sorted(self.before.keys() | after.keys())
        for found in _below(self.full, known):
            for path in found:
                old, new = self.before.get(path), after.get(path)
                if old != new and (old is None or new is None or not _look_alike(old, new)):
                    raise RollbackFailed(
                        f"{printable(path)} was changed by something in the sandbox while it was taken back.",
                        remediation="Stop what runs in the sandbox and try again, or roll back without `paths`.",
                    )

    def only_folders(self, path: str) -> bool:
        """Whether it is no file or link, neither then nor now."""
        return all(file is None or file.kind == "dir" for file in (self.before.get(path), self.after.get(path)))


def _look_alike(old: File, new: File) -> bool:
    """Without a look at the content."""
    return (old.kind, old.size, old.mode, old.target) == (new.kind, new.size, new.mode, new.target)
