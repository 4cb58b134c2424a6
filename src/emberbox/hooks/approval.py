"""Asking a person: an approver takes a question and gives an answer, in whatever way it reaches the person."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from emberbox.errors import NoCapacity, ValidationFailed
from emberbox.models import ApprovalRequest, ApprovalResponse

Approver = Callable[[ApprovalRequest], ApprovalResponse | bool | Awaitable[ApprovalResponse | bool]]
"""A function or coroutine function. True and False are answers without more words."""


class ApprovalDesk:
    """An approver for programs whose users are elsewhere: questions wait here until somebody answers them by id.

    Args:
        most: questions that may wait at once.
        on_request: told of each new question, such as to send it to a browser; must not block.
    """

    def __init__(self, most: int = 1000, on_request: Callable[[ApprovalRequest], None] | None = None) -> None:
        self._most = most
        self._on_request = on_request
        self._waiting: dict[str, tuple[ApprovalRequest, asyncio.Future[ApprovalResponse]]] = {}

    async def __call__(self, request: ApprovalRequest) -> ApprovalResponse:
        """Wait for the answer. The caller sets the deadline, and takes the question away by cancelling.

        Raises:
            NoCapacity: too many questions wait already.
        """
        if len(self._waiting) >= self._most:
            raise NoCapacity(f"{self._most} questions wait already.", remediation="Answer some of them first.")
        answer: asyncio.Future[ApprovalResponse] = asyncio.get_running_loop().create_future()
        self._waiting[request.approval_id] = (request, answer)
        try:
            if self._on_request is not None:
                self._on_request(request)
            return await answer
        finally:
            del self._waiting[request.approval_id]

    def pending(self, agent_id: str | None = None) -> list[ApprovalRequest]:
        """Questions that wait, oldest first; those of one agent, or all."""
        return [request for request, _ in self._waiting.values() if agent_id in (None, request.agent_id)]

    def answer(self, response: ApprovalResponse) -> None:
        """Answer a question.

        Raises:
            ValidationFailed: no such question waits: it has expired, was answered, or never was.
        """
        _, answer = self._waiting.get(response.approval_id, (None, None))
        if answer is None or answer.done():
            raise ValidationFailed(
                f"No question {response.approval_id!r:.80} waits for an answer.",
                remediation="It may have expired or been answered; pending() shows what waits.",
            )
        answer.set_result(response)
