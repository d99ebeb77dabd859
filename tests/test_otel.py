"""Traces as a collector of OpenTelemetry receives them, from a real daemon by OTLP over HTTP."""

from __future__ import annotations

import gzip
import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from aiosd.otel import CONTENT
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


@contextmanager
def collecting() -> Iterator[Collector]:
    running = Collector()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


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


def sent(collector: Collector) -> bytes:
    return b"".join(body for _, body in collector.posted)


@given(st.lists(st.sampled_from(["private", "open", "another user's"]), min_size=3, max_size=8))
@settings(max_examples=2, deadline=None, phases=[Phase.generate])
def test_content_is_sent_where_it_is_asked_for_and_never_of_what_is_private(rounds: list[str]) -> None:
    """Words of private sessions, also where an open one recalls them later; each word is one nobody else says."""
    private, others = list[str](), list[str]()
    with (
        tempfile.TemporaryDirectory() as home,
        collecting() as collector,
        Daemon(Path(home), environ={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, CONTENT: "true"}) as daemon,
    ):
        for n, whose in enumerate(["private", "open", "another user's", *rounds]):
            word = f"w{n}x{uuid4().hex}"
            if whose == "private":
                private.append(word)
                daemon.run(daemon.session(privacy="local"), f"Remember that a door opens with {word}")
            elif whose == "open":  # it is told a private word, and asked to say it
                told = daemon.run(daemon.session(), "What does a door open with?").result
                assert any(word in told for word in private), told
            else:
                others.append(word)
                daemon.run(daemon.session(user_id="another"), f"Remember that a door opens with {word}")
        assert daemon.stop() == 0
        got = sent(collector)
    assert [word for word in others if word.encode() in got] == others
    assert [word for word in private if word.encode() in got] == []


def test_content_is_the_conventions_messages_arguments_and_results_without_keys(
    tmp_path: Path, collector: Collector
) -> None:
    key = "sk-0123456789abcdef"
    config = '[models.backends.far]\nkind = "openai"\nmodel = "m"\nurl = "http://127.0.0.1:9/v1"\nkey_env = "FAR_KEY"\n'
    config += '[models.tiers]\nbalanced = ["extractive"]\n[models.backends.extractive]\nkind = "extractive"\n'
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, CONTENT: "span_only", "FAR_KEY": key}
    with Daemon(tmp_path, config, environ=environ) as daemon:
        daemon.run(daemon.session(), "What is 12 * (3 + 4)?")
        daemon.run(daemon.session(), f"Remember that the key is {key}")
        assert daemon.stop() == 0
    told = [
        (a.key, a.value.string_value)
        for path, body in collector.posted
        if path == "/v1/traces"
        for r in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in r.scope_spans
        for span in scope.spans
        for a in span.attributes
    ]
    asked = [json.loads(value) for name, value in told if name == "gen_ai.input.messages"]
    assert asked[0] == [{"role": "user", "parts": [{"type": "text", "content": "What is 12 * (3 + 4)?"}]}]
    answers = [json.loads(value) for name, value in told if name == "gen_ai.output.messages"]
    assert [{"role": "assistant", "parts": [{"type": "text", "content": "84"}]}] in answers
    assert ("gen_ai.tool.call.arguments", '{"expression":"12 * (3 + 4)"}') in told
    assert ("gen_ai.tool.call.result", "84") in told
    assert b"the key is" in sent(collector)
    assert key.encode() not in sent(collector)


def test_a_collector_that_is_not_there_holds_nothing_up(tmp_path: Path) -> None:
    with Daemon(tmp_path, environ={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}) as daemon:
        assert daemon.run(daemon.session(), "What is 6 * 7?").result == "42"
        assert daemon.stop() == 0
