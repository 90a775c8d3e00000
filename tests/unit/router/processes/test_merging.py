"""What several processes say of themselves, as one router says it."""

from __future__ import annotations

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from ghostcacher_connector.core.admin_api import Quantiles
from ghostcacher_connector.core.dashboard_api import FirstTokens, History, HistoryPoint
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.metrics.merging import counts_of, merged_metrics, merged_page
from ghostcacher_router.processes.merging import (
    merged_explain,
    merged_history,
    merged_locks,
    merged_prefixes,
    merged_status,
    merged_workers,
)


def metrics(requests: int, *latencies_ms: float) -> RouterMetrics:
    made = RouterMetrics()
    for _ in range(requests):
        made.answered("/v1/completions", 200)
    for value in latencies_ms:
        made.latency_ms.observe(value)
    return made


def test_page_has_the_series_of_every_process_once() -> None:
    """Each family is in one place, as the format wants it, and sums over processes are those of the router."""
    page = merged_page({"0.1": metrics(2, 0.1).page(), "1.2": metrics(3).page()}).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert page.count("# TYPE gc_router_requests_total ") == 1
    requests = {sample.labels["process"]: sample.value for sample in families["gc_router_requests"].samples}
    assert requests == {"0.1": 2.0, "1.2": 3.0}
    alone = {family.name for family in text_string_to_metric_families(metrics(1).page().decode())}
    assert set(families) == alone
    samples = [sample for family in families.values() for sample in family.samples]
    assert {sample.labels["process"] for sample in samples} == {"0.1", "1.2"}


def test_label_values_with_any_sign_stay_as_they_are() -> None:
    """Braces, spaces and quotes are no ends of a sample's name."""
    odd = 'a {b} "c" 1'
    made = RouterMetrics()
    made.downs.inc(odd)
    page = merged_page({"0.1": made.page()}).decode()
    (family,) = (each for each in text_string_to_metric_families(page) if each.name == "gc_router_worker_downs")
    assert [sample.labels for sample in family.samples] == [{"process": "0.1", "worker": odd}]


def test_counters_and_quantiles_are_of_all_processes() -> None:
    """Quantiles come from the buckets of all of them, not from their quantiles. Counts come over a socket."""
    counts = [counts_of(metrics(2, *[0.04] * 98)), counts_of(metrics(3, 90.0, 95.0))]
    merged = merged_metrics(msgspec.json.decode(msgspec.json.encode(counts)))
    one = metrics(5, *[0.04] * 98, 90.0, 95.0)
    assert merged.stats() == one.stats()


def test_workers_have_the_requests_of_all_processes() -> None:
    """A worker that only one of them knows stays; one that only another one knows is not the asked one's."""
    own = {"workers": [{"id": "a", "in_flight": 1, "refusals": 2, "ejected": None}, {"id": "b", "state": "gone"}]}
    other = {"workers": [{"id": "a", "in_flight": 3, "refusals": 5, "ejected": "503"}, {"id": "c", "in_flight": 9}]}
    merged = merged_workers(own, [other])
    assert merged == {
        "workers": [{"id": "a", "in_flight": 4, "refusals": 7, "ejected": "503"}, {"id": "b", "state": "gone"}]
    }


def test_status_has_every_ejection() -> None:
    """Each process ejects for itself."""
    own = {"ejected": {"a": "x"}, "uptime_s": 3.0, "redis_error": None}
    merged = merged_status(own, [{"ejected": {"b": "y"}, "uptime_s": 7.0, "redis_error": "NOPERM"}])
    assert merged == {"ejected": {"a": "x", "b": "y"}, "uptime_s": 7.0, "redis_error": "NOPERM", "processes": 2}


def test_queues_of_all_processes_are_one() -> None:
    """Each process has its part of the places."""
    queue = {"requests": 1, "requests_max": 5, "bytes": 7, "by_priority": {"0": 1}, "tenants": {"a": 1}}
    own = {"ejected": {}, "uptime_s": 1.0, "redis_error": None}
    merged = merged_status(
        own | {"queue": queue | {"saturated": ["w"], "retry_after_s": 3}},
        [
            {"queue": None},
            {"queue": queue | {"saturated": ["v", "w"], "retry_after_s": 2, "by_priority": {"0": 1, "9": 1}}},
        ],
    )
    assert merged["queue"] == {
        "requests": 2,
        "requests_max": 10,
        "bytes": 14,
        "by_priority": {"0": 2, "9": 1},
        "tenants": {"a": 2},
        "saturated": ["v", "w"],
        "retry_after_s": 3,
    }


