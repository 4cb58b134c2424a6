"""/api/vms: machines, their history and their snapshots."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from emberbox.errors import SessionNotFound
from emberbox.models import (
    HistoryQueryRequest,
    HistoryQueryResponse,
    HistoryVerification,
    RollbackRequest,
    RollbackResponse,
    SnapshotInfo,
)
from emberbox.models.service import (
    KeepRequest,
    RollbackV1Request,
    SnapshotCreated,
    SnapshotCreateRequest,
    SnapshotList,
    VmCreateRequest,
    VmInstance,
    VmList,
)
from emberbox.sandbox.instance import SandboxInstance
from emberbox.server import bounds
from emberbox.server.admission import AdmittingRoute, Executes, Reads, ReadsAll, ReadsPast, query
from emberbox.server.dependencies import Call
from emberbox.server.service import NAME_KEY, checked_metadata
from emberbox.server.streams import answer, long_answer

router = APIRouter(prefix="/api/vms", tags=["machines"], route_class=AdmittingRoute)
When = Annotated[datetime | None, Query(description="ISO 8601; without a zone it is the server's time")]
Before = Annotated[
    str | None, Query(max_length=64, description="only older ones than this execution: `next` of the answer before")
]


@router.post("", response_model=VmInstance, status_code=201, summary="Make a machine")
async def create(body: VmCreateRequest, call: Executes) -> Response:
    """A machine of one's own. It is ready when the answer comes. One that nobody uses for a while is suspended, and
    goes on at the next use, after a restart of the server too."""
    service = call.service
    name = {} if body.vm_name is None else {NAME_KEY: body.vm_name}
    if body.snapshot_id is not None:
        await service.kept_snapshot(call.principal, body.snapshot_id)
    with service.accepted(call.principal), service.waiting():
        session = await service.engine.create_sandbox(
            await service.template(body.vm_type),
            limits=body.limits,
            most=call.principal.limits,
            envs=body.envs,
            metadata=checked_metadata(body.metadata) | name,
            timeout=bounds.life(service.config, body.timeout_seconds),
            agent_id=call.principal.agent(body.agent_id),
            snapshot=body.snapshot_id,
            idle_seconds=service.settings.session_idle_seconds,
        )
    return answer(service.instance(session), 201)


@router.get("", response_model=VmList, summary="List machines")
async def list_all(call: Reads) -> Response:
    """All that the caller may see, oldest first."""
    vms = await call.service.instances(call.principal)
    return answer(VmList(vms=vms, total=len(vms)))


@router.get("/{vm_id}", response_model=VmInstance, summary="Look at a machine")
async def get(vm_id: str, call: Reads) -> Response:
    """As it is now; one that was suspended stays so."""
    return answer(await call.service.instance_of(call.principal, vm_id))


@router.delete("/{vm_id}", response_model=VmInstance, summary="End a machine")
async def delete(vm_id: str, call: Executes) -> Response:
    """It ends, with everything in it and its snapshots, but for kept ones."""
    vm = await call.service.instance_of(call.principal, vm_id)
    await call.service.end(vm_id)
    return answer(vm.model_copy(update={"status": "stopped"}))


# --- history ----------------------------------------------------------------------------------------------------------


def _asked(
    limit: Annotated[int, Query(ge=1, le=10_000)] = 50,
    failures_only: Annotated[bool, Query()] = False,
    agent_id: Annotated[str | None, Query()] = None,
    start_date: When = None,
    end_date: When = None,
    before: Before = None,
) -> HistoryQueryRequest:
    """What is asked of the history, whatever machine it is about."""
    return HistoryQueryRequest(
        agent_id=agent_id,
        limit=limit,
        failures_only=failures_only,
        start_date=start_date,
        end_date=end_date,
        before=before,
    )


Asked = Annotated[HistoryQueryRequest, Depends(_asked)]


@router.get("/{vm_id}/history", response_model=HistoryQueryResponse, summary="What was executed")
async def history(vm_id: str, call: ReadsPast, asked: Asked) -> Response:
    """Newest first, refusals included; also of a machine that has ended. Where there is too much for one answer, it
    ends before the limit, and `next` says where to go on (`before`)."""
    return await long_answer(await query(call, asked.model_copy(update={"vm_id": vm_id})))


# --- snapshots --------------------------------------------------------------------------------------------------------


async def take(call: Call, session: SandboxInstance, body: SnapshotCreateRequest) -> SnapshotCreated:
    """A snapshot by hand."""
    began = time.monotonic()
    async with call.service.undoing(call.principal, "snapshot"):
        info = await call.service.engine.checkpoints.snapshot(
            session, body.name, keep=body.snapshot_type == "kept", description=body.description
        )
    return SnapshotCreated(
        snapshot_id=info.snapshot_id,
        name=info.name,
        size_mb=round(info.size_bytes / (1 << 20), 3),
        creation_time_ms=round((time.monotonic() - began) * 1000, 3),
    )


async def roll_back(
    call: Call, session: SandboxInstance, target: str, *, paths: list[str] | None = None, keep_current: bool = False
) -> RollbackResponse:
    """Take a machine back."""
    async with call.service.undoing(call.principal, "rollback"):
        return await call.service.engine.checkpoints.rollback(session, target, paths=paths, keep_current=keep_current)


@router.post("/{vm_id}/snapshots", response_model=SnapshotCreated, status_code=201, summary="Take a snapshot")
async def snapshot(vm_id: str, body: SnapshotCreateRequest, call: Executes) -> Response:
    """Files, memory and processes as they are now; the machine goes on."""
    return answer(await take(call, await call.service.session(call.principal, vm_id), body), 201)


@router.post("/{vm_id}/checkpoint", response_model=SnapshotInfo, status_code=201, summary="Take a snapshot (SDK)")
async def checkpoint(vm_id: str, body: KeepRequest, call: Executes) -> Response:
    """As above; the answer is the whole description of the snapshot."""
    session = await call.service.session(call.principal, vm_id)
    async with call.service.undoing(call.principal, "snapshot"):
        taken = await call.service.engine.checkpoints.snapshot(
            session, body.name, keep=body.keep, description=body.description
        )
        return answer(taken, 201)


@router.get("/{vm_id}/snapshots", response_model=SnapshotList, summary="List snapshots")
async def snapshots(vm_id: str, call: Reads) -> Response:
    """Oldest first."""
    session = await call.service.session(call.principal, vm_id)
    return answer(SnapshotList(snapshots=await call.service.snapshots(session)))


@router.delete("/{vm_id}/snapshots/{snapshot_id}", response_model=SnapshotList, summary="Delete a snapshot")
async def delete_snapshot(vm_id: str, snapshot_id: str, call: Executes) -> Response:
    """By its id or its name; the answer lists the others."""
    session = await call.service.session(call.principal, vm_id)
    await call.service.engine.checkpoints.delete(session, snapshot_id)
    return answer(SnapshotList(snapshots=await call.service.snapshots(session)))


@router.post("/{vm_id}/rollback/{snapshot_id}", response_model=RollbackResponse, summary="Roll back to a snapshot")
async def rollback(vm_id: str, snapshot_id: str, call: Executes, body: RollbackV1Request | None = None) -> Response:
    """Files, memory and processes go back; what runs is killed. In place of a snapshot, an execution's id (the state
    before it) or `last-success` may stand."""
    session = await call.service.session(call.principal, vm_id)
    keep = body is not None and body.create_pre_rollback_snapshot
    return answer(await roll_back(call, session, snapshot_id, keep_current=keep))


@router.post("/{vm_id}/rollback", response_model=RollbackResponse, summary="Roll back (SDK)")
async def rollback_to(vm_id: str, body: RollbackRequest, call: Executes) -> Response:
    """The same with everything in the body; `paths` takes only these back."""
    session = await call.service.session(call.principal, vm_id)
    keep = body.create_pre_rollback_snapshot
    return answer(await roll_back(call, session, body.target, paths=body.paths, keep_current=keep))


# --- all machines -----------------------------------------------------------------------------------------------------

history_router = APIRouter(prefix="/api/history", tags=["history"], route_class=AdmittingRoute)


@history_router.get("", response_model=HistoryQueryResponse, summary="What was executed anywhere")
async def history_of_all(call: Reads, asked: Asked, vm_id: Annotated[str | None, Query()] = None) -> Response:
    """Of all machines that the caller may see, newest first; in pages as of one machine."""
    return await long_answer(await query(call, asked.model_copy(update={"vm_id": vm_id})))


@history_router.get("/verify", response_model=HistoryVerification, summary="Check the audit chain")
async def verify(call: ReadsAll, head: Annotated[str | None, Query(max_length=64)] = None) -> Response:
    """Whether nobody has changed the history. For a token that is bound to no agents."""
    return answer(await call.service.engine.history.verify(head))


@history_router.get("/{execution_id}", response_model=HistoryQueryResponse, summary="One execution")
async def one(execution_id: str, call: Reads) -> Response:
    """The entry of one execution, as a list of one."""
    entry = await call.service.engine.history.get(execution_id)
    if entry is None or not call.principal.sees(entry.agent_id):
        raise SessionNotFound(
            f"The history has no execution {execution_id!r:.80}.", remediation="GET /api/history lists what there is."
        )
    return answer(HistoryQueryResponse(history=[entry], total=1))
