"""The client of a server: code and answers in, results out; machines, history and rollback.

`Sandbox.create(base_url=…)` is the other way to use a server: one machine at a time, with all that the SDK has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

from emberbox import models, sdk
from emberbox.errors import ExecutionTimeout, SessionNotFound, ValidationFailed, VmNotAvailable
from emberbox.sandbox.listeners import Listeners, OnResult, OnText
from emberbox.sdk.deadlines import EXECUTION_SECONDS

if TYPE_CHECKING:
    from emberbox.clients.guarded import Guarded
    from emberbox.hooks.manager import HookManager

T = TypeVar("T")
_LAST_SUCCESS = "last-success"
_READY = frozenset({"ready", "running"})


def _guarded(hooks: HookManager, config: models.VmExecutionConfig) -> Guarded:
    """Imported for clients that have hooks: hooks need the engine's policy."""
    from emberbox.clients.guarded import Guarded

    return Guarded(hooks, config)


class VmExecutionClient:
    """A client of the server at `config.api_base_url`. Use it as an async context manager, or `aclose()` it.

    What certainly never ran (no connection, no capacity, too many requests) is tried again a few times; what may have
    run is not. A call that is cancelled cancels the execution.

    Args:
        config: where the server is, and the defaults of requests.
        auth_token: of that server; the variable EMBERBOX_TOKEN unless given.
        hook_manager: hooks of this side: code goes through them before it leaves, its output when it comes, and the
            policy of `config` is checked. The server's own hooks and policy are in force in any case.
    """

    config: models.VmExecutionConfig

    def __init__(
        self,
        config: models.VmExecutionConfig | None = None,
        *,
        auth_token: str | None = None,
        hook_manager: HookManager | None = None,
    ) -> None:
        self.config = config or models.VmExecutionConfig()
        self._server = sdk.transport.HttpServer(self.config.api_base_url, auth_token)
        self._guarded = None if hook_manager is None else _guarded(hook_manager, self.config)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._server.aclose()

    # --- executions -----------------------------------------------------------------------------------------------

    async def execute_code(
        self,
        request: models.VmExecuteRequest,
        *,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnResult | None = None,
        idempotency_key: str | None = None,
    ) -> models.VmExecuteResponse:
        """Run code in the machine that the request names, or in the agent's own. Code that fails does not raise.

        Args:
            request: what to run.
            on_stdout, on_stderr, on_result: called as output arrives, plain functions or coroutine functions.
            idempotency_key: asked again with the same key, the server answers with the first run's result. Not together
                with the callbacks.

        Raises:
            ValidationFailed, UnsupportedLanguage, PolicyBlocked: refused before it ran.
            VmNotAvailable, SessionNotFound, ExecutionFailed: the machine could not run it.
            VmConnectionError, ExecutionTimeout: the server cannot be reached (`retryable`), or it may have run.
        """
        listeners = Listeners(on_stdout, on_stderr, on_result)
        if idempotency_key is not None and listeners != Listeners():
            raise ValidationFailed(
                "A stream is not kept, so that an idempotency_key and callbacks do not go together.",
                remediation="Leave one of them out.",
            )
        if self._guarded is None:
            return await self._execute(request, listeners, idempotency_key)
        return await self._guarded.execute(
            request, listeners, lambda checked, heard: self._execute(checked, heard, idempotency_key)
        )

    async def _execute(
        self, request: models.VmExecuteRequest, listeners: Listeners, key: str | None
    ) -> models.VmExecuteResponse:
        path = "/api/llm/execute"
        seconds = EXECUTION_SECONDS + (request.timeout_seconds or 0)
        if listeners == Listeners():
            answer = self._server.post(
                models.VmExecuteResponse,
                path,
                request,
                seconds=seconds,
                headers={"Idempotency-Key": key} if key else None,
            )
            return await self._cancelling(answer, key)
        async with self._server.events(f"{path}?stream=true", request) as events:
            return await sdk.transport.followed(models.VmExecuteResponse, events, listeners)

    async def _cancelling(self, answer: Coroutine[Any, Any, T], key: str | None) -> T:
        """A call that is cancelled cancels its execution. Without a key the server sees that we left; with one it goes
        on, for whoever asks again, unless it is told."""
        try:
            return await answer
        except asyncio.CancelledError:
            if key is not None:
                telling = asyncio.ensure_future(self.cancel(idempotency_key=key))
                await asyncio.shield(asyncio.wait([telling], timeout=5))
            raise

    async def cancel(self, *, execution_id: str | None = None, idempotency_key: str | None = None) -> bool:
        """Stop an execution; False where it does not run (any more)."""
        wanted = models.service.CancelRequest(execution_id=execution_id, idempotency_key=idempotency_key)
        return (await self._server.post(models.service.CancelResponse, "/api/v2/executions/cancel", wanted)).cancelled

    async def execute_python(
        self,
        agent_id: str,
        code: str,
        vm_id: str | None = None,
        *,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnResult | None = None,
        idempotency_key: str | None = None,
    ) -> models.VmExecuteResponse:
        """Run Python; the rest as of `execute_code`."""
        request = models.VmExecuteRequest(agent_id=agent_id, language="python", code=code, vm_id=vm_id)
        return await self.execute_code(
            request, on_stdout=on_stdout, on_stderr=on_stderr, on_result=on_result, idempotency_key=idempotency_key
        )

    async def execute_javascript(
        self,
        agent_id: str,
        code: str,
        vm_id: str | None = None,
        *,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnResult | None = None,
        idempotency_key: str | None = None,
    ) -> models.VmExecuteResponse:
        """Run JavaScript; the rest as of `execute_code`."""
        request = models.VmExecuteRequest(agent_id=agent_id, language="javascript", code=code, vm_id=vm_id)
        return await self.execute_code(
            request, on_stdout=on_stdout, on_stderr=on_stderr, on_result=on_result, idempotency_key=idempotency_key
        )

    async def execute_bash(
        self,
        agent_id: str,
        code: str,
        vm_id: str | None = None,
        *,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnResult | None = None,
        idempotency_key: str | None = None,
    ) -> models.VmExecuteResponse:
        """Run Bash; the rest as of `execute_code`."""
        request = models.VmExecuteRequest(agent_id=agent_id, language="bash", code=code, vm_id=vm_id)
        return await self.execute_code(
            request, on_stdout=on_stdout, on_stderr=on_stderr, on_result=on_result, idempotency_key=idempotency_key
        )

    async def execute_rust(
        self,
        agent_id: str,
        code: str,
        vm_id: str | None = None,
        *,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnResult | None = None,
        idempotency_key: str | None = None,
    ) -> models.VmExecuteResponse:
        """Run Rust; the rest as of `execute_code`."""
        request = models.VmExecuteRequest(agent_id=agent_id, language="rust", code=code, vm_id=vm_id)
        return await self.execute_code(
            request, on_stdout=on_stdout, on_stderr=on_stderr, on_result=on_result, idempotency_key=idempotency_key
        )

    async def parse_and_execute(
        self,
        agent_id: str,
        llm_response: str,
        *,
        auto_execute: bool = True,
        auto_execute_threshold: float = 0.7,
        idempotency_key: str | None = None,
    ) -> models.ParseExecuteResponse:
        """Find the code in a model's answer and run what is meant to run, in the agent's own machine."""
        request = models.ParseExecuteRequest(
            agent_id=agent_id,
            llm_response=llm_response,
            auto_execute=auto_execute,
            auto_execute_threshold=auto_execute_threshold,
        )
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        answer = self._server.post(
            models.ParseExecuteResponse, "/api/llm/parse-execute", request, seconds=EXECUTION_SECONDS, headers=headers
        )
        return await self._cancelling(answer, idempotency_key)

    # --- machines -------------------------------------------------------------------------------------------------

    async def get_vm_pool(self, agent_id: str) -> models.service.VmPoolResponse:
        """The machines of an agent."""
        return await self._server.get(models.service.VmPoolResponse, f"/api/llm/vm-pool/{_part(agent_id)}")

    async def provision_vm(
        self, agent_id: str, vm_type: str | None = None, *, name: str | None = None
    ) -> models.service.VmInstance:
        """A machine of the agent's own; it is ready when the answer comes. `vm_type`: of the config, unless given."""
        request = sdk.transport.made(
            models.service.VmCreateRequest,
            agent_id=agent_id,
            vm_type=vm_type or self.config.default_vm_type,
            vm_name=name,
        )
        return await self._server.post(models.service.VmInstance, "/api/vms", request, seconds=EXECUTION_SECONDS)

    async def wait_for_vm_ready(self, vm_id: str, timeout: float = 60.0) -> models.service.VmInstance:
        """Wait until a machine can be used.

        Args:
            vm_id: of the machine.
            timeout: seconds.

        Raises:
            SessionNotFound: there is none.
            VmNotAvailable: it has ended.
            ExecutionTimeout: it is not ready by then.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            vm = await self._server.get(models.service.VmInstance, f"/api/vms/{_part(vm_id)}")
            if vm.status in _READY:
                return vm
            if vm.status in {"stopped", "failed"}:
                raise VmNotAvailable(f"Machine {vm_id} is {vm.status}.", remediation="Provision a new one.")
            if vm.status == "paused":  # suspended: to be asked wakes it
                await self._server.request("POST", f"/api/vms/{_part(vm_id)}/resume")
            if asyncio.get_running_loop().time() >= deadline:
                raise ExecutionTimeout(f"Machine {vm_id} is not ready after {timeout:g} s: it is {vm.status}.")
            await asyncio.sleep(0.1)

    async def kill_vm(self, vm_id: str) -> None:
        """End a machine, with everything in it. Harmless when it has ended."""
        try:
            await self._server.request("DELETE", f"/api/vms/{_part(vm_id)}")
        except SessionNotFound:
            return

    async def health_check(self) -> models.service.Health:
        """Whether the server lives; raises VmConnectionError where it cannot be reached."""
        return await self._server.get(models.service.Health, "/health")

    # --- history, undo --------------------------------------------------------------------------------------------

    async def query_history(
        self,
        vm_id: str,
        *,
        limit: int = 50,
        failures_only: bool = False,
        agent_id: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> models.HistoryQueryResponse:
        """What was executed in a machine, newest first; also when it has ended."""
        return await self._server.history(
            f"/api/vms/{_part(vm_id)}/history",
            limit,
            failures_only=failures_only,
            agent_id=agent_id,
            start_date=None if start_date is None else start_date.astimezone().isoformat(),
            end_date=None if end_date is None else end_date.astimezone().isoformat(),
        )

    async def query_failures(self, vm_id: str, *, limit: int = 50) -> models.HistoryQueryResponse:
        """Only what failed or was refused."""
        return await self.query_history(vm_id, limit=limit, failures_only=True)

    async def create_snapshot(self, vm_id: str, name: str | None = None) -> str:
        """Keep a machine as it is now: files, memory and processes; the snapshot's id."""
        request = models.service.SnapshotCreateRequest(name=name)
        path = f"/api/vms/{_part(vm_id)}/snapshots"
        return (
            await self._server.post(models.service.SnapshotCreated, path, request, seconds=EXECUTION_SECONDS)
        ).snapshot_id

    async def get_last_successful_snapshot(self, vm_id: str) -> str | None:
        """The id of the newest snapshot of a state after a success; None if there is none."""
        found = await self._server.get(models.service.SnapshotList, f"/api/vms/{_part(vm_id)}/snapshots")
        return next((one.snapshot_id for one in reversed(found.snapshots) if one.good), None)

    async def rollback_to_snapshot(
        self, vm_id: str, snapshot_id: str, *, create_pre_rollback_snapshot: bool = False
    ) -> models.RollbackResponse:
        """Take a machine back: files, memory and processes.

        Raises:
            SnapshotNotFound: there is no such snapshot.
            RollbackFailed: it did not come about; the machine is as it was.
        """
        request = models.RollbackRequest(target=snapshot_id, create_pre_rollback_snapshot=create_pre_rollback_snapshot)
        path = f"/api/vms/{_part(vm_id)}/rollback"
        return await self._server.post(models.RollbackResponse, path, request, seconds=EXECUTION_SECONDS)

    async def rollback_to_last_success(self, vm_id: str) -> models.RollbackResponse:
        """The same, to the newest state that there is a snapshot of after a success; raises SnapshotNotFound."""
        return await self.rollback_to_snapshot(vm_id, _LAST_SUCCESS)


def _part(text: str) -> str:
    """An id as a part of an address."""
    if not text:
        raise SessionNotFound("An empty id names nothing.", remediation="Give the id of a machine or an agent.")
    return quote(text, safe="")
