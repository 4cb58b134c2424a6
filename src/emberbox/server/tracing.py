"""OpenTelemetry spans: the framework makes those of requests, and takes `traceparent` over; here are those of
executions and snapshots. The API alone does nothing; where an SDK and an exporter are installed (`emberbox[otel]`) and
`server.otlp_endpoint` is set, spans go there. A program that embeds the server and has set up a provider of its own
gets the spans as well."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from emberbox import __version__
from emberbox.errors import ConfigError, VmExecutionError

_tracer = trace.get_tracer("emberbox", __version__)


def configure(endpoint: str) -> Callable[[], None]:
    """Send spans to a collector from now on; what is returned sends the rest and stops.

    Raises:
        ConfigError: the SDK is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise ConfigError(
            "server.otlp_endpoint is set, but the OpenTelemetry SDK is not installed.",
            remediation="pip install 'emberbox[otel]', or take the setting out.",
        ) from exc
    provider = TracerProvider(resource=Resource.create({"service.name": "emberbox", "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=5)))
    trace.set_tracer_provider(provider)
    return provider.shutdown


@contextlib.contextmanager
def span(name: str, **attributes: Any) -> Iterator[Span]:
    """A span of a piece of work; an error of ours is its status, with the code only: messages may quote code.

    Args:
        name: of the span.
        attributes: facts; None is left out. No code and no output: they stay here.
    """
    facts = {f"emberbox.{key}": value for key, value in attributes.items() if value is not None}
    with _tracer.start_as_current_span(
        name, None, SpanKind.INTERNAL, facts, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except VmExecutionError as exc:
            current.set_status(Status(StatusCode.ERROR, exc.code))
            raise
        except BaseException as exc:
            current.set_status(Status(StatusCode.ERROR, type(exc).__name__))
            raise
