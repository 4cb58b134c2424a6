"""The application: routers, guard, documentation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from emberbox import __version__
from emberbox.config import Settings
from emberbox.engine import Engine
from emberbox.errors import VmExecutionError
from emberbox.hooks.approval import ApprovalDesk
from emberbox.languages import RULES
from emberbox.server import error_handlers, tracing
from emberbox.server.approvals import ApprovalSubscribers
from emberbox.server.auth import Authenticator
from emberbox.server.examples import add_examples
from emberbox.server.idempotency import HEADER
from emberbox.server.memory import IncomingBudget, UnreadAnswers
from emberbox.server.metrics import Metrics
from emberbox.server.probe import Prober
from emberbox.server.request_guard import REQUEST_ID, RequestGuard
from emberbox.server.routes import approvals, health, inside, llm, sandboxes, sessions, v2, vms
from emberbox.server.service import Service
from emberbox.server.sockets import router as sockets
from emberbox.server.tokens import TokenStore, token_file

_ROUTERS = (
    health.figures, llm.router, vms.router, vms.history_router, sandboxes.router, inside.router, sessions.router,
    v2.router, approvals.router,
)  # fmt: skip


def create_app(
    settings: Settings, on_ready: Callable[[], object] = lambda: None, tokens: TokenStore | None = None
) -> FastAPI:
    """The server as an ASGI application, with a durable engine that lives as long as it does.

    Args:
        settings: in force.
        on_ready: called when it can take requests.
        tokens: who may call; those of the settings' file if not given.
    """
    tokens = tokens or TokenStore(token_file(settings))
    asking = ApprovalSubscribers()
    desk = ApprovalDesk(on_request=asking.asked)
    own = [rule.id for rule in settings.vm_execution.policy.rules]
    metrics = Metrics([*RULES, *own])
    authenticator = Authenticator(tokens, settings.server)
    incoming, unread = IncomingBudget.of(settings.server), UnreadAnswers(settings.server.max_unread_bytes)

    def service_of(engine: Engine) -> Service:
        return Service(settings, engine, desk, asking, metrics, authenticator, incoming, unread)

    app = FastAPI(
        title="Emberbox",
        version=__version__,
        summary="Run code that a language model wrote in an isolated machine, with undo.",
        description=_DESCRIPTION,
        lifespan=partial(_lifespan, settings, desk, metrics, service_of, on_ready),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: f"{route.tags[0] if route.tags else 'root'}-{route.name}",
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.failure = None
    app.state.incoming = incoming
    app.include_router(health.router, responses={**error_handlers.RESPONSES})
    for router in _ROUTERS:
        app.include_router(router, responses={**error_handlers.RESPONSES})
    app.include_router(sockets)
    error_handlers.register(app)
    if settings.server.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.server.allowed_origins,
            allow_methods=["*"],
            allow_headers=["Authorization", "Content-Type", HEADER, REQUEST_ID],
            expose_headers=[REQUEST_ID, "Retry-After"],
        )
    _add_documentation(app)
    _wrap(app, lambda inner: RequestGuard(inner, authenticator, settings.server, metrics, incoming, unread))
    return app


@asynccontextmanager
async def _lifespan(
    settings: Settings,
    desk: ApprovalDesk,
    metrics: Metrics,
    service_of: Callable[[Engine], Service],
    on_ready: Callable[[], object],
    app: FastAPI,
) -> AsyncIterator[None]:
    """Have an engine and what serves it, as long as the application is served."""
    endpoint = settings.server.otlp_endpoint
    stop_tracing = tracing.configure(endpoint) if endpoint else None
    try:
        async with Engine(settings, approver=desk, recorders=[metrics], durable=True) as engine:
            app.state.service = service = service_of(engine)
            app.state.prober = prober = Prober(service)
            metrics.watch(prober.gauges)
            try:
                await engine.list_sandboxes()  # what the server before this one left is found now
            except VmExecutionError as error:
                app.state.failure = error
                raise
            on_ready()
            try:
                yield
            finally:
                await prober.close()
                await service.close()
    finally:
        if stop_tracing is not None:
            stop_tracing()


def _wrap(app: FastAPI, layer: Callable[[ASGIApp], ASGIApp]) -> None:
    """Put a layer around everything else, the framework's own layers of errors included: what the guard refuses has
    never come in, and what fails inside is answered with the request's id."""
    build = app.build_middleware_stack

    def build_with_layer() -> ASGIApp:
        return layer(build())

    app.build_middleware_stack = build_with_layer  # type: ignore[method-assign]


def _add_documentation(app: FastAPI) -> None:
    """/docs with its scripts from here: no page of ours loads anything from elsewhere."""
    spec = find_spec("fastapi_offline")
    folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else Path()
    app.mount("/docs/assets", StaticFiles(directory=folder / "static"), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Emberbox API",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon.png",
        )

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, summary=app.summary, description=app.description,
                routes=app.routes,
            )  # fmt: skip
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}]
            schema["components"]["schemas"].pop("HTTPValidationError", None)
            schema["components"]["schemas"].pop("ValidationError", None)
            add_examples(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    described: list[bytes] = []
    describing = Lock()

    def description() -> bytes:
        with describing:
            if not described:
                described.append(json.dumps(openapi(), ensure_ascii=False, separators=(",", ":")).encode())
            return described[0]

    @app.get("/openapi.json", include_in_schema=False)
    async def schema() -> Response:
        return Response(await asyncio.to_thread(description), media_type="application/json")  # a second, the first time


_DESCRIPTION = """
Every error is `{"error": {"code", "message", "remediation", "retryable", "details"}}`; `retryable` means that nothing
ran. With the header `Idempotency-Key` an execution that is asked for again runs once. `X-Request-ID` is taken over into
the log. The WebSockets `/ws` and `/ws/{vm_id}` are described in docs/api.md.
"""
