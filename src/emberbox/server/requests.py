"""From requests of the wire to what the engine takes, and back."""

from __future__ import annotations

from typing import Any

from emberbox.engine import ExecuteRequest
from emberbox.models import Execution, SnapshotStrategy, TerminationReason, VmExecuteResponse
from emberbox.models.service import ExecuteV2Request, ExecuteV2Response, ExecutionStatus
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import RunOptions
from emberbox.server import bounds


def request_of(
    session: SandboxInstance,
    *,
    language: str,
    code: str,
    agent_id: str | None,
    timeout: float | None = None,
    cwd: str | None = None,
    requirements: list[str] | None = None,
    metadata: dict[str, Any] | None = None,
    snapshot: SnapshotStrategy = "none",
    output_bytes: int | None = None,
) -> ExecuteRequest:
    """What the engine is asked."""
    return ExecuteRequest(
        session,
        language,
        code,
        RunOptions(timeout=timeout, cwd=cwd, output_bytes=output_bytes),
        requirements or (),
        agent_id=agent_id,
        metadata=metadata or {},
        snapshot=snapshot,
    )


def request_of_v2(session: SandboxInstance, body: ExecuteV2Request) -> ExecuteRequest:
    """The same of a request of version 2; of two time-outs the shorter one counts."""
    limits = body.resource_limits
    times = [ms for ms in (body.timeout_ms, limits.timeout_ms if limits else None) if ms is not None]
    return request_of(
        session,
        language=body.language,
        code=body.code,
        agent_id=session.agent_id,
        timeout=min(times) / 1000 if times else None,
        cwd=body.working_dir,
        requirements=body.requirements,
        metadata=body.metadata,
        snapshot=body.snapshot_strategy,
        output_bytes=bounds.output_bytes(session, limits.output_bytes) if limits else None,
    )


def status_of_run(run: Execution) -> ExecutionStatus:
    """How it ended, in one word."""
    if run.succeeded:
        return "completed"
    if run.termination_reason is TerminationReason.INTERRUPTED:
        return "cancelled"
    return "timeout" if run.termination_reason is TerminationReason.TIMEOUT else "failed"


def response_v2(run: Execution) -> ExecuteV2Response:
    """The answer of version 2."""
    return ExecuteV2Response(**dict(VmExecuteResponse.of(run)), status=status_of_run(run))
