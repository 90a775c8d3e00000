"""Spans that were recorded, or sent to a collector that runs in the test's own process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ghostcacher_connector.core.tracing import Tracer
from tests.support.local_http import Asked, answering

PREFIX = "ghostcacher."


class Seen(NamedTuple):
    """One span. Names of it and of its attributes are without `PREFIX`."""

    name: str
    service: str
    trace: str
    id: str
    parent: str | None
    attributes: Mapping[str, Any]
    error: str | None
    begin_ns: int
    end_ns: int


class Recorded:
    """A tracer whose spans stay in memory."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = Tracer(provider, clock)

    @property
    def spans(self) -> list[Seen]:
        """All that have ended, in that order."""
        return [_of_sdk(span) for span in self._exporter.get_finished_spans()]

    def named(self, name: str) -> list[Seen]:
        return [span for span in self.spans if span.name == name]


def _of_sdk(span: Any) -> Seen:
    return Seen(
        span.name.removeprefix(PREFIX),
        str(span.resource.attributes["service.name"]),
        f"{span.context.trace_id:032x}",
        f"{span.context.span_id:016x}",
        None if span.parent is None else f"{span.parent.span_id:016x}",
        {name.removeprefix(PREFIX): value for name, value in span.attributes.items()},
        span.status.description,
        span.start_time,
        span.end_time,
    )


@contextmanager
def collector() -> Iterator[tuple[str, list[Seen]]]:
    """Take OTLP over HTTP on loopback; yield the endpoint, and a list that grows as spans come."""
    seen: list[Seen] = []

    def answer(asked: Asked) -> tuple[int, bytes]:
        if (asked.method, asked.path) != ("POST", "/v1/traces"):
            return 404, b""
        seen.extend(_of_otlp(asked.body))
        return 200, b""

    with answering(answer) as url:
        yield url, seen


def _of_otlp(body: bytes) -> Iterator[Seen]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = next(each.value.string_value for each in resource.resource.attributes if each.key == "service.name")
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Seen(
                    span.name.removeprefix(PREFIX),
                    service,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex() or None,
                    {each.key.removeprefix(PREFIX): _value(each.value) for each in span.attributes},
                    span.status.message or None,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                )


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))
