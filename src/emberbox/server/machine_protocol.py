"""The protocol of `/ws/{vm_id}`: one machine, several executions at once, snapshots, questions to people."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from pydantic import ValidationError

from emberbox.errors import ExecutionCancelled, Internal, Unauthorized, ValidationFailed, VmExecutionError
from emberbox.models import (
    ApprovalResponse,
    HistoryQueryRequest,
    Model,
    ParseExecuteRequest,
    Result,
    VmExecuteResponse,
)
from emberbox.sandbox.listeners import Listeners
from emberbox.server import messages
from emberbox.server.auth import Principal
from emberbox.server.error_handlers import ClientDisconnected, of_model, plain
from emberbox.server.parse_execute import parse_execute
from emberbox.server.requests import request_of, status_of_run
from emberbox.server.service import Service
from emberbox.server.streams import dumped
from emberbox.server.tokens import Scope
from emberbox.server.websocket import WebSocketConnection


class MachineProtocol:
    """The protocol of `/ws/{vm_id}`. What is wrong with a message is answered with an Error; the socket stays."""

    def __init__(self, line: WebSocketConnection, service: Service, principal: Principal, vm_id: str) -> None:
        self._line = line
        self._service = service
        self._principal = principal
        self._vm_id = vm_id
        self._history_gate = asyncio.Lock()
        """One page at a time is read for a client that may not take it."""
        self._handlers: dict[str, tuple[Scope | None, Callable[[dict[str, Any]], Awaitable[None]]]] = {
            "LlmExecuteCode": ("execute", self._execute),
            "LlmParseExecute": ("execute", self._parse),
            "CancelExecution": (None, self._cancel),
            "QueryHistory": ("read", self._history),
            "CreateSnapshot": ("execute", self._snapshot),
            "RollbackToSnapshot": ("execute", self._rollback),
            "ApprovalResponse": ("approve", self._approve),
        }
        """With the scope that a token needs, which is looked at before what the message holds."""

    async def run(self) -> None:
        """Until the client leaves, or the machine is not the caller's."""
        await self._service.visible(self._principal, self._vm_id)
        with self._service.asking.attached(self._vm_id, self._asked):
            while True:
                try:
                    raw = await self._line.receive()
                    self._service.admit(self._principal)
                    await self._take(raw)
                except Unauthorized:
                    raise
                except VmExecutionError as error:
                    await self._error(error)

    async def _take(self, raw: Any) -> None:
        try:
            message = messages.Incoming.model_validate(raw)
            found = self._handlers.get(message.message_type)
            if found is None:
                raise ValidationFailed(
                    f"There is no message {message.message_type!r}.", remediation=f"One of {', '.join(self._handlers)}."
                )
            scope, handler = found
            if scope == "read":
                self._principal.require_read()
            elif scope is not None:
                self._principal.require(scope)
            await handler(message.data)
        except ValidationError as exc:
            raise of_model(exc) from exc

    async def _send(self, kind: str, model: Model) -> None:
        data = (await dumped(model)).decode()
        await self._line.send_text(f'{{"message_type":"{kind}","data":{data}}}')

    async def _error(self, error: VmExecutionError, execution_id: str | None = None) -> None:
        told = messages.ErrorMessage(
            code=error.code, message=error.message, remediation=error.remediation, execution_id=execution_id
        )
        await self._send("Error", told)

    def _beside(self, name: str, work: Callable[[], Awaitable[None]], execution_id: str | None = None) -> None:
        """Do it while other messages are taken."""

        async def done() -> None:
            try:
                await work()
            except VmExecutionError as error:
                await self._error(error, execution_id)

        self._line.start(name, done())

    # --- executions -----------------------------------------------------------------------------------------------

    async def _execute(self, data: dict[str, Any]) -> None:
        wanted = messages.ExecuteCode.model_validate(data)
        name = wanted.execution_id or f"ws-{secrets.token_hex(8)}"
        self._line.start(name, self._executed(name, wanted))

    async def _executed(self, name: str, wanted: messages.ExecuteCode) -> None:
        try:
            session = await self._service.lease(self._principal, wanted.agent_id, self._vm_id)
            request = request_of(
                session,
                language=wanted.language,
                code=wanted.code,
                agent_id=session.agent_id,
                timeout=wanted.timeout_seconds,
                requirements=wanted.requirements,
                metadata=wanted.metadata,
            )
            run = await self._service.execute(self._principal, request, self._heard(name))
        except ExecutionCancelled:
            await self._cancelled(name)
        except VmExecutionError as error:
            await self._refused(name, error)
        except asyncio.CancelledError:
            await self._cancelled(name)
            raise
        except ClientDisconnected:
            raise
        except Exception as exc:
            log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox")
            log.exception("unexpected error")
            await self._refused(name, Internal(f"{type(exc).__name__} in the server."))
        else:
            await self._completed(name, VmExecuteResponse.of(run), status_of_run(run))

    async def _refused(self, name: str, error: VmExecutionError, block: int | None = None) -> None:
        told = messages.ExecutionComplete(execution_id=name, status="refused", error=plain(error), block=block)
        await self._send("LlmExecutionComplete", told)

    async def _cancelled(self, name: str) -> None:
        if not self._line.gone:
            await self._send("LlmExecutionComplete", messages.ExecutionComplete(execution_id=name, status="cancelled"))

    async def _completed(self, name: str, response: VmExecuteResponse, status: Any, block: int | None = None) -> None:
        told = messages.ExecutionComplete(
            execution_id=name,
            status=status,
            exit_code=response.exit_code,
            duration_ms=response.duration_ms,
            history_id=response.execution_id,
            response=response,
            block=block,
        )
        await self._send("LlmExecutionComplete", told)

    def _heard(self, name: str) -> Listeners:
        """Output as messages."""

        async def text(stream: Any, content: str) -> None:
            told = messages.ExecutionOutput(execution_id=name, stream=stream, content=content)
            await self._send("LlmExecutionOutput", told)

        async def result(found: Result) -> None:
            told = messages.ExecutionOutput(execution_id=name, stream="result", content=found.text or "", result=found)
            await self._send("LlmExecutionOutput", told)

        return Listeners(lambda content: text("stdout", content), lambda content: text("stderr", content), result)

    async def _parse(self, data: dict[str, Any]) -> None:
        wanted = messages.ParseExecute.model_validate(data)
        name = wanted.execution_id or f"ws-{secrets.token_hex(8)}"
        self._line.start(name, self._parsed(name, wanted))

    async def _parsed(self, name: str, wanted: messages.ParseExecute) -> None:
        conversation = self

        class Told:
            """Each block has the name of the whole with its number."""

            async def block_begins(self, index: int, block: object) -> Listeners:
                del block
                return conversation._heard(f"{name}:{index}")

            async def block_ran(self, index: int, execution: Any) -> None:
                response, status = VmExecuteResponse.of(execution), status_of_run(execution)
                await conversation._completed(f"{name}:{index}", response, status, index)

            async def block_refused(self, index: int, error: VmExecutionError) -> None:
                await conversation._refused(f"{name}:{index}", error, index)

        body = ParseExecuteRequest(
            llm_response=wanted.llm_response,
            auto_execute=wanted.auto_execute,
            auto_execute_threshold=wanted.auto_execute_threshold,
        )
        try:
            found = await parse_execute(
                self._service, self._principal, body, wanted.agent_id, Told(), vm_id=self._vm_id
            )
        except VmExecutionError as error:
            await self._error(error, name)
        except asyncio.CancelledError:
            if not self._line.gone:
                await self._send("LlmParseComplete", messages.ParseComplete(execution_id=name, status="cancelled"))
            raise
        else:
            told = messages.ParseComplete(
                execution_id=name, status="completed", code_blocks=found.code_blocks, errors=found.errors
            )
            await self._send("LlmParseComplete", told)

    async def _cancel(self, data: dict[str, Any]) -> None:
        wanted = messages.Cancel.model_validate(data)
        if not self._line.cancel(wanted.execution_id):
            raise ValidationFailed(
                f"Nothing called {wanted.execution_id!r:.80} is under way on this socket.",
                remediation="It may have ended.",
            )

    # --- the rest -------------------------------------------------------------------------------------------------

    async def _history(self, data: dict[str, Any]) -> None:
        wanted = messages.QueryHistory.model_validate(data)
        self._principal.require_read()
        request = HistoryQueryRequest(
            vm_id=self._vm_id,
            agent_id=wanted.agent_id,
            limit=wanted.limit,
            failures_only=wanted.failures_only,
            before=wanted.before,
        )

        async def work() -> None:
            async with self._history_gate:
                found = await self._service.history(request)
                told = messages.HistoryResponse(history=found.history, total=found.total, next=found.next)
                await self._send("HistoryResponse", told)

        self._beside(f"history-{secrets.token_hex(4)}", work)

    async def _snapshot(self, data: dict[str, Any]) -> None:
        wanted = messages.CreateSnapshot.model_validate(data)

        async def work() -> None:
            async with self._service.undoing(self._principal, "snapshot"):
                session = await self._service.lease(self._principal, wanted.agent_id, self._vm_id)
                info = await self._service.engine.checkpoints.snapshot(session, wanted.name)
            await self._send("SnapshotCreated", messages.SnapshotMade(snapshot_id=info.snapshot_id, name=info.name))

        self._beside(f"snapshot-{secrets.token_hex(4)}", work)

    async def _rollback(self, data: dict[str, Any]) -> None:
        wanted = messages.RollbackToSnapshot.model_validate(data)

        async def work() -> None:
            async with self._service.undoing(self._principal, "rollback"):
                session = await self._service.lease(self._principal, wanted.agent_id, self._vm_id)
                done = await self._service.engine.checkpoints.rollback(
                    session, wanted.snapshot_id, keep_current=wanted.create_pre_rollback_snapshot
                )
            told = messages.RollbackComplete(
                snapshot_id=done.snapshot_id,
                pre_rollback_snapshot_id=done.pre_rollback_snapshot_id,
                message=done.message,
            )
            await self._send("RollbackComplete", told)

        self._beside(f"rollback-{secrets.token_hex(4)}", work)

    async def _approve(self, data: dict[str, Any]) -> None:
        wanted = messages.ApprovalAnswered.model_validate(data)
        self._service.may_answer(self._principal, wanted.approval_id)
        self._service.desk.answer(
            ApprovalResponse(
                approval_id=wanted.approval_id,
                approve=wanted.approve,
                edited_code=wanted.edited_code,
                by=self._principal.name,
                reason=wanted.reason,
            )
        )

    def _asked(self, question: Any) -> None:
        """A person is asked about something in this sandbox: any attached client may answer, if its token says so."""
        if "approve" in self._principal.scopes or "admin" in self._principal.scopes:
            name = f"question-{question.approval_id}"
            self._line.tell(name, self._send("ApprovalRequest", question))
