"""Spans of a real server, as a collector gets them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from served import Served

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Collector(BaseHTTPRequestHandler):
    """Takes what an exporter sends."""

    spans: list[Span]
    names: list[str]

    def do_POST(self) -> None:
        """A batch of spans."""
        body = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in body.resource_spans:
            type(self).names += [one.value.string_value for one in resource.resource.attributes]
            type(self).spans += [span for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class calls it so)
        """Nothing."""


@pytest.fixture
def collector() -> Iterator[str]:
    Collector.spans, Collector.names = [], []
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_executions_are_spans_of_the_callers_trace_without_code(collector: str) -> None:
    server = Served({"SERVER__OTLP_ENDPOINT": collector}).start()
    try:
        with server.client() as client:
            body = {"agent_id": "ada", "language": "python", "code": "print('sesame')"}
            headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
            run = client.post("/api/llm/execute", json=body, headers=headers).json()
            client.post("/api/llm/execute", json=body | {"language": "bash", "code": "rm -rf /"})
            client.post(f"/api/vms/{run['vm_id']}/snapshots", json={})
    finally:
        server.finish()
    assert "emberbox" in Collector.names
    assert {"POST /api/llm/execute", "POST /api/vms/{vm_id}/snapshots", "snapshot"} <= {
        span.name for span in Collector.spans
    }
    first, refused = [span for span in Collector.spans if span.name == "execute"]
    first, refused = (first, refused) if first.trace_id.hex() == TRACE else (refused, first)
    request = next(
        span for span in Collector.spans if span.name == "POST /api/llm/execute" and span.trace_id.hex() == TRACE
    )
    assert request.parent_span_id.hex() == "00f067aa0ba902b7"
    assert first.trace_id.hex() == TRACE
    assert refused.trace_id.hex() != TRACE
    facts = {one.key: one.value for one in first.attributes}
    assert facts["emberbox.execution_id"].string_value == run["execution_id"]
    assert facts["emberbox.language"].string_value == "python"
    assert facts["emberbox.exit_code"].int_value == 0
    assert refused.status.message == "blocked_by_policy"
    assert all(b"sesame" not in span.SerializeToString() for span in Collector.spans)
