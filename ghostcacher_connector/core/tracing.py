"""Spans of what happens to a request, through OpenTelemetry, which is loaded only where `tracing` is on.

Whoever has a `Tracer` records; whoever has None asks nothing and pays nothing. Where spans go, and how many are kept,
is OpenTelemetry's to say: the process' own provider of tracers where it has one (an engine's), else the variables
OTEL_* (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, ...). They are sent from a thread, in bounded batches: where
the collector is away, spans are lost and nothing waits.

Times are those of a clock in seconds, as the caller's other times are, and become the wall clock's here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.threads import daemon_thread

HEADERS = ("traceparent", "tracestate")
"""W3C's headers, by which a request says which trace it belongs to."""
CLOSE_S = 2.0
"""Longest wait for the last spans to be sent when a process ends."""

Value = str | int | float | bool


class Span:
    """Something that takes time, within a trace. A name, a begin, attributes; `end` is called once."""

    __slots__ = ("_offset_ns", "_otel", "context")

    def __init__(self, otel: Any, context: Any, offset_ns: int) -> None:
        """otel: OpenTelemetry's span. context: its own, with this span in it. offset_ns: wall clock less the clock."""
        self._otel, self.context, self._offset_ns = otel, context, offset_ns

    def __repr__(self) -> str:
        return f"Span({self.traceparent})"

    @property
    def traceparent(self) -> str:
        """Return the header that names this span as the parent of what a request causes elsewhere."""
        found = self._otel.get_span_context()
        return f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"

    def say(self, **attributes: Value | None) -> None:
        """Add attributes; those that are None are left out."""
        for name, value in attributes.items():
            if value is not None:
                self._otel.set_attribute(f"ghostcacher.{name}", value)

    def end(self, at: float, *, error: str | None = None, **attributes: Value | None) -> None:
        """End it. error: why what it stands for has failed; None when it has not."""
        self.say(error=error, **attributes)
        if error is not None:
            from opentelemetry.trace import StatusCode  # noqa: PLC0415 - loaded by `open_tracer` already

            self._otel.set_status(StatusCode.ERROR, error)
        self._otel.end(self._offset_ns + int(at * 1e9))


class Tracer:
    """Makes spans. Thread-safe."""

    def __init__(self, provider: Any, clock: Callable[[], float] = time.monotonic, *, owned: bool = False) -> None:
        """provider: OpenTelemetry's provider of tracers. owned: whether `close` ends it."""
        from opentelemetry import trace  # noqa: PLC0415 - only where tracing is on
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._provider, self._clock, self._owned = provider, clock, owned
        self._tracer = provider.get_tracer("ghostcacher")
        self._trace, self._propagator = trace, TraceContextTextMapPropagator()

    def __repr__(self) -> str:
        return f"Tracer({type(self._provider).__name__})"

    def span(
        self,
        name: str,
        began_at: float,
        *,
        parent: Span | Mapping[str, str] | None,
        kind: str = "internal",
        **attributes: Value | None,
    ) -> Span:
        """Begin a span. parent: another one, or the headers of a request; what these do not say rightly is ignored.

        kind: "internal"; "server" for a request that came, "client" for one that is sent.
        """
        trace = self._trace
        context = parent.context if isinstance(parent, Span) else self._propagator.extract(parent or {})
        offset_ns = time.time_ns() - int(self._clock() * 1e9)
        made = self._tracer.start_span(
            name, context=context, kind=trace.SpanKind[kind.upper()], start_time=offset_ns + int(began_at * 1e9)
        )
        span = Span(made, trace.set_span_in_context(made, context), offset_ns)
        span.say(**attributes)
        return span

    def close(self) -> None:
        """Send what is left, for a bounded time. Idempotent. Spans that end later are lost."""
        if self._owned:
            self._owned = False
            sending = daemon_thread("gc-traces", self._provider.shutdown)
            sending.start()
            sending.join(CLOSE_S)


def headers_of(context: Any) -> dict[str, str]:
    """Return the headers that name the span in a context of OpenTelemetry's own as the parent; none without a span."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers, context)
    return headers


def open_tracer(service: str, clock: Callable[[], float] = time.monotonic) -> Tracer:
    """Return the tracer of this process. service: what spans say they are of, unless OTEL_SERVICE_NAME says it.

    Raises ConfigError where OpenTelemetry is not installed.
    """
    try:
        from opentelemetry import trace  # noqa: PLC0415 - only where tracing is on
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415

        present = trace.get_tracer_provider()
        if isinstance(present, TracerProvider):
            return Tracer(present, clock)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as exc:
        raise ConfigError(
            f"tracing: expected OpenTelemetry to be installed: pip install 'ghostcacher[tracing]'; {exc}"
        ) from exc
    named = Resource.create({"service.name": service}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named, shutdown_on_exit=False)  # whose end would not be bounded
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider, clock, owned=True)
