"""Who may call a route. It is decided before the body is read, so that no answer about a body tells whether something
of another agent's is there."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute

from emberbox.errors import Conflict, SessionNotFound
from emberbox.models import HistoryQueryRequest, HistoryQueryResponse
from emberbox.server import wire
from emberbox.server.auth import Principal
from emberbox.server.dependencies import Call
from emberbox.server.service import SESSION_KEY


@dataclass(frozen=True)
class Admission:
    """What a caller needs for a route. What the address names (a machine, a session, a question) must be the caller's.

    Args:
        require: raises Forbidden where the token does not let it.
        past: a machine that has ended, of which the history tells, will do.
    """

    require: Callable[[Principal], None]
    past: bool = False

    async def check(self, call: Call) -> None:
        """Raises Forbidden, SessionNotFound or Conflict."""
        self.require(call.principal)
        named = call.request.path_params
        if "vm_id" in named and self.past:
            await _ever_seen(call, named["vm_id"])
        elif "vm_id" in named:
            await call.service.visible(call.principal, named["vm_id"])
        if "name" in named:
            await session_id(call, named["name"], call.request.query_params.get("agent_id"))
        if "approval_id" in named:
            call.service.may_answer(call.principal, named["approval_id"])


def _call(request: Request) -> Call:
    return Call(request.app.state.service, request.state.principal, request)


def _all_agents(principal: Principal) -> None:
    principal.require_read()
    principal.require_all_agents()


def _figures(principal: Principal) -> None:
    if "metrics" not in principal.scopes:
        principal.require_read()
    principal.require_all_agents()


Reads = Annotated[Call, Depends(_call), Admission(Principal.require_read)]
ReadsPast = Annotated[Call, Depends(_call), Admission(Principal.require_read, past=True)]
ReadsAll = Annotated[Call, Depends(_call), Admission(_all_agents)]
ReadsFigures = Annotated[Call, Depends(_call), Admission(_figures)]
Executes = Annotated[Call, Depends(_call), Admission(lambda principal: principal.require("execute"))]
Approves = Annotated[Call, Depends(_call), Admission(lambda principal: principal.require("approve"))]


class AdmittingRoute(APIRoute):
    """A route that lets its caller in before anything of the body is read, and reads JSON as `wire` does. One of its
    parameters says who may call it (`Reads`, `Executes`, …)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        admission, handle = _admission(self.endpoint), super().get_route_handler()

        async def admitted(request: Request) -> Response:
            await admission.check(_call(request))
            return await handle(_JsonRequest(request.scope, request.receive))

        return admitted


class _JsonRequest(Request):
    async def json(self) -> Any:
        """The body."""
        return await wire.parse_beside(await self.body())


def _admission(endpoint: Callable[..., Any]) -> Admission:
    for hint in get_type_hints(endpoint, include_extras=True).values():
        for extra in get_args(hint)[1:]:
            if isinstance(extra, Admission):
                return extra
    raise TypeError(f"{endpoint.__name__} does not say who may call it")


async def query(call: Call, wanted: HistoryQueryRequest) -> HistoryQueryResponse:
    """What the caller may see of the history."""
    agents = call.principal.agents
    if agents is not None:
        wanted.agent_ids = sorted(agents)
    return await call.service.history(wanted)


async def _ever_seen(call: Call, vm_id: str) -> None:
    """Raises SessionNotFound for a machine of which the caller may not know."""
    try:
        await call.service.visible(call.principal, vm_id)
    except SessionNotFound:
        mine = await query(call, HistoryQueryRequest(vm_id=vm_id, limit=1))
        if not mine.total:
            raise


async def session_ids(call: Call, name: str, agent_id: str | None) -> list[str]:
    """Machines of the caller's sessions of this name."""
    engine, principal = call.service.engine, call.principal
    found = {
        one.id: one.agent_id
        for one in await engine.list_sandboxes()
        if one.metadata.get(SESSION_KEY) == name and one.is_open
    }
    found |= {
        one.sandbox_id: one.agent_id for one in await engine.list_suspended() if one.metadata.get(SESSION_KEY) == name
    }
    return [vm for vm, owner in found.items() if principal.sees(owner) and agent_id in (None, owner)]


async def session_id(call: Call, name: str, agent_id: str | None) -> str:
    """The machine of the caller's session of this name; raises SessionNotFound, or Conflict where there are several."""
    found = await session_ids(call, name, agent_id)
    if not found:
        raise SessionNotFound(f"There is no session {name!r:.120}.", remediation="POST /sessions begins one.")
    if len(found) > 1:
        raise Conflict(f"Several agents have a session {name!r:.120}.", remediation="Add ?agent_id=… to the address.")
    return found[0]
