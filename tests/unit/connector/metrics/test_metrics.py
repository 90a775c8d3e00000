"""Metrics: the catalog's rules, deltas that add up, and what a metrics page shows in the end."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import prometheus_client as prometheus
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ghostcacher_connector
from ghostcacher_connector.core.retention.base import EvictionReason, Refusal
from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.metrics import (
    METRICS,
    Delta,
    Exporter,
    Kind,
    MetricsPage,
    Recorder,
    class_factory,
    merge,
    registry_factory,
    serve,
    summary,
)
from ghostcacher_connector.metrics.catalog import (
    EVICTIONS,
    HIT_RATIO,
    HITS,
    OBSERVATIONS_DROPPED,
    OUTCOMES,
    REASONS,
    TIER_REFUSALS,
)
from ghostcacher_connector.metrics.recorder import OBSERVATIONS_MAX
from ghostcacher_connector.transfer.base import PullOutcome

REQUIRED = {
    "gc_cache_hits_total": (),
    "gc_cache_misses_total": ("reason",),
    "gc_cache_hit_ratio": (),
    "gc_tokens_cached_total": (),
    "gc_saved_ttft_ms_total": (),
    "gc_rdma_transfers_total": ("transport", "outcome"),
    "gc_active_cache_entries": (),
}


def sample(registry: prometheus.CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_metric_follows_the_rules(metric: Any) -> None:
    """Names, kinds and labels follow Prometheus' conventions, and each metric says what it is and in which unit."""
    assert re.fullmatch(r"gc_[a-z][a-z_]*[a-z]", metric.name)
    assert metric.name.endswith("_total") is (metric.kind is Kind.COUNTER)
    assert (len(metric.buckets) > 0) is (metric.kind is Kind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.help.endswith(".")
    assert metric.unit


def test_required_metrics_are_there() -> None:
    """The metrics that dashboards are promised exist, with their labels."""
    assert {name: tuple(METRICS[name].labels) for name in REQUIRED} == REQUIRED


def test_label_values_are_those_of_the_types() -> None:
    """Label values that the catalog repeats are the ones that the code uses."""
    assert set(REASONS) == {reason.value for reason in MissReason}
    assert set(OUTCOMES) == {outcome.value for outcome in PullOutcome}
    assert set(EVICTIONS) == {reason.value for reason in EvictionReason}
    assert set(TIER_REFUSALS) == {refusal.value for refusal in Refusal}


def test_drain_returns_what_came_since() -> None:
    """Each value is drained once."""
    recorder = Recorder()
    recorder.inc("gc_cache_hits_total", 3)
    recorder.inc("gc_cache_hits_total")
    recorder.inc("gc_cache_misses_total", 2, reason="timeout")
    recorder.set("gc_peers_live", 1)
    recorder.set("gc_peers_live", 5)
    recorder.observe("gc_lookup_seconds", 0.25)
    assert recorder.drain() == {
        "gc_cache_hits_total": {"": 4.0},
        "gc_cache_misses_total": {"timeout": 2.0},
        "gc_peers_live": {"": 5.0},
        "gc_lookup_seconds": {"": [0.25]},
    }
    assert recorder.drain() == {}
    recorder.inc("gc_cache_misses_total", 5, reason="timeout")
    assert recorder.total("gc_cache_hits_total") == 4
    assert recorder.total("gc_cache_misses_total", reason="timeout") == 7
    assert recorder.total("gc_cache_misses_total", reason="cancelled") == 0


@pytest.mark.parametrize(
    ("kind", "name", "value", "labels"),
    [
        ("inc", "gc_no_such_total", 1, {}),
        ("inc", "gc_peers_live", 1, {}),
        ("set", "gc_cache_hits_total", 1, {}),
        ("observe", "gc_cache_hits_total", 1, {}),
        ("inc", "gc_cache_misses_total", 1, {}),
        ("inc", "gc_cache_misses_total", 1, {"reason": "bad luck"}),
        ("inc", "gc_cache_misses_total", 1, {"reason": "timeout", "more": "x"}),
        ("inc", "gc_cache_hits_total", 1, {"reason": "timeout"}),
        ("inc", "gc_cache_hits_total", -1, {}),
        ("inc", "gc_cache_hits_total", float("nan"), {}),
        ("set", "gc_peers_live", float("inf"), {}),
        ("observe", "gc_lookup_seconds", float("nan"), {}),
        ("set", "gc_quarantined_reads", 1, {"rank": 0}),
        ("set", "gc_quarantined_reads", 1, {"rank": "0\x1f1"}),
    ],
)
def test_wrong_record_is_an_assertion(kind: str, name: str, value: float, labels: dict[str, Any]) -> None:
    """An unknown metric, a wrong label or an impossible value is a bug of ours, and says so at once."""
    recorder = Recorder()
    with pytest.raises(AssertionError):
        getattr(recorder, kind)(name, value, **labels)
    assert recorder.drain() == {}


def test_observations_beyond_the_bound_counted() -> None:
    """A histogram's list is bounded, in the recorder as in a merge, and what is left out is counted."""
    recorder = Recorder()
    for _ in range(OBSERVATIONS_MAX + 3):
        recorder.observe("gc_lookup_seconds", 0.1)
    delta = recorder.drain()
    assert len(delta["gc_lookup_seconds"][""]) == OBSERVATIONS_MAX  # type: ignore[arg-type]
    assert delta[OBSERVATIONS_DROPPED] == {"": 3.0}
    merged = merge(delta, delta)
    assert len(merged["gc_lookup_seconds"][""]) == OBSERVATIONS_MAX  # type: ignore[arg-type]
    assert merged[OBSERVATIONS_DROPPED] == {"": 6.0 + OBSERVATIONS_MAX}


def test_many_threads_nothing_lost() -> None:
    """Counts from many threads add up, while another thread drains."""
    recorder, threads, rounds = Recorder(), 4, 2000
    done = threading.Event()
    drained: list[Delta] = []

    def count() -> None:
        for _ in range(rounds):
            recorder.inc("gc_cache_hits_total")

    def drain() -> None:
        while not done.is_set():
            drained.append(recorder.drain())

    counters = [threading.Thread(target=count) for _ in range(threads)]
    drainer = threading.Thread(target=drain)
    for thread in (drainer, *counters):
        thread.start()
    for thread in counters:
        thread.join(60)
    done.set()
    drainer.join(60)
    total: Delta = recorder.drain()
    for delta in drained:
        total = merge(total, delta)
    assert total == {"gc_cache_hits_total": {"": float(threads * rounds)}}


RECORDS = st.lists(
    st.one_of(
        st.tuples(st.just("inc"), st.just("gc_cache_hits_total"), st.integers(0, 9), st.just({})),
        st.tuples(
            st.just("inc"),
            st.just("gc_cache_misses_total"),
            st.integers(0, 9),
            st.sampled_from(REASONS).map(lambda r: {"reason": r}),
        ),
        st.tuples(st.just("set"), st.just("gc_peers_live"), st.integers(0, 9), st.just({})),
        st.tuples(st.just("observe"), st.just("gc_pull_seconds"), st.integers(0, 9), st.just({"transport": "nixl"})),
    ),
    max_size=30,
)


def record_all(recorder: Recorder, records: list[Any]) -> None:
    for kind, name, value, labels in records:
        getattr(recorder, kind)(name, value, **labels)


@given(RECORDS, st.integers(0, 30), st.integers(0, 30))
def test_merge_equals_one_recording(records: list[Any], one: int, two: int) -> None:
    """However the records are cut into deltas, and whatever they cross on the way, the sum is the same."""
    whole, part = Recorder(), Recorder()
    record_all(whole, records)
    merged: Delta = {}
    low, high = sorted((one, two))
    for piece in (records[:low], records[low:high], records[high:]):
        record_all(part, piece)
        delta = part.drain()
        carried = msgspec.msgpack.decode(msgspec.msgpack.encode(json.loads(json.dumps(delta))))
        kept = json.dumps(merged)
        after = merge(merged, carried)
        assert json.dumps(merged) == kept, "merge changed its argument"
        merged = after
    assert merged == whole.drain()


@given(RECORDS)
def test_exporter_shows_what_was_recorded(records: list[Any]) -> None:
    """A page's counters are the sums of the records, and the ratio is hits over hits and misses."""
    registry = prometheus.CollectorRegistry()
    exporter, recorder = Exporter(registry_factory(registry)), Recorder()
    for record in records:
        record_all(recorder, [record])
        exporter.apply(recorder.drain())
    hits = sum(value for _, name, value, _ in records if name == "gc_cache_hits_total")
    misses = sum(value for _, name, value, _ in records if name == "gc_cache_misses_total")
    assert sample(registry, "gc_cache_hits_total") == hits
    assert sum(sample(registry, "gc_cache_misses_total", reason=reason) or 0 for reason in REASONS) == misses
    assert sample(registry, "gc_cache_hit_ratio") == (hits / (hits + misses) if hits + misses else 0)
    pulls = [value for kind, _, value, _ in records if kind == "observe"]
    assert sample(registry, "gc_pull_seconds_count", transport="nixl") == len(pulls)
    assert sample(registry, "gc_pull_seconds_sum", transport="nixl") == sum(pulls)


def test_series_exist_before_the_first_event() -> None:
    """A miss reason that never happened is 0, not absent: alerts can be written on it."""
    registry = prometheus.CollectorRegistry()
    Exporter(registry_factory(registry))
    assert all(sample(registry, "gc_cache_misses_total", reason=reason) == 0 for reason in REASONS)
    assert sample(registry, "gc_rdma_transfers_total", transport="nixl", outcome="stale") == 0


def test_engine_labels_keep_engines_apart() -> None:
    """The engine's own labels come first, and each engine has its own series and ratio."""
    registry = prometheus.CollectorRegistry()
    exporter = Exporter(registry_factory(registry), ["model_name", "engine"], [["m", 0], ["m", 1]])  # type: ignore[list-item]
    exporter.apply({"gc_cache_hits_total": {"": 3.0}, "gc_cache_misses_total": {"timeout": 1.0}}, ["m", 0])
    exporter.apply({"gc_cache_misses_total": {"timeout": 1.0}}, ["m", 1])
    assert sample(registry, "gc_cache_hit_ratio", model_name="m", engine="0") == 0.75
    assert sample(registry, "gc_cache_hit_ratio", model_name="m", engine="1") == 0
    with pytest.raises(AssertionError):
        exporter.apply({}, ["m"])
    with pytest.raises(AssertionError):
        exporter.apply({"gc_no_such_total": {"": 1.0}}, ["m", 0])


def test_engine_classes_started_twice_reused() -> None:
    """An engine that is started again in one process gets the metrics that are already registered."""
    registry = prometheus.CollectorRegistry()

    classes = {Kind.COUNTER: prometheus.Counter, Kind.GAUGE: prometheus.Gauge, Kind.HISTOGRAM: prometheus.Histogram}
    factory = class_factory({kind: partial(cls, registry=registry) for kind, cls in classes.items()})
    for _ in range(2):
        Exporter(factory, ["engine"], [["0"]]).apply({"gc_cache_hits_total": {"": 1.0}}, ["0"])
    assert sample(registry, "gc_cache_hits_total", engine="0") == 2


@pytest.fixture
def page() -> Iterator[MetricsPage]:
    """A real metrics page on a free loopback port."""
    page = serve(0)
    yield page
    page.close()


def test_page_served_over_http(page: MetricsPage) -> None:
    """The page answers over real HTTP with what was applied, and frees its port when closed."""
    page.apply({"gc_cache_hits_total": {"": 2.0}})
    with urllib.request.urlopen(f"http://127.0.0.1:{page.port}/metrics", timeout=10) as response:
        text = response.read().decode()
    assert "\ngc_cache_hits_total 2.0\n" in text
    assert "\ngc_cache_hit_ratio 1.0\n" in text
    page.close()
    serve(page.port).close()


def test_summary_has_one_number_a_series() -> None:
    """A log line shows increases, last values, and the mean of observations."""
    recorder = Recorder()
    recorder.inc("gc_cache_misses_total", 2, reason="timeout")
    recorder.observe("gc_lookup_seconds", 1)
    recorder.observe("gc_lookup_seconds", 3)
    assert summary(recorder.drain()) == {
        "gc_cache_misses_total{reason=timeout}": 2.0,
        "gc_lookup_seconds_count": 2,
        "gc_lookup_seconds_mean": 2.0,
    }


def test_every_metric_is_recorded_somewhere() -> None:
    """A metric that nothing records would stand at zero for ever, and be believed."""
    package = Path(ghostcacher_connector.__file__).parent
    sources = [path.read_text() for path in package.rglob("*.py") if path.name != "catalog.py"]
    constants = {HITS: "HITS", HIT_RATIO: "HIT_RATIO", OBSERVATIONS_DROPPED: "OBSERVATIONS_DROPPED"}
    unused = [
        name
        for name in METRICS
        if not any(f'"{name}"' in source or constants.get(name, name) in source for source in sources)
    ]
    assert unused == []
