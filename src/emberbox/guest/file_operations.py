"""The host's requests about files, carried out with the rights of the user.

A request that says `exact` means the very name that it gives, below the folders that the user can write to: no link is
followed, neither on the way nor at the end. Others follow links as open() does.
"""

from __future__ import annotations

import json
import os

from . import files
from .changes import roots_of, tree
from .fields import RequestError
from .limits import AsUser
from .protocol import MAX_PAYLOAD
from .workers import run_in_worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List

    from .agent import Agent
    from .fields import RequestFields
    from .limits import Settings

INLINE_LIST = 1000


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
            size = files.write(path, token, offset, payload, final=final, mode=mode, roots=roots)
        self._agent.done(ident, size=size)

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

        def report(ident: int, rows: Any) -> None:
            payload = json.dumps(rows, separators=(",", ":")).encode()
            self._agent.send({"id": ident, "ev": "done", "exact": True}, payload)

        self._in_worker(ident, lambda: tree(settings, folders=folders), report)

    def _op_mkdir(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        path, roots = self._path(fields), self._roots(fields)
        with AsUser(self._settings):
            created = files.make_directory(path, roots)
        self._agent.done(ident, created=created)

    def _op_symlink(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        path, token, target = self._path(fields), fields.text("upload"), fields.text("target")
        self._agent.changes.stale = True
        with AsUser(self._settings):
            files.make_link(path, token, target, roots_of(self._settings))
        self._agent.done(ident)

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
            self._in_worker(ident, lambda: files.remove_tree(path))

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

        run_in_worker(self._agent.loop, self._settings, work, answer)
