"""Who is told of a question to a person: those who are attached to the machine that it is about."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator

import structlog

from emberbox.models import ApprovalRequest

Told = Callable[[ApprovalRequest], None]


class ApprovalSubscribers:
    """The attached, by machine."""

    def __init__(self) -> None:
        self._attached: dict[str, list[Told]] = defaultdict(list)

    @contextlib.contextmanager
    def attached(self, vm_id: str, told: Told) -> Iterator[None]:
        """Be told of questions about this machine meanwhile."""
        self._attached[vm_id].append(told)
        try:
            yield
        finally:
            self._attached[vm_id].remove(told)
            if not self._attached[vm_id]:
                del self._attached[vm_id]

    def asked(self, question: ApprovalRequest) -> None:
        """A question waits on the desk."""
        for told in list(self._attached.get(question.vm_id or "", ())):
            try:
                told(question)
            except Exception:  # one that cannot be told does not keep the others from it
                log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox")
                log.exception("a question could not be told")
