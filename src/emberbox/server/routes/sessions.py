"""/sessions: machines under a name, with a shell that stays."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from emberbox.errors import Conflict
from emberbox.models import MachineLimits, RollbackResponse
from emberbox.models.service import (
    NAME,
    SessionCommand,
    SessionCreateRequest,
    SessionInfo,
    SessionList,
    SessionOutput,
    SessionRollbackRequest,
    SessionSnapshotRequest,
    SnapshotCreated,
    SnapshotCreateRequest,
)
from emberbox.sandbox.durability.registry import SandboxRecord
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import Listeners
from emberbox.server import bounds
from emberbox.server.admission import AdmittingRoute, Executes, Reads, session_id, session_ids
from emberbox.server.dependencies import Call
from emberbox.server.requests import request_of
from emberbox.server.routes.vms import roll_back, take
from emberbox.server.service import SESSION_KEY
from emberbox.server.streams import answer

router = APIRouter(prefix="/sessions", tags=["sessions"], route_class=AdmittingRoute)
Name = Annotated[str, Path(pattern=NAME)]
Agent = Annotated[str | None, Query(description="whose session, where several agents have one of this name")]


@router.post("", response_model=SessionInfo, status_code=201, summary="Begin a session")
async def create(body: SessionCreateRequest, call: Executes) -> Response:
    """A machine under a name that is the agent's own. It stays until it is closed; unused, it is suspended."""
    service = call.service
    agent_id = call.principal.agent(body.agent_id)
    with service.accepted(call.principal), service.naming(agent_id, body.name), service.waiting():
        if await session_ids(call, body.name, agent_id):
            raise Conflict(f"Agent {agent_id!r:.80} has a session {body.name!r} already.")
        session = await service.engine.create_sandbox(
            await service.template(body.vm_type),
            limits=MachineLimits(**body.model_dump(include={"memory_mb", "vcpus"}, exclude_none=True)),
            most=call.principal.limits,
            metadata={SESSION_KEY: body.name},
            agent_id=agent_id,
            timeout=bounds.life(service.config, None),
            idle_seconds=service.settings.session_idle_seconds,
        )
    return answer(await _info(call, body.name, session), 201)


@router.get("", response_model=SessionList, summary="List sessions")
async def list_all(call: Reads) -> Response:
    """All that the caller may see; those that were suspended are listed as paused, and not woken."""
    engine, sees = call.service.engine, call.principal.sees
    sessions = [one for one in await engine.list_sandboxes() if sees(one.agent_id)]
    infos = [await _info(call, one.metadata[SESSION_KEY], one) for one in sessions if SESSION_KEY in one.metadata]
    known = {info.vm_id for info in infos}
    suspended = [one for one in await engine.list_suspended() if sees(one.agent_id) and one.sandbox_id not in known]
    infos += [_suspended(one) for one in suspended if SESSION_KEY in one.metadata]
    infos.sort(key=lambda info: (info.name, info.agent_id))
    return answer(SessionList(sessions=infos, total=len(infos)))


@router.post("/{name}/execute", response_model=SessionOutput, summary="Run a command in the session's shell")
async def execute(name: Name, body: SessionCommand, call: Executes, agent_id: Agent = None) -> Response:
    """Bash: the working directory and variables stay for the next one. Policy and history are those of all code."""
    return await call.run(body, lambda: _execute(call, name, agent_id, body))


async def _execute(call: Call, name: str, agent_id: str | None, body: SessionCommand) -> SessionOutput:
    session = await _find(call, name, agent_id)
    request = request_of(
        session, language="bash", code=body.command, agent_id=session.agent_id, timeout=body.timeout_seconds
    )
    run = await call.service.execute(call.principal, request, Listeners())
    return SessionOutput(
        stdout=run.stdout,
        stderr=run.stderr,
        output=run.stdout + run.stderr,
        exit_code=run.exit_code,
        execution_id=run.execution_id,
    )


@router.post("/{name}/snapshots", response_model=SnapshotCreated, status_code=201, summary="Take a snapshot")
async def snapshot(name: Name, body: SessionSnapshotRequest, call: Executes, agent_id: Agent = None) -> Response:
    """Of files, memory and processes."""
    session = await _find(call, name, agent_id)
    return answer(await take(call, session, SnapshotCreateRequest(name=body.name)), 201)


@router.post("/{name}/rollback", response_model=RollbackResponse, summary="Roll back to a snapshot")
async def rollback(name: Name, body: SessionRollbackRequest, call: Executes, agent_id: Agent = None) -> Response:
    """Everything goes back; what runs is killed."""
    session = await _find(call, name, agent_id)
    keep = body.create_pre_rollback_snapshot
    return answer(await roll_back(call, session, body.snapshot_id, keep_current=keep))


@router.get("/{name}/info", response_model=SessionInfo, summary="Look at a session")
async def info(name: Name, call: Reads, agent_id: Agent = None) -> Response:
    """As it is now."""
    return answer(await _info(call, name, await _find(call, name, agent_id)))


@router.delete("/{name}", response_model=SessionInfo, summary="Close a session")
async def close(name: Name, call: Executes, agent_id: Agent = None) -> Response:
    """Its machine ends, with everything in it."""
    session = await _find(call, name, agent_id)
    told = await _info(call, name, session)
    await call.service.end(session.id)
    return answer(told.model_copy(update={"status": "stopped"}))


def _suspended(record: SandboxRecord) -> SessionInfo:
    return SessionInfo(
        name=record.metadata[SESSION_KEY],
        vm_id=record.sandbox_id,
        vm_type=record.template.name,
        agent_id=record.agent_id,
        status="paused",
        memory_mb=record.limits.memory_mb,
        vcpus=record.limits.vcpus,
        created_at=record.started_at,
        last_activity=record.started_at,
    )


async def _find(call: Call, name: str, agent_id: str | None) -> SandboxInstance:
    return await call.service.session(call.principal, await session_id(call, name, agent_id))


async def _info(call: Call, name: str, session: SandboxInstance) -> SessionInfo:
    vm = call.service.instance(session)
    return SessionInfo(
        name=name,
        vm_id=session.id,
        vm_type=vm.vm_type,
        agent_id=session.agent_id,
        status=vm.status,
        memory_mb=session.limits.memory_mb,
        vcpus=session.limits.vcpus,
        created_at=vm.created_at,
        last_activity=vm.last_activity,
        snapshots=len(await call.service.snapshots(session)),
    )
