"""The synchronous twins of `emberbox.clients.vm_execution`.

Generated from these by tools/generate_sync.py, and not to be edited."""

from __future__ import annotations

from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from emberbox import models
from emberbox.clients.vm_execution import VmExecutionClient
from emberbox.sandbox.listeners import OnResult, OnText
from emberbox.sdk.portal import CallbackRelay, PortalThread, Twin

if TYPE_CHECKING:
    from emberbox.hooks.manager import HookManager


class VmExecutionClientSync(Twin[VmExecutionClient]):
    """A client of the server at `config.api_base_url`. Use it as a context manager, or `close()` it.

    What certainly never ran (no connection, no capacity, too many requests) is tried again a few times; what may have
    run is not. A call that is cancelled cancels the execution.

    Args:
        config: where the server is, and the defaults of requests.
        auth_token: of that server; the variable EMBERBOX_TOKEN unless given.
        hook_manager: hooks of this side: code goes through them before it leaves, its output when it comes, and the
            policy of `config` is checked. The server's own hooks and policy are in force in any case.
    """

    def __init__(
        self,
        config: models.VmExecutionConfig | None = None,
        *,
        auth_token: str | None = None,
        hook_manager: HookManager | None = None,
    ) -> None:

        async def make() -> VmExecutionClient:
            return VmExecutionClient(config, auth_token=auth_token, hook_manager=hook_manager)

        portal = PortalThread("client", "closed")
        original = portal.first(make)
        super().__init__(portal, original)
        self.config = original.config

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._portal.finish(lambda: self._original.aclose())

    def execute_code(
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
            on_stdout, on_stderr, on_result: called as output arrives, in the caller's thread.
            idempotency_key: asked again with the same key, the server answers with the first run's result. Not together
                with the callbacks.

        Raises:
            ValidationFailed, UnsupportedLanguage, PolicyBlocked: refused before it ran.
            VmNotAvailable, SessionNotFound, ExecutionFailed: the machine could not run it.
            VmConnectionError, ExecutionTimeout: the server cannot be reached (`retryable`), or it may have run.
        """
        relay = CallbackRelay()
        return self._portal.call(
            lambda: self._original.execute_code(
                request,
                on_stdout=relay.wrap(on_stdout),
                on_stderr=relay.wrap(on_stderr),
                on_result=relay.wrap(on_result),
                idempotency_key=idempotency_key,
            ),
            relay,
        )

    def cancel(self, *, execution_id: str | None = None, idempotency_key: str | None = None) -> bool:
        """Stop an execution; False where it does not run (any more)."""
        return self._portal.call(
            lambda: self._original.cancel(execution_id=execution_id, idempotency_key=idempotency_key)
        )

    def execute_python(
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
        relay = CallbackRelay()
        return self._portal.call(
            lambda: self._original.execute_python(
                agent_id,
                code,
                vm_id,
                on_stdout=relay.wrap(on_stdout),
                on_stderr=relay.wrap(on_stderr),
                on_result=relay.wrap(on_result),
                idempotency_key=idempotency_key,
            ),
            relay,
        )

    def execute_javascript(
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
        relay = CallbackRelay()
        return self._portal.call(
            lambda: self._original.execute_javascript(
                agent_id,
                code,
                vm_id,
                on_stdout=relay.wrap(on_stdout),
                on_stderr=relay.wrap(on_stderr),
                on_result=relay.wrap(on_result),
                idempotency_key=idempotency_key,
            ),
            relay,
        )

    def execute_bash(
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
        relay = CallbackRelay()
        return self._portal.call(
            lambda: self._original.execute_bash(
                agent_id,
                code,
                vm_id,
                on_stdout=relay.wrap(on_stdout),
                on_stderr=relay.wrap(on_stderr),
                on_result=relay.wrap(on_result),
                idempotency_key=idempotency_key,
            ),
            relay,
        )

    def execute_rust(
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
        relay = CallbackRelay()
        return self._portal.call(
            lambda: self._original.execute_rust(
                agent_id,
                code,
                vm_id,
                on_stdout=relay.wrap(on_stdout),
                on_stderr=relay.wrap(on_stderr),
                on_result=relay.wrap(on_result),
                idempotency_key=idempotency_key,
            ),
            relay,
        )

    def parse_and_execute(
        self,
        agent_id: str,
        llm_response: str,
        *,
        auto_execute: bool = True,
        auto_execute_threshold: float = 0.7,
        idempotency_key: str | None = None,
    ) -> models.ParseExecuteResponse:
        """Find the code in a model's answer and run what is meant to run, in the agent's own machine."""
        return self._portal.call(
            lambda: self._original.parse_and_execute(
                agent_id,
                llm_response,
                auto_execute=auto_execute,
                auto_execute_threshold=auto_execute_threshold,
                idempotency_key=idempotency_key,
            )
        )

    def get_vm_pool(self, agent_id: str) -> models.service.VmPoolResponse:
        """The machines of an agent."""
        return self._portal.call(lambda: self._original.get_vm_pool(agent_id))

    def provision_vm(
        self, agent_id: str, vm_type: str | None = None, *, name: str | None = None
    ) -> models.service.VmInstance:
        """A machine of the agent's own; it is ready when the answer comes. `vm_type`: of the config, unless given."""
        return self._portal.call(lambda: self._original.provision_vm(agent_id, vm_type, name=name))

    def wait_for_vm_ready(self, vm_id: str, timeout: float = 60.0) -> models.service.VmInstance:
        """Wait until a machine can be used.

        Args:
            vm_id: of the machine.
            timeout: seconds.

        Raises:
            SessionNotFound: there is none.
            VmNotAvailable: it has ended.
            ExecutionTimeout: it is not ready by then.
        """
        return self._portal.call(lambda: self._original.wait_for_vm_ready(vm_id, timeout))

    def kill_vm(self, vm_id: str) -> None:
        """End a machine, with everything in it. Harmless when it has ended."""
        self._portal.call(lambda: self._original.kill_vm(vm_id))

    def health_check(self) -> models.service.Health:
        """Whether the server lives; raises VmConnectionError where it cannot be reached."""
        return self._portal.call(lambda: self._original.health_check())

    def query_history(
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
        return self._portal.call(
            lambda: self._original.query_history(
                vm_id,
                limit=limit,
                failures_only=failures_only,
                agent_id=agent_id,
                start_date=start_date,
                end_date=end_date,
            )
        )

    def query_failures(self, vm_id: str, *, limit: int = 50) -> models.HistoryQueryResponse:
        """Only what failed or was refused."""
        return self._portal.call(lambda: self._original.query_failures(vm_id, limit=limit))

    def create_snapshot(self, vm_id: str, name: str | None = None) -> str:
        """Keep a machine as it is now: files, memory and processes; the snapshot's id."""
        return self._portal.call(lambda: self._original.create_snapshot(vm_id, name))

    def get_last_successful_snapshot(self, vm_id: str) -> str | None:
        """The id of the newest snapshot of a state after a success; None if there is none."""
        return self._portal.call(lambda: self._original.get_last_successful_snapshot(vm_id))

    def rollback_to_snapshot(
        self, vm_id: str, snapshot_id: str, *, create_pre_rollback_snapshot: bool = False
    ) -> models.RollbackResponse:
        """Take a machine back: files, memory and processes.

        Raises:
            SnapshotNotFound: there is no such snapshot.
            RollbackFailed: it did not come about; the machine is as it was.
        """
        return self._portal.call(
            lambda: self._original.rollback_to_snapshot(
                vm_id, snapshot_id, create_pre_rollback_snapshot=create_pre_rollback_snapshot
            )
        )

    def rollback_to_last_success(self, vm_id: str) -> models.RollbackResponse:
        """The same, to the newest state that there is a snapshot of after a success; raises SnapshotNotFound."""
        return self._portal.call(lambda: self._original.rollback_to_last_success(vm_id))
