"""/api/approvals: questions to people."""

from __future__ import annotations

from fastapi import APIRouter, Response

from emberbox.models import ApprovalResponse
from emberbox.models.service import ApprovalAnswer, ApprovalList, Done
from emberbox.server.admission import AdmittingRoute, Approves, Reads
from emberbox.server.streams import answer

router = APIRouter(prefix="/api/approvals", tags=["approvals"], route_class=AdmittingRoute)


@router.get("", response_model=ApprovalList, summary="Questions that wait")
async def pending(call: Reads) -> Response:
    """About the caller's agents, oldest first. No answer in time counts as no."""
    found = call.service.questions(call.principal)
    return answer(ApprovalList(approvals=found, total=len(found)))


@router.post("/{approval_id}", response_model=Done, summary="Answer a question")
async def respond(approval_id: str, body: ApprovalAnswer, call: Approves) -> Response:
    """Yes or no, and with a yes perhaps other code; that is looked at by the hooks again. The token needs the scope
    `approve`."""
    call.service.desk.answer(
        ApprovalResponse(
            approval_id=approval_id,
            approve=body.approve,
            edited_code=body.edited_code,
            by=call.principal.name,
            reason=body.reason,
        )
    )
    return answer(Done())
