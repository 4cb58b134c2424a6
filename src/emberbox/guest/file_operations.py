"""The host's requests about files, carried out with the rights of the user.

A request that says `exact` means the very name that it gives, below the folders that the user can write to: no link is
followed, neither on the way nor at the end. Others follow links as open() does.
"""

from __future__ import annotations

import json
import os

from . import files
from .changes import cache_of_programs, roots_of
from .fields import RequestError
from .limits import AsUser
from .memory import left
from .processes import out_of_memory_kills
from .protocol import MAX_PAYLOAD
from .trees import remove_tree, tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List

    from .agent import Agent
    from .fields import RequestFields
    from .limits import Settings

INLINE_LIST = 1000
EXACT = 2
"""Which form of `tree` and of exact names this agent knows."""


class FileOperations:
    """Operations of one agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    @property
    def _settings(self) -> Settings:
        return self._agent.settings

    def _path(self, fields: RequestFields, name: str = "path") -> str:
        return files.full_path(fields, name, self._settings.workdir)

    def _roots(self, fields: RequestFields) -> List[str] | None:
        """Where an exact name must be; None where links are followed."""
        return roots_of(self._settings) if fields.flag("exact") else None

    def _op_read(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        path, offset, roots = self._path(fields), fields.integer("offset", 0), self._roots(fields)
        length, file_ident = fields.integer("length", high=MAX_PAYLOAD), fields.optional_text("ident")
        with AsUser(self._settings):
            header, data = files.read(path, offset, length, file_ident, roots)
        self._agent.send({"id": ident, "ev": "done", **header}, data)

    def _op_write(self, ident: int, fields: RequestFields, payload: bytes) -> None:
        path, token, offset = self._path(fields), fields.text("upload"), fields.integer("offset", 0)
        final, roots = fields.flag("final"), self._roots(fields)
        mode = None if fields.header.get("mode") is None else fields.integer("mode", high=0o7777)
        self._agent.changes.stale = True
        with AsUser(self._settings):
            size, mark = files.write(path, token, offset, payload, final=final, mode=mode, roots=roots)
        self._agent.done(ident, size=size, mark=mark)

    def _op_write_abort(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        path, token, roots = self._path(fields), fields.text("upload"), self._roots(fields)
        with AsUser(self._settings):
            files.write_abort(path, token, roots)
        self._agent.done(ident)

    def _op_list(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        path, depth = self._path(fields), fields.integer("depth", 1, low=1)
        limit = fields.integer("limit", files.LIST_LIMIT, high=files.LIST_LIMIT)
        if depth == 1 and limit <= INLINE_LIST:
            with AsUser(self._settings):
                self._listed(ident, files.list_directory(path, depth, limit))
            return
        self._in_worker(ident, lambda: files.list_directory(path, depth, limit), self._listed)

    def _listed(self, ident: int, result: Dict[str, Any]) -> None:
        entries = json.dumps(result["entries"], separators=(",", ":")).encode()
        self._agent.send({"id": ident, "ev": "done", "truncated": result["truncated"]}, entries)

    def _op_stat(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        path = self._path(fields)
        with AsUser(self._settings):
            entry = files.entry(path)
        self._agent.done(ident, entry=entry)

    def _op_tree(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        settings, folders = self._settings, fields.flag("folders")
        roots = roots_of(settings)

        def report(ident: int, rows: Any) -> None:
            payload = json.dumps(rows, separators=(",", ":")).encode()
            self._agent.send({"id": ident, "ev": "done", "exact": EXACT, "free": _free(settings, roots)}, payload)

        cache, uid = cache_of_programs(settings), settings.uid
        self._in_worker(ident, lambda: tree(roots, cache, uid, folders=folders), report)

    def _op_mkdir(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        path, roots = self._path(fields), self._roots(fields)
        with AsUser(self._settings):
            created = files.make_directory(path, roots)
        self._agent.done(ident, created=created)

    def _op_symlink(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        path, token, target = self._path(fields), fields.text("upload"), fields.text("target")
        self._agent.changes.stale = True
        with AsUser(self._settings):
            mark = files.make_link(path, token, target, roots_of(self._settings))
        self._agent.done(ident, mark=mark)

    def _op_chmod(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        path, mode = self._path(fields), fields.integer("mode", high=0o7777)
        self._agent.changes.stale = True
        with AsUser(self._settings):
            files.change_folder_mode(path, mode, roots_of(self._settings))
        self._agent.done(ident)

    def _op_remove(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        path, roots = self._path(fields), self._roots(fields)
        self._agent.changes.stale = True
        with AsUser(self._settings):
            gone = files.remove(path, roots)
        if gone:
            self._agent.done(ident)
        else:
            self._in_worker(ident, lambda: remove_tree(path))

    def _op_rename(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        path, to = self._path(fields), self._path(fields, "to")
        self._agent.changes.stale = True
        with AsUser(self._settings):
            os.rename(path, to)
        self._agent.done(ident)

    def _in_worker(
        self,
        ident: int,
        work: Callable[[], Any],
        report: Callable[[int, Any], None] | None = None,
    ) -> None:
        def answer(result: Any, failure: str | None) -> None:
            if failure is None and report is not None:
                report(ident, result)
            elif failure is None:
                self._agent.done(ident)
            else:
                self._agent.fail(ident, RequestError("file", str(result), failure))

        self._agent.workers.run(self._settings, work, answer)


def _free(settings: Settings, roots: List[str]) -> List[List[Any]]:
    """Each folder that the user can write to, its file system, and the bytes that this still takes."""
    found: List[List[Any]] = []
    # where the machine has no kernel of its own, files are in the memory that programs have
    kernel = out_of_memory_kills() is not None
    memory = left(settings.memory, kernel=False) if settings.memory > 0 and not kernel else None
    for root in roots:
        try:
            disk, device = os.statvfs(root), os.stat(root).st_dev
        except OSError:
            continue
        room = disk.f_bavail * disk.f_frsize
        found.append([root, device, room if memory is None else max(0, min(room, memory))])
    return found
