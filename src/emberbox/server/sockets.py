"""The WebSockets: `/ws` for workflows, `/ws/{vm_id}` for one machine (docs/api.md has both protocols)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.websockets import WebSocket

from emberbox.errors import ExecutionCancelled, TooManyRequests, Unauthorized, ValidationFailed, VmExecutionError
from emberbox.models import VmExecuteResponse
from emberbox.sandbox.listeners import Listeners
from emberbox.server import messages
from emberbox.server.auth import Principal
from emberbox.server.error_handlers import ClientDisconnected, of_model, plain
from emberbox.server.machine_protocol import MachineProtocol
from emberbox.server.memory import caller_of
from emberbox.server.request_guard import POLICY_VIOLATION, UNAUTHORIZED
from emberbox.server.requests import request_of, status_of_run
from emberbox.server.service import Service
from emberbox.server.websocket import GOING_AWAY, TRY_AGAIN_LATER, WebSocketConnection

router = APIRouter()
_LOOK_SECONDS = 5.0


async def serve(socket: WebSocket, talk: Callable[[WebSocketConnection, Service, Principal], Awaitable[None]]) -> None:
    """One socket from its opening to its end."""
    service: Service = socket.app.state.service
    principal: Principal = socket.state.principal
    await socket.accept()
    seconds, caller = service.config.slow_reader_seconds, caller_of(socket.scope)
    line = WebSocketConnection(socket, seconds, service.incoming, service.unread, caller)
    code, reason = GOING_AWAY, "the server ends the connection"
    try:
        with service.streams.one(principal.id, service.config.max_sockets), service.metrics.sockets.track_inprogress():
            async with line:
                line.tell("watch", _watch(line, service, principal))
                await talk(line, service, principal)
    except ClientDisconnected:
        pass
    except TooManyRequests as error:
        code, reason = TRY_AGAIN_LATER, error.message
    except Unauthorized as error:
        code, reason = UNAUTHORIZED, error.message
    except VmExecutionError as error:
        code, reason = POLICY_VIOLATION, error.message
    finally:
        await line.close(code, reason[:100])


async def _watch(line: WebSocketConnection, service: Service, principal: Principal) -> None:
    """A token that is revoked or expires counts no more, here neither."""
    while service.authenticator.counts(principal):  # noqa: ASYNC110 (a file tells, and no event)
        await asyncio.sleep(_LOOK_SECONDS)
    line.leave()


# --- /ws/{vm_id} ------------------------------------------------------------------------------------------------------


@router.websocket("/ws/{vm_id}")
async def machine(socket: WebSocket, vm_id: str) -> None:
    """One machine of the caller's."""
    await serve(socket, lambda line, service, principal: MachineProtocol(line, service, principal, vm_id).run())


# --- /ws --------------------------------------------------------------------------------------------------------------


@router.websocket("/ws")
async def workflow(socket: WebSocket) -> None:
    """Executions in the agent's own machine."""
    await serve(socket, lambda line, service, principal: Workflow(line, service, principal).run())


class Workflow:
    """The protocol of `/ws`."""

    def __init__(self, line: WebSocketConnection, service: Service, principal: Principal) -> None:
        self._line = line
        self._service = service
        self._principal = principal

    async def run(self) -> None:
        """Until the client leaves."""
        while True:
            command = messages.WorkflowCommand(command_type="")
            try:
                raw = await self._line.receive()
                self._service.admit(self._principal)
                command = _workflow(raw)
                await self._take(command)
            except Unauthorized:
                raise
            except VmExecutionError as error:
                await self._send(command, "error", plain(error))

    async def _take(self, command: messages.WorkflowCommand) -> None:
        if command.command_type == "cancel_execution":
            name = command.workflow_id or command.session_id or ""
            if not self._line.cancel(name):
                raise ValidationFailed(f"No execution of workflow {name!r:.80} is under way.", remediation="It ended.")
            return
        if command.command_type != "execute_code":
            raise ValidationFailed(
                f"There is no command {command.command_type!r}.", remediation="execute_code or cancel_execution."
            )
        self._principal.require("execute")
        try:
            wanted = messages.WorkflowCode.model_validate(command.data)
        except ValidationError as exc:
            raise of_model(exc) from exc
        name = command.workflow_id or command.session_id or secrets.token_hex(8)
        self._line.start(name, self._executed(command, wanted))

    async def _send(self, command: messages.WorkflowCommand, kind: str, data: Any) -> None:
        await self._line.send(
            {
                "response_type": kind,
                "session_id": command.session_id,
                "workflow_id": command.workflow_id,
                "data": data,
            }
        )

    async def _executed(self, command: messages.WorkflowCommand, wanted: messages.WorkflowCode) -> None:
        async def text(stream: str, content: str) -> None:
            await self._send(command, "execution_output", {stream: content})

        heard = Listeners(lambda content: text("stdout", content), lambda content: text("stderr", content))
        try:
            session = await self._service.lease(self._principal, wanted.agent_id, None)
            request = request_of(
                session,
                language=wanted.language,
                code=wanted.code,
                agent_id=session.agent_id,
                timeout=wanted.timeout_seconds,
            )
            run = await self._service.execute(self._principal, request, heard)
        except ExecutionCancelled:
            await self._send(command, "execution_complete", {"status": "cancelled"})
        except VmExecutionError as error:
            await self._send(command, "error", plain(error))
        except asyncio.CancelledError:
            if not self._line.gone:
                await self._send(command, "execution_complete", {"status": "cancelled"})
            raise
        else:
            response = VmExecuteResponse.of(run).model_dump(mode="json")
            await self._send(command, "execution_complete", {"status": status_of_run(run), **response})


def _workflow(raw: Any) -> messages.WorkflowCommand:
    try:
        return messages.WorkflowCommand.model_validate(raw)
    except ValidationError as exc:
        raise of_model(exc) from exc