def test_lock_of_any_process_is_ours() -> None:
    """The others know of it through Redis, and it is one lock."""
    lock = {"key": "k", "worker": "a", "ours": False, "age_s": 1.0}
    merged = merged_locks({"locks": [lock], "total": 1}, [{"locks": [lock | {"ours": True}], "total": 1}])
    assert merged == {"locks": [lock | {"ours": True}], "total": 1}


def test_prefix_has_the_uses_of_all_processes() -> None:
    """The hottest first."""
    own = {"prefixes": [{"key": "k", "uses": 2.0, "last_s": 9.0}], "seen": 4}
    others = [
        {"prefixes": [{"key": "l", "uses": 4.0, "last_s": 2.0}, {"key": "k", "uses": 3.0, "last_s": 1.0}], "seen": 5}
    ]
    merged = merged_prefixes(own, others)
    assert merged["prefixes"] == [{"key": "k", "uses": 5.0, "last_s": 1.0}, {"key": "l", "uses": 4.0, "last_s": 2.0}]
    assert merged["seen"] == 9


def row(worker: str, local: int, in_flight: int, **more: object) -> dict[str, object]:
    return {"worker": worker, "local_tokens": local, "pulled_tokens": 0, "in_flight": in_flight, **more}


def test_explanation_is_of_the_process_that_has_sent_the_prompt() -> None:
    """With what all of them have in flight; one that knows a worker less does not hide it."""
    own = {"path": "/v1", "workers": [row("a", 0, 1), row("b", 0, 2)], "prefill": []}
    other = {"path": "/v1", "workers": [row("b", 900, 4), row("a", 0, 8), row("c", 0, 16)], "prefill": []}
    assert merged_explain(own, [other])["workers"] == [row("b", 900, 6), row("a", 0, 9), row("c", 0, 16)]
    handed = {"path": "/v1", "workers": [row("a", 0, 1)], "prefill": [row("b", 900, 4, saturated=False)]}
    merged = merged_explain({**handed, "prefill": [row("b", 800, 2, saturated=True)]}, [handed])
    assert merged["prefill"] == [row("b", 900, 6, saturated=True)]


def test_explanation_is_of_the_asked_process_where_none_knows_more() -> None:
    own = {"path": "/v1", "workers": [row("a", 5, 1), row("b", 0, 1)]}
    other = {"path": "/v1", "workers": [row("b", 0, 1), row("a", 5, 1)]}
    assert [each["worker"] for each in merged_explain(own, [other])["workers"]] == ["a", "b"]


def point(at: float, requests: float, p50: float, **more: object) -> HistoryPoint:
    spread = Quantiles(int(requests), p50, p50, p50)
    return HistoryPoint(at, 5.0, requests=requests, ttft_ms=spread, **more)  # type: ignore[arg-type]


def test_history_adds_up_what_ended_in_the_same_interval() -> None:
    """What all processes see of the workers is counted once; an interval that may go on is left out."""
    mine = [point(1001.0, 1, 10.0, in_flight=2, hit_blocks=7), point(1006.0, 1, 10.0), point(1019.0, 1, 10.0)]
    others = [point(1003.5, 3, 30.0, in_flight=1, hit_blocks=7), point(1008.0, 5, 10.0)]
    merged = merged_history(
        [
            History("a", 1021.0, 5.0, tuple(mine), FirstTokens((1.0,), (2.0,))),
            History("b", 1021.0, 5.0, tuple(others), FirstTokens((3.0,), (4.0,))),
        ],
        None,
    )
    assert [(each.at, each.requests) for each in merged.points] == [(1005.0, 4.0), (1010.0, 6.0)]
    assert (merged.points[0].in_flight, merged.points[0].hit_blocks) == (3, 7)
    assert merged.points[0].ttft_ms == Quantiles(4, 25.0, 25.0, 25.0)
    assert merged.first_tokens == FirstTokens((1.0, 3.0), (2.0, 4.0))


def test_history_after_a_moment_repeats_nothing() -> None:
    """A reader asks for what ended after the last interval that it has."""
    history = History("a", 2000.0, 5.0, (point(1001.0, 1, 1.0), point(1006.0, 1, 1.0)))
    assert [each.at for each in merged_history([history], 1005.0).points] == [1010.0]
