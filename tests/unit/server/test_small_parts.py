"""Metrics, examples, questions, and what the service keeps of its machines."""

from __future__ import annotations

import asyncio
import gc
import weakref
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import TypeAdapter

import emberbox.models
import emberbox.models.service
from emberbox.config import Settings
from emberbox.engine import Engine
from emberbox.errors import Conflict, Forbidden, ValidationFailed, VmNotAvailable
from emberbox.hooks.approval import ApprovalDesk
from emberbox.models import ApprovalRequest, ApprovalResponse, CommandHistoryEntry, TerminationReason
from emberbox.server.approvals import ApprovalSubscribers
from emberbox.server.auth import Authenticator
from emberbox.server.dependencies import Call
from emberbox.server.examples import EXAMPLES, add_examples
from emberbox.server.memory import IncomingBudget, UnreadAnswers
from emberbox.server.metrics import Metrics, gauge, outcome_of
from emberbox.server.service import Service, checked_metadata
from emberbox.server.tokens import TokenStore

# --- metrics ----------------------------------------------------------------------------------------------------------


def entry(**changes: Any) -> CommandHistoryEntry:
    fields: dict[str, Any] = {
        "id": "ex-1", "execution_id": "ex-1", "vm_id": "a", "agent_id": "ada", "command": "1", "language": "python",
        "state": "finished", "success": True, "exit_code": 0, "executed_at": datetime.now(UTC), "duration_ms": 5.0,
    }  # fmt: skip
    return CommandHistoryEntry(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "success"), ({"success": False}, "failure"), ({"state": "refused", "success": False}, "refused"),
        ({"success": False, "termination_reason": TerminationReason.TIMEOUT}, "timeout"),
        ({"success": False, "termination_reason": TerminationReason.COMPLETED}, "failure"),
        ({"state": "unknown", "success": False}, "unknown"),
    ],
)  # fmt: skip
async def test_an_execution_is_counted_by_how_it_ended(changes: dict[str, Any], outcome: str) -> None:
    metrics, one = Metrics(), entry(**changes)
    assert outcome_of(one) == outcome
    await metrics.record(one)
    assert f'emberbox_executions_total{{language="python",outcome="{outcome}"}} 1.0' in metrics.text().decode()


async def test_what_has_only_begun_and_what_is_no_execution_is_not_counted() -> None:
    metrics = Metrics()
    for one in (entry(state="started"), entry(language="prompt"), entry(language="response")):
        await metrics.record(one)
    assert "emberbox_executions_total{" not in metrics.text().decode()


def test_figures_of_nothing_and_odd_labels_are_figures() -> None:
    metrics = Metrics()
    metrics.watch(lambda: [gauge("emberbox_none", "x", []), gauge("emberbox_one", "x", [({"a": '"\n\\'}, 1)])])
    assert 'emberbox_one{a="\\"\\n\\\\"} 1.0' in metrics.text().decode()
    assert metrics.text() == metrics.text() or b"process_" in metrics.text()


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_what_it_is_an_example_of(name: str) -> None:
    model = getattr(emberbox.models.service, name, None) or getattr(emberbox.models, name)
    TypeAdapter(model).validate_python(EXAMPLES[name])


def test_examples_are_added_where_there_is_a_schema() -> None:
    schema: dict[str, Any] = {"components": {"schemas": {"CommandRequest": {}, "Other": {}}}}
    add_examples(schema)
    assert schema["components"]["schemas"] == {
        "CommandRequest": {"examples": [EXAMPLES["CommandRequest"]]},
        "Other": {},
    }


# --- questions --------------------------------------------------------------------------------------------------------


def question(vm_id: str | None = "a") -> ApprovalRequest:
    later = datetime.now(UTC) + timedelta(minutes=5)
    return ApprovalRequest(
        approval_id="ap-1", prompt="?", code="x", stage="pre_tool", hook="h", vm_id=vm_id, expires_at=later
    )


def test_who_is_attached_is_told_and_nobody_else() -> None:
    asking, told = ApprovalSubscribers(), []
    with asking.attached("a", lambda _: told.append("first")), asking.attached("b", lambda _: told.append("other")):
        with asking.attached("a", lambda _: told.append("second")):
            asking.asked(question())
        asking.asked(question("b"))
        asking.asked(question(None))
    asking.asked(question())
    assert told == ["first", "second", "other"]
    assert asking._attached == {}


