"""Whether it lives, whether it can work, and its figures."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from emberbox import __version__
from emberbox.models.service import Health, Readiness
from emberbox.server.admission import AdmittingRoute, ReadsFigures
from emberbox.server.service import Service
from emberbox.server.streams import answer

router = APIRouter(tags=["operations"])
figures = APIRouter(tags=["operations"], route_class=AdmittingRoute)


@router.head("/health", include_in_schema=False)
@router.get("/health", openapi_extra={"security": []}, response_model=Health, summary="Does the process live?")
async def health(request: Request) -> Response:
    """Answers as long as the process does. No token is needed."""
    service: Service = request.app.state.service
    return answer(Health(version=__version__, uptime_seconds=round(time.monotonic() - service.started, 3)))


@router.head("/ready", include_in_schema=False)
@router.get("/ready", openapi_extra={"security": []}, response_model=Readiness, summary="Can it run code?")
async def ready(request: Request) -> Response:
    """A machine has answered lately; if not, one is asked now. 503 while it cannot, and while it stops. No token is
    needed."""
    return answer(await request.app.state.prober.readiness())


@figures.get(
    "/metrics", summary="Figures for Prometheus",
    response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)  # fmt: skip
async def metrics(call: ReadsFigures) -> Response:
    """For a token with the scope `metrics` or `read` that is bound to no agents."""
    text = call.service.metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
