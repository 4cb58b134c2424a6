"""Taking back some files of a sandbox to what they were at another point of its life.

Code in the sandbox may have put a link where a folder or a file was, and may do so while this goes on. Therefore the
guest reaches every name without following one, what cannot be taken back without touching something that was not named,
or not at all, is refused before anything is changed, and at the end the files are looked at once more.

A file comes back with its content and its rights, a link with its target, a folder with its rights; times do not, and
of several names of one file each becomes a file of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
from bisect import bisect_left
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from emberbox._text import check_path, printable
from emberbox.errors import ExecutionFailed, GuestFileError, RollbackFailed, ValidationFailed
from emberbox.guest.trees import DEEPEST_TREE
from emberbox.sandbox.files import ExactFiles
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.snapshots.file_trees import LONGEST_COMPARED, File, Room, content, whole_tree

_T = TypeVar("_T")
_MOST_PATHS = 1000
_MOST_NAMED = 20
"""Of the files that an error lists."""
_BLOCK = 4096
"""Bytes of which files take a whole number."""
_READ = 0o400
_WRITE_AND_ENTER = 0o300
_KINDS = {"dir": "a folder", "symlink": "a link", "file": "a file"}


async def take_back(then: SandboxInstance, now: SandboxInstance, paths: Sequence[str]) -> list[str]:
    """Make the named files and folders in `now` what they are in `then`; the files and links that were not the same.

    Raises:
        ValidationFailed: a path exists in neither, or is none.
        RollbackFailed: something that was not named would have to change (nothing has been changed); or a file could
            not be written, or is not as it was after all: the message says which, and what is done.
    """
    full = _full(paths, now.image.template.workdir)
    (before, _), (after, rooms) = await whole_tree(then), await whole_tree(now)
    work = _Work(then, now, before, after, full, rooms)
    await work.plan()
    await asyncio.to_thread(work.refuse)
    await work.carry_out()
    await work.look_again()
    return [path for path in work.affected if not work.only_folders(path)]


def _full(paths: Sequence[str], workdir: str) -> list[str]:
    if len(paths) > _MOST_PATHS:
        raise ValidationFailed(
            f"{len(paths)} paths are more than {_MOST_PATHS}.", remediation="Name the folders that they are in."
        )
    full = []
    for path in paths:
        name = check_path(path).encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
        full.append("/" + posixpath.normpath(posixpath.join(workdir, name)).lstrip("/"))
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


def _rights(file: File) -> str:
    return f"with mode {file.mode:04o}"


def _refused(message: str, remediation: str) -> RollbackFailed:
    return RollbackFailed(f"{message}. Nothing was changed.", remediation=remediation, retryable=False)


@dataclass(slots=True)
class _Work:
    then: SandboxInstance
    now: SandboxInstance
    before: dict[str, File]
    after: dict[str, File]
    full: list[str]
    rooms: list[Room]
    wanted: set[str] = field(default_factory=set)
    affected: list[str] = field(default_factory=list)
    """Of the wanted those that differ, in order."""
    made: list[str] = field(default_factory=list)
    """Folders above them that are missing."""
    opened: list[str] = field(default_factory=list)
    """Named folders that cannot be written to as they are now, the outermost first."""
    marks: dict[str, str] = field(default_factory=dict)
    """Of what was made."""

    def __post_init__(self) -> None:
        known = sorted(self.before.keys() | self.after.keys())
        for path, found in zip(self.full, _below(self.full, known), strict=True):
            self._check_seen([*_parents(path), *found])
            if not found:
                raise self._nothing(path)
            self.wanted.update(found)

    def _check_seen(self, paths: Sequence[str]) -> None:
        """Raises RollbackFailed: in one of the folders it cannot be seen what there is to be taken back."""
        for path in paths:
            for tree, when in ((self.before, "then"), (self.after, "now")):
                if (folder := tree.get(path)) is not None and folder.closed:
                    deep = f"more than {DEEPEST_TREE} folders deep" if path.count("/") > DEEPEST_TREE else ""
                    raise _refused(
                        f"{printable(path):.200} cannot be looked into, {deep or _rights(folder)} {when}",
                        "Give the user the right to read it (chmod u+rwx), name other files, or roll back without "
                        "`paths`.",
                    )

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
        if old == new or (old is None and new is not None and new.own):
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
        """Raises RollbackFailed: something that was not named stands in the way, or something cannot be done."""
        opened: set[str] = set()
        for path in self.affected:
            old = self.before.get(path)
            if old is not None:
                self._check_made(path, old, self.after.get(path))
            for parent in _parents(path):
                if parent not in self.wanted:
                    self._check_parent(path, parent, exists_then=old is not None)
            parent = posixpath.dirname(path)
            folder = self.after.get(parent)
            if folder is None or folder.kind != "dir" or folder.mode & _WRITE_AND_ENTER == _WRITE_AND_ENTER:
                continue
            if parent not in self.wanted:
                raise _refused(
                    f"{printable(path)} cannot be taken back alone: its folder {printable(parent)} cannot be written "
                    f"to, {_rights(folder)}",
                    f"Name {printable(parent)}, if it is to be taken back as well, or give the user the right to write "
                    "to it.",
                )
            opened.add(parent)
        self.opened = sorted(opened)
        self._check_room()

    @staticmethod
    def _check_made(path: str, old: File, new: File | None) -> None:
        """Raises RollbackFailed: it is nothing that can be made again."""
        if new is not None and new.own and old.kind != "dir":
            raise _refused(
                f"{printable(path)} is a folder now in which programs are kept that Emberbox compiled",
                "Roll back without `paths`.",
            )
        if old.kind not in _KINDS:
            raise _refused(
                f"{printable(path)} was a pipe, a socket or a device, which cannot be taken back alone",
                "Name other files, or roll back without `paths`.",
            )
        if old.kind == "file" and not old.mode & _READ:
            raise _refused(
                f"{printable(path)} could not be read then, {_rights(old)}",
                "Name other files, or roll back without `paths`.",
            )

    def _check_parent(self, path: str, parent: str, *, exists_then: bool) -> None:
        there, here = self.before.get(parent), self.after.get(parent)
        if exists_then and here is not None and here.kind != "dir":
            words = f"{printable(parent)} is {_KINDS.get(here.kind, 'no folder')} now, and was a folder then"
        elif not exists_then and there is not None and there.kind != "dir":
            words = f"{printable(parent)} is a folder now, and was {_KINDS.get(there.kind, 'none')} then"
        else:
            return
        raise _refused(
            f"{printable(path)} cannot be taken back alone: {words}",
            f"Name {printable(parent)}, if it is to be taken back as well.",
        )

    def _check_room(self) -> None:
        """Raises RollbackFailed: what is to be written is more than there is room for. What is removed first is counted
        with the size that it has at most."""
        by_root = {room.root.rstrip("/") + "/": room.device for room in self.rooms}
        free = {room.device: room.free for room in self.rooms}

        def count(path: str, size: int) -> None:
            device = next((device for root, device in by_root.items() if path.startswith(root)), None)
            if device is None:
                return
            free[device] += size
            if free[device] < 0:
                raise _refused(
                    f"{printable(path)} cannot be taken back: there is no room for its {-size:,} bytes",
                    "Remove other files of the sandbox first, or roll back without `paths`.",
                )

        for path in self.affected:
            if self._goes(path) and self.after[path].kind == "file":
                count(path, self.after[path].size)
        for path in self.affected:
            old, new = self.before.get(path), self.after.get(path)
            if old is not None and old.kind == "file":
                count(path, -(-(-old.size // _BLOCK) * _BLOCK))
                if new is not None and new.kind == "file":
                    count(path, new.size)  # which it takes the place of

    async def carry_out(self) -> None:
        """Remove what was not there, from the inside out; then make the rest; then set the rights of folders."""
        done: list[str] = []
        try:
            await self._change(ExactFiles(self.now), done)
        except BaseException:
            for path in reversed(self.opened):  # so that it is as it was, as far as that is possible
                with contextlib.suppress(ExecutionFailed):
                    await ExactFiles(self.now).chmod_dir(path, self.after[path].mode)
            raise

    async def _change(self, files: ExactFiles, done: list[str]) -> None:
        for path in self.opened:
            await self._do(files.chmod_dir(path, self.after[path].mode | _WRITE_AND_ENTER), path, [])
        for path in reversed(self.affected):
            if self._goes(path):
                await self._do(files.remove(path), path, done)
        folders = {path for path in self.opened if path in self.before and not self._goes(path)}
        for path in sorted([*self.affected, *self.made]):
            old = self.before.get(path)
            if old is None:
                continue
            if old.kind == "dir":
                folders.add(path)
                if path not in self.after or self._goes(path):
                    await self._do(files.make_dir(path), path, done)
            elif old.kind == "symlink":
                self.marks[path] = await self._do(files.symlink(path, old.target or ""), path, done)
            else:
                source = ExactFiles(self.then).read_stream(path)
                self.marks[path] = await self._do(files.put(path, source, old.mode), path, done)
        for path in sorted(folders, reverse=True):
            await self._do(files.chmod_dir(path, self.before[path].mode), path, done)

    def _goes(self, path: str) -> bool:
        """Whether what is there has to be removed first; a file or link takes the place of another in one step."""
        old, new = self.before.get(path), self.after.get(path)
        if new is None:
            return False
        return old is None or (old.kind == "dir") is not (new.kind == "dir")

    @staticmethod
    async def _do(step: Awaitable[_T], path: str, done: list[str]) -> _T:
        try:
            answer = await step
        except (ExecutionFailed, ValidationFailed) as exc:
            names = [printable(name) for name in done[:_MOST_NAMED]]
            more = f" and {len(done) - _MOST_NAMED} more" if len(done) > _MOST_NAMED else ""
            told = f"; these are done: {', '.join(names)}{more}" if names else ""
            raise RollbackFailed(f"{printable(path)} could not be taken back: {exc.message}{told}") from exc
        if path not in done[-1:]:
            done.append(path)
        return answer

    async def look_again(self) -> None:
        """Raises RollbackFailed: something is not as it was, because code in the sandbox changed it meanwhile."""
        try:
            after, _ = await whole_tree(self.now)
        except ExecutionFailed as exc:
            raise RollbackFailed(f"What was taken back could not be looked at once more: {exc.message}") from exc
        known = sorted(self.before.keys() | after.keys())
        for found in _below(self.full, known):
            for path in found:
                if not await self._as_it_was(path, self.before.get(path), after.get(path)):
                    raise RollbackFailed(
                        f"{printable(path)} was changed by something in the sandbox while it was taken back.",
                        remediation="Stop what runs in the sandbox and try again, or roll back without `paths`.",
                    )

    async def _as_it_was(self, path: str, old: File | None, new: File | None) -> bool:
        if old is None or new is None or not _look_alike(old, new):
            return old == new or (old is None and new is not None and new.own)
        if old.kind != "file" or new.mark in (old.mark, self.marks.get(path)):
            return True
        known = self.after.get(path)
        if path not in self.marks and known is not None and known.mark == new.mark:
            return True
        return await self._same(path, old, new)  # touched meanwhile, perhaps as another name of what was removed

    def only_folders(self, path: str) -> bool:
        """Whether it is no file or link, neither then nor now."""
        return all(file is None or file.kind == "dir" for file in (self.before.get(path), self.after.get(path)))


def _look_alike(old: File, new: File) -> bool:
    """Without a look at the content."""
    return (old.kind, old.size, old.mode, old.target) == (new.kind, new.size, new.mode, new.target)
