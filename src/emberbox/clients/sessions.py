"""Long sessions with little between the caller and the machine: a shell under a name, on a server."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from pydantic import Field, ValidationError

from emberbox._files import write_whole
from emberbox.errors import ConfigError, Conflict, SessionNotFound
from emberbox.models import Model, RollbackResponse
from emberbox.models.service import (
    SessionCommand,
    SessionCreateRequest,
    SessionInfo,
    SessionOutput,
    SessionRollbackRequest,
    SessionSnapshotRequest,
    SnapshotCreated,
)
from emberbox.sdk.deadlines import EXECUTION_SECONDS
from emberbox.sdk.transport import HttpServer, made

_FILE = "sessions.json"


class _Known(Model):
    """A session that this adapter has opened."""

    agent_id: str
    vm_type: str


class _Book(Model):
    version: int = 1
    sessions: dict[str, _Known] = Field(default_factory=dict)


class DirectSessionAdapter:
    """Sessions on a server. Use it as an async context manager, or `aclose()` it; the sessions stay.

    Args:
        data_dir: where it notes which sessions it opened, so that a program that starts again finds them.
        api_base_url: of the server.
        auth_token: of that server; the variable EMBERBOX_TOKEN unless given.

    Raises:
        ConfigError: the address is none, or the folder cannot be used.
    """

    def __init__(
        self, data_dir: str | Path, api_base_url: str = "http://localhost:8080", *, auth_token: str | None = None
    ) -> None:
        self._path = Path(data_dir).expanduser().absolute() / _FILE
        self._server = HttpServer(api_base_url, auth_token)
        self._book = self._load()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; the sessions stay."""
        await self._server.aclose()

    # --- sessions -------------------------------------------------------------------------------------------------

    async def get_or_create_session(self, vm_id: str, agent_id: str, vm_type: str | None = None) -> str:
        """The session of this name, begun if there is none; its name is the id for all other calls.

        Args:
            vm_id: the name: letters, digits, `.`, `_` and `-`.
            agent_id: whose it is.
            vm_type: a template's name; the server's default if not given.
        """
        try:
            info = await self._info(vm_id, agent_id)
        except SessionNotFound:
            request = made(SessionCreateRequest, name=vm_id, vm_type=vm_type, agent_id=agent_id)
            try:
                info = await self._server.post(SessionInfo, "/sessions", request, seconds=EXECUTION_SECONDS)
            except Conflict:  # somebody was faster
                info = await self._info(vm_id, agent_id)
        self._note(vm_id, _Known(agent_id=info.agent_id, vm_type=info.vm_type))
        return vm_id

    async def execute_command_direct(
        self, session_id: str, command: str, *, timeout: float | None = None
    ) -> tuple[str, int]:
        """Run a command in the session's shell; working directory and variables stay.

        Args:
            session_id: from `get_or_create_session`.
            command: for Bash.
            timeout: seconds; the server's default if not given.

        Returns:
            what it printed (standard error last), and its exit code.
        """
        request = SessionCommand(command=command, timeout_seconds=timeout)
        path = self._path_of(session_id, "/execute")
        done = await self._server.post(SessionOutput, path, request, seconds=EXECUTION_SECONDS)
        return done.output, done.exit_code

    async def create_snapshot_direct(self, session_id: str, name: str | None = None) -> str:
        """Keep the session as it is now; the snapshot's id."""
        request = SessionSnapshotRequest(name=name)
        path = self._path_of(session_id, "/snapshots")
        return (await self._server.post(SnapshotCreated, path, request, seconds=EXECUTION_SECONDS)).snapshot_id

    async def rollback_direct(self, session_id: str, snapshot_id: str) -> RollbackResponse:
        """Take the session back: files, memory, processes, and so the shell's variables.

        Raises:
            SnapshotNotFound: there is no such snapshot.
        """
        request = SessionRollbackRequest(snapshot_id=snapshot_id)
        path = self._path_of(session_id, "/rollback")
        return await self._server.post(RollbackResponse, path, request, seconds=EXECUTION_SECONDS)

    async def get_session_info(self, session_id: str) -> SessionInfo:
        """A session as it is now; raises SessionNotFound."""
        return await self._info(session_id, self._agent(session_id))

    async def get_connection_info(self, session_id: str) -> dict[str, Any]:
        """Where else the session can be reached: its machine's id, address and WebSocket."""
        info = await self.get_session_info(session_id)
        base = self._server.base_url
        return {
            "session": info.name,
            "vm_id": info.vm_id,
            "base_url": base,
            "api_url": f"{base}/api/vms/{info.vm_id}",
            "websocket_url": f"{base.replace('http', 'ws', 1)}/ws/{info.vm_id}",
        }

    async def close_session(self, session_id: str) -> None:
        """End a session with its machine. Harmless when it has ended."""
        try:
            await self._server.request("DELETE", self._path_of(session_id))
        except SessionNotFound:
            pass
        self._forget(session_id)

    async def list_sessions(self) -> list[SessionInfo]:
        """Sessions that this adapter has opened, now or in an earlier run, and that live."""
        found = []
        for session_id in list(self._book.sessions):
            try:
                found.append(await self.get_session_info(session_id))
            except SessionNotFound:
                self._forget(session_id)
        return found

    async def _info(self, session_id: str, agent_id: str | None) -> SessionInfo:
        path = f"/sessions/{quote(session_id, safe='')}/info"
        return await self._server.get(SessionInfo, path, agent_id=agent_id)

    def _agent(self, session_id: str) -> str | None:
        known = self._book.sessions.get(session_id)
        return None if known is None else known.agent_id

    def _path_of(self, session_id: str, rest: str = "") -> str:
        agent = self._agent(session_id)
        query = "" if agent is None else f"?agent_id={quote(agent, safe='')}"
        return f"/sessions/{quote(session_id, safe='')}{rest}{query}"

    # --- notes ----------------------------------------------------------------------------------------------------

    def _load(self) -> _Book:
        try:
            return _Book.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return _Book()
        except (OSError, ValidationError) as exc:
            raise ConfigError(
                f"{self._path} cannot be read: {exc}.", remediation="Remove it; sessions are found again by name."
            ) from exc

    def _note(self, session_id: str, known: _Known) -> None:
        if self._book.sessions.get(session_id) != known:
            self._book.sessions[session_id] = known
            self._save()

    def _forget(self, session_id: str) -> None:
        if self._book.sessions.pop(session_id, None) is not None:
            self._save()

    def _save(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._path, self._book.model_dump_json(indent=2))
        except OSError as exc:
            raise ConfigError(f"Cannot write {self._path}: {exc.strerror}.", remediation="Set data_dir.") from exc
