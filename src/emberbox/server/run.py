"""`emberbox serve`: listens, logs, drains before it stops."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn

from emberbox.config import Settings
from emberbox.errors import ConfigError
from emberbox.server.app import create_app
from emberbox.server.protocol import http_protocol, websocket_protocol
from emberbox.server.service import Service
from emberbox.server.tokens import TokenStore, token_file

_STOP_SECONDS = 10
"""For connections that are left when all executions have ended."""
_MAX_MESSAGE = 17 << 20
_PATIENT_SIGNALS = 2
_BACKLOG = 1024


def run_server(settings: Settings, announce: Callable[[str, bool], None]) -> None:
    """Serve until SIGTERM or SIGINT; returns when everything is suspended.

    Args:
        settings: in force.
        announce: called when it can take requests, with its address and whether tokens are needed.

    Raises:
        ConfigError: it may not listen there, or cannot.
        VmExecutionError: the engine does not start.
    """
    tokens = TokenStore(token_file(settings))
    check_binding(settings, tokens)
    configure_logging(settings.server.log_level)
    listener = _listen(settings.server.host, settings.server.port)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def ready() -> None:
        announce(address, tokens.enforced)
        notify_systemd("READY=1")

    app = create_app(settings, ready, tokens)
    config = uvicorn.Config(
        app,
        http=http_protocol(settings.server.slow_request_seconds, settings.server.slow_reader_seconds),
        limit_concurrency=settings.server.max_connections,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws=websocket_protocol(settings.server.slow_reader_seconds, app.state.incoming),
        ws_max_size=_MAX_MESSAGE,
        ws_per_message_deflate=False,  # costs more than it saves here, and unpacks what was never sent
        lifespan="on",
        timeout_graceful_shutdown=_STOP_SECONDS,
        timeout_keep_alive=30,
        backlog=_BACKLOG,
    )
    server = DrainingServer(config, lambda: getattr(app.state, "service", None), settings.server.drain_seconds)
    # what keeps it from starting is raised below, and need not be logged with a traceback
    logging.getLogger("uvicorn.error").addFilter(lambda record: app.state.failure is None and _is_news(record))
    with contextlib.closing(listener):
        try:
            server.run(sockets=[listener])
        except SystemExit:
            if app.state.failure is None:
                raise
    if app.state.failure is not None:
        raise app.state.failure


class DrainingServer(uvicorn.Server):
    """Takes nothing new after the first signal, and stops when what is under way has ended, or its time is over."""

    def __init__(self, config: uvicorn.Config, service: Callable[[], Service | None], drain_seconds: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_seconds = drain_seconds
        self._draining: list[asyncio.Task[None]] = []
        self._signals = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came. The first one lets what runs end, the second one cuts it short, the third one waits for
        nothing."""
        service = self._service()
        self._signals += 1
        if service is None or self._loop is None or self._signals > _PATIENT_SIGNALS:
            super().handle_exit(sig, frame)
            return
        seconds = self._drain_seconds if self._signals == 1 else 0.0
        self._loop.call_soon_threadsafe(self._begin, service, sig, seconds)

    def _begin(self, service: Service, sig: int, seconds: float) -> None:
        self._draining.append(asyncio.ensure_future(self._drain(service, sig, seconds)))

    async def _drain(self, service: Service, sig: int, seconds: float) -> None:
        log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox")
        notify_systemd("STOPPING=1")
        log.info("draining", signal=signal.Signals(sig).name, executions=service.running, seconds=seconds)
        cut = await service.drain(seconds)
        if cut:
            log.warning("executions cut short", count=cut)
        service.followers.close()
        self.should_exit = True


def _is_news(record: logging.LogRecord) -> bool:
    """Not what clients do wrong, nor that a stream was left: neither is an error of the server."""
    return not record.getMessage().startswith(_NO_NEWS)


_NO_NEWS = ("ASGI callable returned without completing response", "Invalid UTF-8 sequence received from client")


def check_binding(settings: Settings, tokens: TokenStore) -> None:
    """Raises ConfigError where the server would be open to others without tokens."""
    host = settings.server.host
    if not _is_loopback(host) and not tokens.enforced:
        raise ConfigError(
            f"To listen on {host} lets others in, and there are no tokens in {tokens.path}.",
            remediation="Make one with `emberbox token create NAME`, or listen on 127.0.0.1.",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)  # who is told the address may connect at once
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError, UnicodeError) as exc:
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {getattr(exc, 'strerror', None) or exc}.",
            remediation="Choose another --host or --port, or stop what listens there.",
        ) from exc
    return listener


def configure_logging(level: str) -> None:
    """One JSON object a line on standard error, with the request's id; of libraries too."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.processors.format_exc_info],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn", "httpx", "websockets", "asyncio", "alembic", "sqlalchemy"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def notify_systemd(state: str) -> None:
    """Tell systemd, where it wants to know (sd_notify(3)): a datagram to the socket of $NOTIFY_SOCKET."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path or path[0] not in "/@":
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.connect("\0" + path[1:] if path[0] == "@" else path)
        out.sendall(state.encode())
