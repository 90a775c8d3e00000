"""Spans through OpenTelemetry, and what it costs where tracing is off."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.tracing import open_tracer
from tests.support.spans import Recorded

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def test_span_belongs_to_the_trace_that_a_request_names() -> None:
    """Its times are the clock's, as the wall clock tells them; attributes that are not known are left out."""
    recorded = Recorded(lambda: 100.0)
    before_ns = time.time_ns()
    span = recorded.tracer.span("ghostcacher.x", 98.5, parent={"traceparent": TRACEPARENT}, worker="w", status=None)
    after_ns = time.time_ns()
    recorded.tracer.span("ghostcacher.y", 99.0, parent=span).end(99.5)
    span.end(102.5, bytes=7)
    y, x = recorded.spans
    assert (x.trace, x.parent, x.attributes) == (TRACE, PARENT, {"worker": "w", "bytes": 7})
    assert (y.trace, y.parent) == (TRACE, x.id)
    assert span.traceparent == f"00-{TRACE}-{x.id}-01"
    assert x.end_ns - x.begin_ns == 4_000_000_000
    assert before_ns <= x.begin_ns + 1_500_000_000 <= after_ns
    assert (x.error, y.error) == (None, None)


@pytest.mark.parametrize("header", ["", "garbage", TRACEPARENT[:-1], f"00-{'0' * 32}-{PARENT}-01", "00-\udcff-x-01"])
def test_what_a_client_names_wrongly_is_ignored(header: str) -> None:
    """A request with it begins a trace of its own."""
    recorded = Recorded(time.monotonic)
    recorded.tracer.span("ghostcacher.x", 0.0, parent={"traceparent": header}).end(1.0)
    (span,) = recorded.spans
    assert span.parent is None
    assert span.trace != TRACE


def test_error_is_said() -> None:
    """In the status that tools look at."""
    recorded = Recorded(time.monotonic)
    recorded.tracer.span("ghostcacher.x", 0.0, parent=None).end(1.0, error="stale")
    assert recorded.spans[0].error == "stale"
    assert recorded.spans[0].attributes == {"error": "stale"}


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """At start, with what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"^tracing: expected OpenTelemetry .* pip install 'ghostcacher\[tracing\]'"):
        open_tracer("x")


def test_collector_that_is_away_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are lost, more than are kept do not matter, and the process goes on to its end."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    tracer = open_tracer("x")
    for _ in range(5000):
        tracer.span("ghostcacher.x", 0.0, parent=None).end(1.0)
    tracer.close()
    tracer.close()


def test_nothing_of_it_is_loaded_where_tracing_is_off() -> None:
    """Neither by a router nor by a worker; what other packages load of it themselves is theirs."""
    code = (
        "import sys, ghostcacher_router.app, ghostcacher_connector.engines.common.prefix_matcher\n"
        "ours = ('opentelemetry.sdk.trace', 'opentelemetry.exporter')\n"
        "print([name for name in sys.modules if name.startswith(ours)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
