"""OpenTelemetry: each ended task as one trace and its figures as metrics, sent by OTLP over HTTP.

Runs where the environment names a collector (OTEL_EXPORTER_OTLP_ENDPOINT, as every OpenTelemetry program has it) and the
extra `otel` is installed. The spans are those of `task.trace`. They carry content where CONTENT asks for it, and never of
what is private.
"""

from __future__ import annotations

import logging
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiosd.errors import ConfigError
from aiosd.records import Span, Task

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""The convention's own switch for prompts, arguments and results in spans."""
WITH_CONTENT = ("true", "1", "span_only", "span_and_event")
_MEASURED = ("gen_ai.operation.name", "gen_ai.request.model", "gen_ai.tool.name", "error.type")
"""Of a span's attributes, those that metrics are told apart by."""
CLOSE_S = 2.0
"""For what is still to be sent when the daemon stops."""


@contextmanager
def open_export(environ: Mapping[str, str]) -> Iterator[Export | None]:
    """What is given each task that has ended; None where no collector is named. Never waits for the network: a thread of
    the SDK's sends. Raises ConfigError where the extra is missing."""
    endpoint = environ.get(ENDPOINT, "").rstrip("/")
    if not endpoint:
        yield None
        return
    try:  # late: half a second, for those alone who send
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError(
            f"{ENDPOINT} is set, and the packages that send are not here",
            hint=f"{shlex.quote(sys.executable)} -m pip install 'aiosd[otel]'",
        ) from None
    resource = Resource.create({"service.name": "aiosd"})
    traces = TracerProvider(resource=resource, shutdown_on_exit=False)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=f"{endpoint}/v1/metrics"))
    meters = MeterProvider(resource=resource, metric_readers=[reader], shutdown_on_exit=False)

    def close() -> None:
        traces.shutdown()
        meters.shutdown()

    try:
        content = environ.get(CONTENT, "").lower() in WITH_CONTENT
        yield Export(traces.get_tracer("aiosd"), meters.get_meter("aiosd"), content=content)
    finally:
        # The SDK goes on trying for half a minute where nobody listens; the daemon does not wait for that.
        closing = threading.Thread(target=close, name="otel-close", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class Export:
    """`content`: whether texts are wanted too."""

    def __init__(self, tracer: Tracer, meter: Meter, *, content: bool) -> None:
        self.content = content
        self._tracer = tracer
        self._durations = meter.create_histogram("gen_ai.client.operation.duration", unit="s")
        self._tokens = meter.create_histogram("gen_ai.client.token.usage", unit="{token}")

    def __call__(self, task: Task, spans: Sequence[Span]) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context  # late, as above

        made: dict[str, Any] = {}
        for span in spans:
            parent = made.get(span.parent_id or "")
            attributes = {k: v for k, v in span.attributes.items() if v is not None}
            own = self._tracer.start_span(
                span.name,
                context=None if parent is None else set_span_in_context(parent),
                kind=SpanKind.CLIENT if span.name.startswith("chat") else SpanKind.INTERNAL,
                attributes=attributes,
                start_time=_ns(span.started_at),
            )
            made[span.span_id] = own
            if error := span.attributes.get("error.type"):
                own.set_status(Status(StatusCode.ERROR, str(error)))
        for span in reversed(spans):
            ended = span.ended_at or datetime.now(UTC)
            made[span.span_id].end(_ns(ended))
            about = {key: span.attributes[key] for key in _MEASURED if key in span.attributes}
            self._durations.record((ended - span.started_at).total_seconds(), about)
            if span.name.startswith("chat"):
                for direction in ("input", "output"):
                    used = span.attributes.get(f"gen_ai.usage.{direction}_tokens", 0)
                    self._tokens.record(used, {**about, "gen_ai.token.type": direction})


def _ns(when: datetime) -> int:
    return int(when.timestamp() * 1_000_000) * 1000
