"""/api/v2: executions with snapshots and limits of their own, batches, the pool."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response

from emberbox.engine.checkpoints import LAST_SUCCESS, Checkpoints
from emberbox.errors import ExecutionCancelled, SnapshotNotFound, ValidationFailed, VmExecutionError
from emberbox.host.pressure import MemoryReader
from emberbox.languages import get_language
from emberbox.models import Execution, MachineLimits, RollbackResponse, SnapshotInfo, VmExecuteResponse
from emberbox.models.service import (
    AllocateRequest,
    AllocateResponse,
    BatchBlock,
    BatchRequest,
    BatchResponse,
    BatchResult,
    CancelRequest,
    CancelResponse,
    ExecuteV2Request,
    ExecuteV2Response,
    PoolStats,
    PoolStatusResponse,
    ResourceStats,
    RollbackV2Request,
    SnapshotCreated,
    SnapshotCreateRequest,
    VmConfig,
)
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import Listeners
from emberbox.server import bounds
from emberbox.server.admission import AdmittingRoute, Executes, ReadsAll
from emberbox.server.dependencies import SSE, Call, Stream
from emberbox.server.parse_execute import block_error
from emberbox.server.requests import request_of, request_of_v2, response_v2, status_of_run
from emberbox.server.routes.vms import roll_back, take
from emberbox.server.streams import answer

router = APIRouter(prefix="/api/v2", tags=["v2"], route_class=AdmittingRoute)
_AT_ONCE = 8
"""Forks of one parallel batch that run at the same time."""


@router.post("/execute", response_model=ExecuteV2Response, responses={200: SSE}, summary="Run code")
async def execute(body: ExecuteV2Request, call: Executes, stream: Stream = False) -> Response:
    """As /api/llm/execute, with a snapshot around it where one is wanted."""
    if stream:
        return call.stream(lambda outbox: _execute(call, body, outbox.listeners()))
    return await call.run(body, lambda: _execute(call, body, Listeners()))


async def _execute(call: Call, body: ExecuteV2Request, listeners: Listeners) -> ExecuteV2Response:
    session = await call.service.lease(call.principal, body.agent_id, body.vm_id)
    for ms in (body.timeout_ms, body.resource_limits.timeout_ms if body.resource_limits else None):
        call.service.engine.timeout_for(get_language(body.language).config.name, None if ms is None else ms / 1000)
    request = request_of_v2(session, body)
    return response_v2(await call.service.execute(call.principal, request, listeners))


@router.post("/executions/cancel", response_model=CancelResponse, summary="Stop an execution")
async def cancel(body: CancelRequest, call: Executes) -> Response:
    """Its code is killed; whoever waits for it gets an error. The machine goes on."""
    cancelled = call.service.cancel(call.principal, body.execution_id, body.idempotency_key)
    return answer(CancelResponse(cancelled=cancelled))


# --- batches ----------------------------------------------------------------------------------------------------------


@router.post("/execute/batch", response_model=BatchResponse, summary="Run several pieces of code")
async def batch(body: BatchRequest, call: Executes) -> Response:
    """`sequential`: in one machine, with what each leaves behind. `parallel`: each in a fork of its own, at once; the
    machine itself is not touched."""
    return await call.run(body, lambda: _batch(call, body))


async def _batch(call: Call, body: BatchRequest) -> BatchResponse:
    began = time.monotonic()
    if body.snapshot and body.execution_mode == "parallel":
        raise ValidationFailed("A snapshot of a parallel batch has no meaning.", remediation="Take sequential.")
    session = await call.service.lease(call.principal, body.agent_id, body.vm_id)
    snapshot_id, note = None, ""
    if body.execution_mode == "parallel":
        results = await _parallel(call, session, body.code_blocks)
    else:
        results = await _sequential(call, session, body)
        if body.snapshot:
            try:
                snapshot_id = (await take(call, session, SnapshotCreateRequest())).snapshot_id
            except VmExecutionError as exc:  # the blocks have run: their results are the answer
                note = f"No snapshot was taken: {exc.message}"
    return BatchResponse(
        batch_id=f"ba-{secrets.token_hex(8)}",
        results=results,
        total_duration_ms=round((time.monotonic() - began) * 1000, 3),
        vm_id=session.id,
        snapshot_id=snapshot_id,
        note=note,
    )


async def _sequential(call: Call, session: SandboxInstance, body: BatchRequest) -> list[BatchResult]:
    results: list[BatchResult] = []
    for index, block in enumerate(body.code_blocks):
        if body.stop_on_failure and any(result.status != "completed" for result in results):
            results.append(BatchResult(block=index, status="skipped"))
        else:
            results.append(await _one(call, session, index, block))
    return results


async def _parallel(call: Call, session: SandboxInstance, blocks: Sequence[BatchBlock]) -> list[BatchResult]:
    """All begin with the machine as it is now, whatever others do in it meanwhile; a few at once."""
    checkpoints, gate = call.service.engine.checkpoints, asyncio.Semaphore(_AT_ONCE)
    taking = asyncio.ensure_future(checkpoints.snapshot(session))

    async def one(index: int, block: BatchBlock) -> BatchResult:
        async with gate:
            try:
                start, options = await taking, call.service.copying(session, durable=False)
                child = await checkpoints.branch(session, start.snapshot_id, options=options)
            except VmExecutionError as exc:
                return BatchResult(block=index, status="refused", error=block_error(index, exc))
            try:
                return await _one(call, child, index, block)
            finally:
                await asyncio.shield(asyncio.ensure_future(child.kill()))

    try:
        await asyncio.shield(taking)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(index, block)) for index, block in enumerate(blocks)]
    finally:
        await asyncio.shield(asyncio.ensure_future(_forgotten(checkpoints, session, taking)))
    return [task.result() for task in tasks]


async def _forgotten(checkpoints: Checkpoints, session: SandboxInstance, taking: asyncio.Future[SnapshotInfo]) -> None:
    """The snapshot that a batch began with is of no use any more, also one that is just being taken."""
    with contextlib.suppress(VmExecutionError):
        await checkpoints.delete(session, (await taking).snapshot_id)


async def _one(call: Call, session: SandboxInstance, index: int, block: BatchBlock) -> BatchResult:
    request = request_of(
        session,
        language=block.language,
        code=block.code,
        agent_id=session.agent_id,
        timeout=None if block.timeout_ms is None else block.timeout_ms / 1000,
    )
    try:
        run: Execution = await call.service.execute(call.principal, request, Listeners())
    except ExecutionCancelled as exc:
        return BatchResult(block=index, status="cancelled", error=block_error(index, exc))
    except VmExecutionError as exc:
        return BatchResult(block=index, status="refused", error=block_error(index, exc))
    return BatchResult(block=index, status=status_of_run(run), execution=VmExecuteResponse.of(run))


# --- machines ---------------------------------------------------------------------------------------------------------


@router.get("/vm-pool/status", response_model=PoolStatusResponse, summary="The pool and the host")
async def pool_status(call: ReadsAll) -> Response:
    """Machines made ahead, sandboxes, snapshots and memory. For a token that is bound to no agents."""
    service = call.service
    kinds = service.engine.pool_status()
    count, size = service.engine.snapshot_figures()
    return answer(
        PoolStatusResponse(
            pool_stats=PoolStats(
                ready=sum(kind.ready for kind in kinds),
                starting=sum(kind.starting for kind in kinds),
                in_use=sum(kind.in_use for kind in kinds),
                kinds=kinds,
            ),
            resource_stats=ResourceStats(
                sandboxes=len(service.engine.live_sandboxes()),
                max_sandboxes=service.settings.max_sandboxes,
                executions_running=service.running,
                executions_waiting=service.waiting_now,
                snapshots=count,
                snapshot_bytes=size,
                free_memory_bytes=await asyncio.to_thread(MemoryReader().available_bytes),
            ),
        )
    )


@router.post("/vms/allocate", response_model=AllocateResponse, status_code=201, summary="Make a machine")
async def allocate(body: AllocateRequest, call: Executes) -> Response:
    """With limits of its own. It is ready when the answer comes."""
    service = call.service
    with service.accepted(call.principal), service.waiting():
        session = await service.engine.create_sandbox(
            await service.template(body.vm_type),
            limits=_limits(body.vm_config),
            most=call.principal.limits,
            agent_id=call.principal.agent(body.agent_id),
            timeout=bounds.life(service.config, None),
            idle_seconds=service.settings.session_idle_seconds,
        )
    return answer(AllocateResponse(vm_id=session.id, status="ready", estimated_ready_time_ms=0), 201)


def _limits(config: VmConfig) -> MachineLimits:
    wanted: dict[str, Any] = config.model_dump(include={"memory_mb", "vcpus"}, exclude_none=True)
    if config.root_fs_size_gb is not None:
        wanted["disk_mb"] = max(8, round(config.root_fs_size_gb * 1024))
    return MachineLimits(**wanted)


@router.post("/vms/{vm_id}/snapshots", response_model=SnapshotCreated, status_code=201, summary="Take a snapshot")
async def snapshot(vm_id: str, body: SnapshotCreateRequest, call: Executes) -> Response:
    """Of files, memory and processes. `snapshot_type: kept` outlives the machine."""
    return answer(await take(call, await call.service.session(call.principal, vm_id), body), 201)


@router.post("/vms/{vm_id}/snapshots/{snapshot_id}/rollback", response_model=RollbackResponse, summary="Roll back")
async def rollback(vm_id: str, snapshot_id: str, call: Executes, body: RollbackV2Request | None = None) -> Response:
    """`snapshot` goes to the snapshot of the address, `selective` takes `paths` out of it; `to-last-success` and
    `to-pre-execution` find their snapshot themselves, and `-` stands in the address."""
    body = body or RollbackV2Request()
    session = await call.service.session(call.principal, vm_id)
    if (body.strategy == "selective") != (body.paths is not None):
        raise ValidationFailed(
            "`paths` belongs to the strategy selective, and that to `paths`.", remediation="Give both or neither."
        )
    target = snapshot_id
    if body.strategy == "to-last-success":
        target = LAST_SUCCESS
    elif body.strategy == "to-pre-execution":
        target = body.execution_id or _last_execution(session)
    keep = body.create_pre_rollback_snapshot
    return answer(await roll_back(call, session, target, paths=body.paths, keep_current=keep))


def _last_execution(session: SandboxInstance) -> str:
    if session.lineage.newest is None:
        raise SnapshotNotFound(f"Nothing was executed in machine {session.id}.", remediation="Name a snapshot.")
    return session.lineage.newest
