"""/api/llm: code, and answers of language models."""

from __future__ import annotations

from fastapi import APIRouter, Response

from emberbox.models import ParseExecuteRequest, ParseExecuteResponse, VmExecuteRequest, VmExecuteResponse
from emberbox.models.service import PoolConfig, VmPoolResponse
from emberbox.sandbox.listeners import Listeners
from emberbox.server.admission import AdmittingRoute, Executes, Reads
from emberbox.server.dependencies import SSE, Call, Stream
from emberbox.server.parse_execute import SameListeners, parse_execute
from emberbox.server.requests import request_of
from emberbox.server.streams import answer

router = APIRouter(prefix="/api/llm", tags=["llm"], route_class=AdmittingRoute)


@router.post("/execute", response_model=VmExecuteResponse, responses={200: SSE}, summary="Run code")
async def execute(body: VmExecuteRequest, call: Executes, stream: Stream = False) -> Response:
    """Runs code in the machine that is named, or in the agent's own, which is made where there is none: variables,
    files and processes stay for the next call. Code that fails is no error of the request: look at `exit_code` and
    `error`."""
    if stream:
        return call.stream(lambda outbox: _execute(call, body, outbox.listeners()))
    return await call.run(body, lambda: _execute(call, body, Listeners()))


async def _execute(call: Call, body: VmExecuteRequest, listeners: Listeners) -> VmExecuteResponse:
    session = await call.service.lease(call.principal, _named(body, body.agent_id), body.vm_id)
    request = request_of(
        session,
        language=body.language,
        code=body.code,
        agent_id=session.agent_id,
        timeout=body.timeout_seconds,
        cwd=body.working_dir,
        requirements=body.requirements,
        metadata=body.metadata,
    )
    return VmExecuteResponse.of(await call.service.execute(call.principal, request, listeners))


def _named(body: VmExecuteRequest | ParseExecuteRequest, agent_id: str) -> str | None:
    """The agent that the request names; None where it names none, and the model's default stands there."""
    return agent_id if "agent_id" in body.model_fields_set else None


@router.post(
    "/parse-execute", response_model=ParseExecuteResponse, responses={200: SSE}, summary="Run what an answer wants run"
)
async def parse(body: ParseExecuteRequest, call: Executes, stream: Stream = False) -> Response:
    """Finds the code in a model's answer and runs what is meant to run, in the order of the text, in the agent's own
    machine. `auto_execute: false` only finds it."""
    if stream:
        return call.stream(lambda outbox: _parse(call, body, outbox.listeners()))
    return await call.run(body, lambda: _parse(call, body, Listeners()))


async def _parse(call: Call, body: ParseExecuteRequest, listeners: Listeners) -> ParseExecuteResponse:
    agent = _named(body, body.agent_id)
    return await parse_execute(call.service, call.principal, body, agent, SameListeners(listeners))


@router.get("/vm-pool/{agent_id}", response_model=VmPoolResponse, summary="Machines of an agent")
async def pool(agent_id: str, call: Reads) -> Response:
    """Those that wait for code, and those in which some runs."""
    agent_id = call.principal.agent(agent_id)
    settings = call.service.settings
    config = settings.vm_execution
    mine = [vm for vm in await call.service.instances(call.principal) if vm.agent_id == agent_id]
    return answer(
        VmPoolResponse(
            agent_id=agent_id,
            available_vms=[vm for vm in mine if vm.status != "running"],
            in_use_vms=[vm for vm in mine if vm.status == "running"],
            pool_config=PoolConfig(
                vm_pool_size=config.vm_pool_size,
                default_vm_type=config.default_vm_type,
                auto_provision=config.auto_provision,
                max_sandboxes_per_agent=settings.max_sandboxes_per_agent,
            ),
        )
    )
