"""/api/vms/{id}/…: what the SDK does with a machine beyond its snapshots."""

from __future__ import annotations

import asyncio
import base64
import binascii

from fastapi import APIRouter, Response

from emberbox.engine import ExecuteRequest
from emberbox.errors import ForkFailed, ValidationFailed
from emberbox.models import ContextInfo, Execution, SandboxInfo, SandboxMetrics
from emberbox.models.base import RESERVED
from emberbox.models.service import (
    ContextCreateRequest,
    ContextList,
    DiffRequest,
    DiffResponse,
    FollowedEvent,
    ForkRequest,
    ForkResponse,
    InterruptRequest,
    InterruptResponse,
    PointRequest,
    RunCodeRequest,
    TimeoutRequest,
    VmInstance,
)
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import Listeners, RunOptions
from emberbox.server import bounds
from emberbox.server.admission import AdmittingRoute, Executes, Reads
from emberbox.server.dependencies import SSE, Call, Stream
from emberbox.server.streams import Outbox, answer, long_answer

_LOOK_SECONDS = 5.0
"""After so long without an event: is the machine still there?"""
router = APIRouter(prefix="/api/vms/{vm_id}", tags=["sandbox SDK"], route_class=AdmittingRoute)


def decoded(text: str, name: str) -> bytes:
    """Bytes from base64; raises ValidationFailed."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ValidationFailed(f"{name}: not base64.", remediation="Encode the bytes with base64.") from exc


async def used(call: Call, vm_id: str) -> SandboxInstance:
    """The machine; one that was suspended is woken."""
    return await call.service.session(call.principal, vm_id)


# --- code -------------------------------------------------------------------------------------------------------------


@router.post("/run", response_model=Execution, responses={200: SSE}, summary="Run code (SDK)")
async def run(vm_id: str, body: RunCodeRequest, call: Executes, stream: Stream = False) -> Response:
    """As `Sandbox.run_code`."""
    if stream:
        return call.stream(lambda outbox: _run(call, vm_id, body, outbox.listeners()))
    return await call.run(body, lambda: _run(call, vm_id, body, Listeners()))


async def _run(call: Call, vm_id: str, body: RunCodeRequest, listeners: Listeners) -> Execution:
    session = await call.service.session(call.principal, vm_id)
    options = RunOptions(
        context=body.context_id,
        cwd=body.cwd,
        env=body.envs,
        args=body.args,
        stdin=decoded(body.stdin, "stdin"),
        timeout=body.timeout_seconds,
    )
    request = ExecuteRequest(session, body.language, body.code, options, body.requirements)
    return await call.service.execute(call.principal, request, listeners)


@router.post("/contexts", response_model=ContextInfo, status_code=201, summary="Make a context")
async def create_context(vm_id: str, body: ContextCreateRequest, call: Executes) -> Response:
    """An interpreter beside the others, with variables of its own."""
    session = await used(call, vm_id)
    language = call.service.engine.runnable_language(body.language, session)
    return answer(await session.contexts.create(language, body.cwd, body.envs), 201)


@router.get("/contexts", response_model=ContextList, summary="List contexts")
async def list_contexts(vm_id: str, call: Reads) -> Response:
    """Interpreters that live."""
    session = await call.service.session(call.principal, vm_id)
    return answer(ContextList(contexts=await session.contexts.list()))


@router.post("/contexts/{context_id}/restart", response_model=ContextList, summary="Restart a context")
async def restart_context(vm_id: str, context_id: str, call: Executes) -> Response:
    """Its variables are gone; files stay."""
    session = await used(call, vm_id)
    await session.contexts.restart(context_id)
    return answer(ContextList(contexts=await session.contexts.list()))


@router.delete("/contexts/{context_id}", response_model=ContextList, summary="Remove a context")
async def remove_context(vm_id: str, context_id: str, call: Executes) -> Response:
    """It ends, with what it runs."""
    session = await used(call, vm_id)
    await session.contexts.remove(context_id)
    return answer(ContextList(contexts=await session.contexts.list()))


@router.post("/interrupt", response_model=InterruptResponse, summary="Interrupt code")
async def interrupt(vm_id: str, body: InterruptRequest, call: Executes) -> Response:
    """As Ctrl-C would, in one context or in all."""
    session = await used(call, vm_id)
    return answer(InterruptResponse(reached=await session.runner.interrupt(body.context_id)))


@router.get("/events", response_model=FollowedEvent, responses={200: SSE}, summary="Follow a machine")
async def events(vm_id: str, call: Reads) -> Response:
    """What all executions in it print from now on, as events `followed`; until the caller leaves or the machine ends.
    One who reads too slowly misses something, and is told how much."""
    return call.stream(lambda outbox: _follow(call, vm_id, outbox))


async def _follow(call: Call, vm_id: str, outbox: Outbox) -> FollowedEvent:
    follower = call.service.followers.watch(vm_id)
    try:
        while True:
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    event = await follower.next()
            except TimeoutError:
                if await call.service.engine.agent_of(vm_id) is None:
                    return FollowedEvent(kind="closed")
                continue
            await outbox.put("followed", event)
            if event.kind == "closed":
                return event
    finally:
        call.service.followers.leave(vm_id, follower)


# --- copies -----------------------------------------------------------------------------------------------------------


@router.post("/fork", response_model=ForkResponse, status_code=201, summary="Fork a machine")
async def fork(vm_id: str, body: ForkRequest, call: Executes) -> Response:
    """New machines that go on from this moment, each on its own. All of them, or none."""
    session = await used(call, vm_id)
    async with call.service.undoing(call.principal, "fork"):
        try:
            options = call.service.copying(session, bounds.named_life(call.service.config, body.timeout_seconds))
            made = await call.service.engine.checkpoints.fork(session, body.count, options=options)
        except ForkFailed as exc:
            for child in exc.children:
                await child.kill()
            exc.children = []
            raise
    return answer(ForkResponse(vms=[call.service.instance(child) for child in made]), 201)


@router.post("/branch", response_model=VmInstance, status_code=201, summary="Branch off")
async def branch(vm_id: str, body: PointRequest, call: Executes) -> Response:
    """A new machine that goes on from a point of this one, which is not touched."""
    session = await used(call, vm_id)
    async with call.service.undoing(call.principal, "branch"):
        options = call.service.copying(session, bounds.named_life(call.service.config, body.timeout_seconds))
        made = await call.service.engine.checkpoints.branch(session, body.point, options=options)
    return answer(call.service.instance(made), 201)


@router.post("/diff", response_model=DiffResponse, summary="Files that differ")
async def diff(vm_id: str, body: DiffRequest, call: Executes) -> Response:
    """Between two points, or a point and now; text files with their lines."""
    session = await used(call, vm_id)
    async with call.service.undoing(call.principal, "diff"):
        files = await call.service.engine.checkpoints.diff(session, body.before, body.after)
        return await long_answer(DiffResponse(files=files))


# --- life -------------------------------------------------------------------------------------------------------------


def info_of(session: SandboxInstance) -> SandboxInfo:
    """A machine as the SDK shows it, without the server's own words."""
    info = session.info()
    info.metadata = {key: value for key, value in info.metadata.items() if not key.startswith(RESERVED)}
    return info


