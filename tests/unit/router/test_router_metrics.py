"""Counters, histograms and the metrics page."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from ghostcacher_connector.core.admin_api import Requests
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.metrics.instruments import OTHER, SERIES_MAX, Counter, Histogram
from ghostcacher_router.types import Reason, WorkerState

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(metrics: RouterMetrics) -> Samples:
    families = text_string_to_metric_families(metrics.page().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_page_has_what_was_counted() -> None:
    """Numbers come out under the names and labels that dashboards use."""
    metrics = RouterMetrics()
    metrics.answered("/v1/completions", 200)
    metrics.latency_ms.observe(0.3)
    metrics.picked("w1", Reason.FORECAST)
    metrics.observed(100, 25, 12.5)
    metrics.first_token(30.0, 20.0)
    metrics.first_token(10.0, 20.0)
    metrics.watch_fleet(
        lambda: {WorkerState.READY: 2, WorkerState.DOWN: 0},
        lambda: True,
        lambda: {"load: not authentic": 3},
        lambda: 1,
    )
    found = samples(metrics)
    assert found["gc_router_requests_total", (("path", "/v1/completions"), ("status", "200"))] == 1
    assert found["gc_request_latency_ms_bucket", (("le", "0.3"),)] == 1
    assert found["gc_request_latency_ms_bucket", (("le", "0.2"),)] == 0
    assert found["gc_request_latency_ms_count", ()] == 1
    assert found["gc_router_picks_total", (("reason", "forecast"),)] == 1
    assert found["gc_router_picks_total", (("reason", "hash"),)] == 0
    assert found["gc_router_worker_picks_total", (("reason", "forecast"), ("worker", "w1"))] == 1
    assert found["gc_cache_hit_ratio", ()] == 0.25
    assert found["gc_router_saved_ttft_ms_total", ()] == 12.5
    assert found["gc_forecast_error_ms_sum", ()] == 20.0
    assert found["gc_forecast_ratio_sum", ()] == 2.0
    assert found["gc_router_workers", (("state", "ready"),)] == 2
    assert found["gc_router_redis_available", ()] == 1
    assert found["gc_router_refused_values", (("what", "load: not authentic"),)] == 3
    assert found["gc_router_split_models", ()] == 1


def test_router_without_redis_does_not_say_that_redis_is_away() -> None:
    """An alert on Redis must not fire where none is used."""
    metrics = RouterMetrics()
    metrics.watch_fleet(dict, lambda: None, dict, lambda: 0)
    assert not [name for name, _ in samples(metrics) if name == "gc_router_redis_available"]


def test_clients_cannot_make_series() -> None:
    """Paths and statuses that a client or an engine makes up share one series."""
    metrics = RouterMetrics()
    for number in range(100):
        metrics.answered(f"/x/{number}", 1000 + number)
    assert metrics.requests.values == {(OTHER, OTHER): 100}


def test_series_are_bounded() -> None:
    """A label gone wild is counted, but does not take memory without end."""
    counter = Counter("c_total", "c", ["worker"])
    for number in range(SERIES_MAX + 10):
        counter.inc(str(number))
    assert len(counter.values) == SERIES_MAX + 1
    assert counter.values[OTHER,] == 10
    assert counter.total == SERIES_MAX + 10


def test_worker_that_is_gone_leaves_no_series() -> None:
    """Its own series go; the sums by reason stay."""
    metrics = RouterMetrics()
    metrics.picked("w1", Reason.ONLY)
    metrics.refusals.inc("w1")
    metrics.ejections.inc("w1", "broke")
    metrics.downs.inc("w1")
    metrics.forget_worker("w1")
    found = samples(metrics)
    assert not [labels for _, labels in found if ("worker", "w1") in labels]
    assert found["gc_router_picks_total", (("reason", "only"),)] == 1


def test_stats_before_the_first_request() -> None:
    """Nothing is divided by nothing."""
    stats = RouterMetrics().stats()
    assert stats.hit_ratio == 0.0
    assert msgspec.to_builtins(stats.overhead_ms) == {"count": 0, "p50": None, "p90": None, "p99": None}


@given(st.lists(st.floats(0, 100), min_size=1), st.sampled_from([0.5, 0.9, 1.0]))
def test_quantile_lies_in_the_right_bucket(values: list[float], q: float) -> None:
    """The estimate is within the bucket that holds the value of that rank."""
    bounds = (1.0, 10.0, 50.0)
    histogram = Histogram("h", "h", bounds)
    for value in values:
        histogram.observe(value)
    true = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    low = max((bound for bound in (0.0, *bounds) if bound < true), default=0.0)
    high = next((bound for bound in bounds if bound >= true), bounds[-1])
    estimate = histogram.quantile(q)
    assert estimate is not None
    assert low <= estimate <= high + 1e-9
    assert histogram.sum == pytest.approx(sum(values))


def test_quantile_is_not_above_the_largest_value() -> None:
    """Interpolation within a wide bucket says nothing of values that never were."""
    histogram = Histogram("h", "h", (10.0, 1000.0))
    for value in (5.0, 172.0, 181.0):
        histogram.observe(value)
    assert histogram.quantile(0.9) == 181.0
    assert histogram.quantile(0.1) == pytest.approx(3.0)


def test_questions_to_the_router_itself_are_no_requests() -> None:
    """Who looks at the router all the time does not change the number of requests that it shows."""
    metrics = RouterMetrics()
    for path in ("/gc/status", "/health", "/v1/completions", "/healthz"):
        metrics.answered(path, 200)
    assert metrics.stats().requests.total == 2.0


def test_list_of_models_is_no_request_of_a_worker() -> None:
    """The router answers it, and who polls it makes the fleet no busier; it has a series all the same."""
    metrics = RouterMetrics()
    for path in ("/v1/models", "/v1/models/m", "/v1/modelsx"):
        metrics.answered(path, 200)
    assert metrics.stats().requests == Requests(1.0, {"200": 1.0})
    assert b'gc_router_requests_total{path="/v1/models",status="200"} 2.0' in metrics.page()


def test_probes_and_refused_questions_are_no_failed_requests() -> None:
    """While no worker is ready each probe gets a 503, and `/gc/*` may refuse: the statuses are those of the total."""
    metrics = RouterMetrics()
    for path, status in (("/ready", 503), ("/health", 200), ("/gc/flush", 401), ("/v1/completions", 200)):
        metrics.answered(path, status)
    assert metrics.stats().requests == Requests(1.0, {"200": 1.0})
    counted = {labels for name, labels in samples(metrics) if name == "gc_router_requests_total"}
    assert counted == {(("path", "/v1/completions"), ("status", "200")), (("path", "own"), ("status", "401"))}
