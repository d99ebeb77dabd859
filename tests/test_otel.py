"""Traces as a collector of OpenTelemetry receives them, from a real daemon by OTLP over HTTP."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from aiosd.protocol.tasks import TaskTrace
from tests.daemon import Daemon


class Collector:
    """Takes what is posted, by path."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, bytes]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.posted.append((self.path, body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


def test_a_task_is_one_trace_without_content(tmp_path: Path, collector: Collector) -> None:
    with Daemon(tmp_path, environ={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}) as daemon:
        result = daemon.run(daemon.session(), "What is 12 * (3 + 4)?")
        own = daemon.call(TaskTrace(task_id=result.task_id)).spans
        assert daemon.stop() == 0  # what was not sent yet is sent now
    traces = [
        ExportTraceServiceRequest.FromString(body) for path, body in collector.posted if path == "/v1/traces"
    ]
    spans = [s for t in traces for r in t.resource_spans for scope in r.scope_spans for s in scope.spans]
    assert sorted(span.name for span in spans) == sorted(span.name for span in own)
    assert {span.trace_id for span in spans} == {spans[0].trace_id}
    (root,) = [span for span in spans if not span.parent_span_id]
    assert root.name == "invoke_agent"
    assert (root.end_time_unix_nano - root.start_time_unix_nano) / 1e9 == pytest.approx(
        (own[0].ended_at or own[0].started_at).timestamp() - own[0].started_at.timestamp(), abs=1e-5
    )
    (tool,) = [span for span in spans if span.name == "execute_tool calculator"]
    assert ("gen_ai.tool.name", "calculator") in [(a.key, a.value.string_value) for a in tool.attributes]
    assert not any(b"12 * (3" in body for _, body in collector.posted)
    metrics = [
        metric.name
        for path, body in collector.posted
        if path == "/v1/metrics"
        for r in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for scope in r.scope_metrics
        for metric in scope.metrics
    ]
    assert {"gen_ai.client.operation.duration", "gen_ai.client.token.usage"} <= set(metrics)


def test_a_collector_that_is_not_there_holds_nothing_up(tmp_path: Path) -> None:
    with Daemon(tmp_path, environ={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}) as daemon:
        assert daemon.run(daemon.session(), "What is 6 * 7?").result == "42"
        assert daemon.stop() == 0