async def test_one_who_cannot_be_told_spoils_it_for_nobody() -> None:
    """A socket that has too much under way refuses; the question waits all the same, and others are told of it."""
    asking, told = ApprovalSubscribers(), []
    desk = ApprovalDesk(on_request=asking.asked)

    def refuse(_: ApprovalRequest) -> None:
        raise ValidationFailed("64 things are under way on this socket already.")

    with asking.attached("a", refuse), asking.attached("a", lambda _: told.append(1)):
        waiting = asyncio.ensure_future(desk(question()))
        await asyncio.sleep(0)
        assert told == [1]
        desk.answer(ApprovalResponse(approval_id="ap-1", approve=True))
        assert (await waiting).approve


# --- the service ------------------------------------------------------------------------------------------------------


@pytest.fixture
def service(settings: Settings) -> Service:
    """Without machines."""
    asking = ApprovalSubscribers()
    desk = ApprovalDesk(on_request=asking.asked)
    door = Authenticator(TokenStore(settings.state_dir / "tokens.json"), settings.server)
    incoming, unread = IncomingBudget.of(settings.server), UnreadAnswers(settings.server.max_unread_bytes)
    return Service(settings, Engine(settings, approver=desk), desk, asking, Metrics(), door, incoming, unread)


class _Machine:
    """As much of a session as it takes to be kept."""

    def __init__(self) -> None:
        self.attachments: dict[str, Any] = {}


async def test_what_is_kept_of_a_machine_goes_with_it(service: Service) -> None:
    """Ten thousand machines in a row, each with a command: the memory is flat."""
    machine: Any = _Machine()
    gone = weakref.ref(machine)
    assert service.commands(machine) is service.commands(machine)
    del machine
    gc.collect()
    assert gone() is None, "it is kept for ever"


async def test_work_goes_on_when_who_asked_has_left_and_ends_with_the_service(service: Service) -> None:
    done, ended = asyncio.Event(), asyncio.Event()

    async def work() -> int:
        await asyncio.sleep(0.02)
        done.set()
        return 1

    async def endless() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return 1

    asking = asyncio.ensure_future(service.run_detached(work()))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    await asyncio.wait_for(done.wait(), 1)
    asking = asyncio.ensure_future(service.run_detached(endless()))
    await asyncio.sleep(0)
    await asyncio.wait_for(service.close(), 5)
    assert ended.is_set()
    await asyncio.wait([asking])


async def test_a_name_is_taken_while_a_session_begins(service: Service) -> None:
    taken = pytest.raises(Conflict, match="just beginning")
    with service.naming("ada", "s"), service.naming("bob", "s"), taken, service.naming("ada", "s"):
        pass
    with service.naming("ada", "s"):
        pass


async def test_draining_waits_for_what_is_under_way_and_not_for_ever(service: Service) -> None:
    from emberbox.server.auth import Principal

    who = Principal("a", "a", frozenset(["execute"]), None, 10, 10)
    with service.accepted(who):
        assert await asyncio.wait_for(service.drain(0.05), 5) == 0
        with pytest.raises(VmNotAvailable, match="stopping"), service.accepted(who):
            pass


def test_words_of_the_servers_own() -> None:
    assert checked_metadata({"a": "b", "Emberbox:x": "y"}) == {"a": "b", "Emberbox:x": "y"}
    with pytest.raises(Forbidden):
        checked_metadata({"a": "b", "emberbox:": "y"})


# --- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("draining", "error"), [(True, VmNotAvailable), (False, asyncio.CancelledError)])
async def test_what_a_stop_cuts_short_is_told_so(draining: bool, error: type[BaseException]) -> None:
    """Uvicorn cancels what is not answered when its time is over; a defect is what it would say itself."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    request = SimpleNamespace(headers={}, receive=asyncio.Event().wait)
    call = Call(cast(Any, SimpleNamespace(draining=draining)), cast(Any, None), cast(Any, request))
    answering = asyncio.ensure_future(call.run(cast(Any, None), work))
    await begun.wait()
    answering.cancel()
    with pytest.raises(error):
        await answering
    assert ended.is_set()