@router.get("/info", response_model=SandboxInfo, summary="Look at a machine (SDK)")
async def info(vm_id: str, call: Reads) -> Response:
    """As `Sandbox.get_info`; one that was suspended is woken."""
    return answer(info_of(await call.service.session(call.principal, vm_id)))


@router.get("/metrics", response_model=SandboxMetrics, summary="What a machine uses")
async def metrics(vm_id: str, call: Reads) -> Response:
    """Memory, CPU, disk and processes of now."""
    session = await call.service.session(call.principal, vm_id)
    return answer(await session.metrics())


@router.post("/pause", response_model=SandboxInfo, summary="Pause a machine")
async def pause(vm_id: str, call: Executes) -> Response:
    """Everything in it stops; its memory stays."""
    session = await used(call, vm_id)
    await session.pause()
    return answer(info_of(session))


@router.post("/resume", response_model=SandboxInfo, summary="Let a machine go on")
async def resume(vm_id: str, call: Executes) -> Response:
    """After a pause; harmless when it runs."""
    session = await used(call, vm_id)
    await session.resume()
    return answer(info_of(session))


@router.post("/timeout", response_model=SandboxInfo, summary="When a machine is killed")
async def timeout(vm_id: str, body: TimeoutRequest, call: Executes) -> Response:
    """So many seconds from now, or never."""
    session = await used(call, vm_id)
    session.set_timeout(bounds.named_life(call.service.config, body.seconds, "seconds"))
    return answer(info_of(session))
