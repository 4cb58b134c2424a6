"""History, automatic snapshots and rollback for programs that run executions themselves: against a server (`http`), or
in this process (`direct`)."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from emberbox.clients.vm_execution import VmExecutionClient
from emberbox.config import Settings, load_settings
from emberbox.engine import Engine
from emberbox.engine.checkpoints import LAST_SUCCESS
from emberbox.models import (
    HistoryConfig,
    HistoryQueryRequest,
    HistoryQueryResponse,
    RollbackResponse,
    TerminationReason,
    VmExecuteRequest,
    VmExecuteResponse,
    VmExecutionConfig,
)

_HARMLESS = frozenset({TerminationReason.COMPLETED, TerminationReason.OUTPUT_TRUNCATED})


class _Way(Protocol):
    """How the machines are reached."""

    async def snapshot(self, vm_id: str, agent_id: str, name: str) -> str: ...
    async def query(self, wanted: HistoryQueryRequest) -> HistoryQueryResponse: ...
    async def last_good(self, vm_id: str, agent_id: str | None) -> str | None: ...
    async def rollback(
        self, vm_id: str, agent_id: str | None, target: str, *, keep_current: bool
    ) -> RollbackResponse: ...
    async def close(self) -> None: ...


class FcctlBridge:
    """Snapshots by the policy of `history_config`, history and rollback. Use it as an async context manager, or
    `aclose()` it.

    Every execution of a server or an engine is in its history already; the bridge adds what its own policy wants.

    Args:
        history_config: the policy, and whether to use a server (`integration_mode="http"`) or this process (`direct`).
        api_base_url: of the server.
        auth_token: of that server; the variable EMBERBOX_TOKEN unless given.
        engine: of `direct` mode: whose machines it is about. Without one it makes an engine of its own, a durable one
            with `settings`, which it closes.
        settings: of that engine.
    """

    def __init__(
        self,
        history_config: HistoryConfig | None = None,
        api_base_url: str = "http://localhost:8080",
        *,
        auth_token: str | None = None,
        engine: Engine | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.config = history_config or HistoryConfig()
        self.engine: Engine | None = None
        self._way: _Way
        if self.config.integration_mode == "direct":
            owned = engine is None
            self.engine = engine or Engine(settings or load_settings(), durable=True)
            self._way = _Direct(self.engine, owned=owned)
        else:
            self._way = _Http(api_base_url, auth_token)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the server, or of an engine of its own."""
        await self._way.close()

    async def track_execution(
        self, vm_id: str, agent_id: str, request: VmExecuteRequest, response: VmExecuteResponse
    ) -> str | None:
        """After an execution: take the snapshot that the policy wants.

        Args:
            vm_id, agent_id: where it ran, and for whom.
            request, response: what was asked and what came of it.

        Returns:
            the id of a snapshot of the state after it, or None where the policy wants none.

        Raises:
            SnapshotFailed: it could not be taken.
        """
        if not self.config.enabled:
            return None
        if response.snapshot_id is not None:
            return response.snapshot_id
        failed = not _succeeded(response)
        if not (self.config.snapshot_on_execution or (failed and self.config.snapshot_on_failure)):
            return None
        what = "failed" if failed else "after"
        return await self._way.snapshot(vm_id, agent_id, f"{what}-{request.language}-{response.execution_id}")

    async def query_history(
        self, vm_id: str, agent_id: str | None = None, *, limit: int = 50, failures_only: bool = False
    ) -> HistoryQueryResponse:
        """What was executed in a machine, newest first."""
        most = min(limit, self.config.max_history_entries)
        wanted = HistoryQueryRequest(vm_id=vm_id, agent_id=agent_id, limit=most, failures_only=failures_only)
        return await self._way.query(wanted)

    async def get_last_successful_snapshot(self, vm_id: str, agent_id: str | None = None) -> str | None:
        """The id of the newest snapshot of a state after a success; None if there is none."""
        return await self._way.last_good(vm_id, agent_id)

    async def rollback_to_snapshot(
        self,
        vm_id: str,
        snapshot_id: str,
        agent_id: str | None = None,
        *,
        create_pre_rollback_snapshot: bool = False,
    ) -> RollbackResponse:
        """Take a machine back: files, memory and processes.

        Raises:
            SnapshotNotFound: there is no such snapshot.
            RollbackFailed: it did not come about; the machine is as it was.
        """
        return await self._way.rollback(vm_id, agent_id, snapshot_id, keep_current=create_pre_rollback_snapshot)

    async def auto_rollback_on_failure(
        self, vm_id: str, agent_id: str, response: VmExecuteResponse
    ) -> RollbackResponse | None:
        """Take a machine back to its last good state, where the execution failed and the policy wants that
        (`auto_rollback_on_failure`).

        Returns:
            None where nothing was to be done, or the machine has gone back already.

        Raises:
            SnapshotNotFound: there is no snapshot of a good state.
        """
        wanted = self.config.enabled and self.config.auto_rollback_on_failure and not _succeeded(response)
        if not wanted or response.rolled_back_to is not None:
            return None
        return await self._way.rollback(vm_id, agent_id, LAST_SUCCESS, keep_current=False)


def _succeeded(response: VmExecuteResponse) -> bool:
    return response.exit_code == 0 and response.error is None and response.termination_reason in _HARMLESS


class _Http:
    """By a server."""

    def __init__(self, base_url: str, token: str | None) -> None:
        self._client = VmExecutionClient(VmExecutionConfig(api_base_url=base_url), auth_token=token)

    async def snapshot(self, vm_id: str, agent_id: str, name: str) -> str:
        del agent_id
        return await self._client.create_snapshot(vm_id, name)

    async def query(self, wanted: HistoryQueryRequest) -> HistoryQueryResponse:
        return await self._client.query_history(
            wanted.vm_id or "", limit=wanted.limit, failures_only=wanted.failures_only, agent_id=wanted.agent_id
        )

    async def last_good(self, vm_id: str, agent_id: str | None) -> str | None:
        del agent_id
        return await self._client.get_last_successful_snapshot(vm_id)

    async def rollback(self, vm_id: str, agent_id: str | None, target: str, *, keep_current: bool) -> RollbackResponse:
        del agent_id
        return await self._client.rollback_to_snapshot(vm_id, target, create_pre_rollback_snapshot=keep_current)

    async def close(self) -> None:
        await self._client.aclose()


class _Direct:
    """By an engine of this process."""

    def __init__(self, engine: Engine, *, owned: bool) -> None:
        self._engine = engine
        self._owned = owned

    async def snapshot(self, vm_id: str, agent_id: str, name: str) -> str:
        session = await self._engine.lease(agent_id, vm_id)
        return (await self._engine.checkpoints.snapshot(session, name)).snapshot_id

    async def query(self, wanted: HistoryQueryRequest) -> HistoryQueryResponse:
        return await self._engine.history.query(wanted)

    async def last_good(self, vm_id: str, agent_id: str | None) -> str | None:
        session = await self._engine.get_sandbox(vm_id)
        del agent_id
        found = await self._engine.checkpoints.snapshots(session)
        return next((one.snapshot_id for one in reversed(found) if one.good), None)

    async def rollback(self, vm_id: str, agent_id: str | None, target: str, *, keep_current: bool) -> RollbackResponse:
        session = await (self._engine.get_sandbox(vm_id) if agent_id is None else self._engine.lease(agent_id, vm_id))
        return await self._engine.checkpoints.rollback(session, target, keep_current=keep_current)

    async def close(self) -> None:
        if self._owned:
            await self._engine.close()
