"""Alerts: rules that Prometheus takes, of series that exist, that fire when they should, each with a runbook."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.support.catalog_names import faults_of
from tests.support.prometheus import promtool
from tests.support.promql import selectors

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "deploy" / "prometheus" / "ghostcacher.rules.yml"
RUNBOOKS = ROOT / "docs" / "operating" / "alerts.md"
PARTS_OF_RUNBOOK = ("**Means:**", "**See:**", "**Do:**")

Series = Mapping[str, str]
"""Series -> its values, one a minute, in promtool's notation."""


class Case(NamedTuple):
    """Two fleets, and the minute in which one of them has an alert that fires."""

    fires: Series
    quiet: Series
    minute: int


def ratio(total: str, part: str, labels: str, share: float) -> Series:
    """Return two counters of one router, of which one is this share of the other."""
    return {f"{total}{{job='r'{labels}}}": "0+100x200", f"{part}{{job='r'{labels}}}": f"0+{100 * share:g}x200"}


def seals(then: int, now: int) -> Series:
    """Return seal checks of which `then` in 100 were stale in the first 90 minutes, and `now` in 100 afterwards."""
    stale = f"0+{then}x90 {91 * then + now}+{now}x60"
    valid = f"0+{100 - then}x90 {91 * (100 - then) + 100 - now}+{100 - now}x60"
    return {
        "gc_seal_checks_total{job='e',result='stale'}": stale,
        "gc_seal_checks_total{job='e',result='valid'}": valid,
    }


def ratios(bucket: str, count: int = 10) -> Series:
    """Return a histogram of forecasts whose values all lie below this bound of a bucket, and above the one before."""
    bounds = ["0.25", "0.5", "1.0", "2.0", "4.0", "+Inf"]
    full = bounds[bounds.index(bucket) :]
    found = {
        f"gc_forecast_ratio_bucket{{job='r',le='{bound}'}}": f"0+{count if bound in full else 0}x60" for bound in bounds
    }
    return found | {"gc_forecast_ratio_count{job='r'}": f"0+{count}x60"}


def latencies(late: float) -> Series:
    """Return latencies of which these in 100 lie between 10 and 100 ms, the others below 1 ms."""
    early = 100 - late
    counts = {"1.0": early, "10.0": early, "100.0": 100, "+Inf": 100}
    return {
        f"gc_request_latency_ms_bucket{{job='r',instance='a',le='{bound}'}}": f"0+{n:g}x60"
        for bound, n in counts.items()
    }


def steady(series: str, value: int) -> Series:
    return {series: f"{value}+0x60"}


def peers(live: int, workers: int) -> Series:
    return steady("gc_peers_live{job='e',instance='a'}", live) | steady(
        "gc_router_workers{job='r',instance='b',state='ready'}", workers
    )


def queue_refusals(reason: str, percent: float) -> Series:
    """Return requests of which so many in 100 get no turn."""
    return {
        "gc_router_requests_total{job='r',instance='a',status='200'}": "0+100x60",
        f"gc_router_queue_refusals_total{{job='r',instance='a',reason='{reason}'}}": f"0+{percent:g}x60",
    }


EJECTIONS = "gc_router_ejections_total{job='r',instance='a',worker='w',reason='broke'}"
REFUSED = "gc_tier_refused_blocks_total{job='e',instance='a',tier='host',type='doc',reason='%s'}"
HITS = "gc_router_prompt_tokens_total", "gc_router_hit_tokens_total", ""

CASES: Mapping[str, list[Case]] = {
    "GhostCacherHitRatioLow": [
        Case(ratio(*HITS, 0.69), ratio(*HITS, 0.71), 20),
        # A fleet without requests has no ratio.
        Case(ratio(*HITS, 0.1), steady("gc_router_prompt_tokens_total{job='r'}", 5), 20),
        # Not before five minutes have passed.
        Case(ratio(*HITS, 0.1), {name: "_x16 " + values for name, values in ratio(*HITS, 0.1).items()}, 20),
    ],
    "GhostCacherForecastOff": [
        Case(ratios("4.0"), ratios("2.0"), 40),
        Case(ratios("0.25"), ratios("1.0"), 40),
        Case(ratios("4.0", 2), ratios("4.0", 1), 40),  # one request a minute says little
    ],
    "GhostCacherStalePullsRising": [
        Case(seals(1, 8), seals(8, 8), 120),
        Case(seals(3, 7), seals(0, 4), 120),
    ],
    "GhostCacherTierFull": [
        Case({REFUSED % "full": "0+1x60"}, {REFUSED % "worth": "0+1x60"}, 40),
        Case(
            {"gc_object_errors_total{job='e',operation='write',reason='full'}": "0+1x60"},
            {"gc_object_errors_total{job='e',operation='write',reason='timeout'}": "0+1x60"},
            40,
        ),
    ],
    "GhostCacherNoWorker": [
        Case(
            steady("gc_router_workers{job='r',instance='a',state='ready'}", 0),
            steady("gc_router_workers{job='r',instance='a',state='ready'}", 1),
            5,
        )
    ],
    "GhostCacherRedisDead": [
        Case({"gc_router_redis_available": "1 0 0 0"}, {"gc_router_redis_available": "1 1 1 0"}, 3),
        Case({"gc_router_redis_available": "0+0x9"}, {"gc_router_workers{state='ready'}": "1+0x9"}, 9),
    ],
    "GhostCacherHighSidecarLatency": [Case(latencies(2), latencies(0.5), 20)],
    "GhostCacherWorkerFlapping": [
        Case({EJECTIONS: "1 2 3 4 5 6"}, {EJECTIONS: "1 1 1 2 2 2"}, 5),
        Case(
            {"gc_router_worker_downs_total{job='r',instance='a',worker='w'}": "1 2 3 4 5"},
            {f"gc_router_worker_downs_total{{job='r',instance='{n}',worker='w'}}": "1 1 2 2 2" for n in "abc"},
            4,
        ),
    ],
    "GhostCacherFingerprintSplit": [
        Case(steady("gc_router_split_models{job='r'}", 1), steady("gc_router_split_models{job='r'}", 0), 20)
    ],
    "GhostCacherQueueRefuses": [
        Case(queue_refusals("full", 2), queue_refusals("full", 0.5), 30),
        Case(queue_refusals("timeout", 2), queue_refusals("deadline", 2), 30),
    ],
    "GhostCacherPeerUnreachable": [
        Case(
            {"gc_cache_misses_total{job='e',reason='peer_unreachable'}": "0+1x60"},
            {"gc_cache_misses_total{job='e',reason='not_indexed'}": "0+1x60"},
            20,
        )
    ],
    "GhostCacherSharesWithNobody": [Case(peers(0, 2), peers(1, 2), 20), Case(peers(0, 3), peers(0, 1), 20)],
    "GhostCacherWorkerNameTaken": [
        Case(
            steady("gc_worker_name_taken{job='e',instance='a'}", 1),
            steady("gc_worker_name_taken{job='e',instance='a'}", 0),
            5,
        )
    ],
    "GhostCacherReadHangs": [
        Case(
            {"gc_quarantined_reads{job='e',instance='a',rank='0'}": "1+0x20"},
            {"gc_quarantined_reads{job='e',instance='a',rank='0'}": "0x12 1x20"},
            15,
        )
    ],
}


def rules() -> Mapping[str, Any]:
    """Return every rule, by its alert."""
    found = yaml.safe_load(RULES.read_text())
    return {rule["alert"]: rule for group in found["groups"] for rule in group["rules"]}


def test_prometheus_takes_the_rules() -> None:
    """As its own tool says, which also reads the templates in what is said of an alert."""
    assert f"SUCCESS: {len(rules())} rules found" in promtool("check", "rules", RULES)


@pytest.mark.parametrize("alert", rules())
def test_alert_is_made_of_series_that_exist(alert: str) -> None:
    """Every metric, label and value of a label is in a catalog: an alert on another one would never fire."""
    found = selectors(rules()[alert]["expr"])
    assert found
    assert [fault for each in found for fault in faults_of(each)] == []


def test_names_that_are_in_no_catalog_are_found() -> None:
    """The search itself."""
    expression = """
        sum by (nobody, le) (rate(gc_request_latency_ms_bucket[5m])) + gc_request_latency_ms + gc_no_such_metric
        + gc_cache_misses_total{reason="no_such_reason"} + gc_router_workers{state!="redy"} + gc_peers_live{way="a"}
        + gc_router_picks_total{reason=~"forecast|typing_error"}
    """
    assert [fault for each in selectors(expression) for fault in faults_of(each)] == [
        "gc_request_latency_ms_bucket: no label nobody",
        "gc_request_latency_ms: a histogram",
        "gc_no_such_metric: no such metric",
        "gc_cache_misses_total: reason is never no_such_reason",
        "gc_router_workers: state is never redy",
        "gc_peers_live: no label way",
        "gc_router_picks_total: reason is never typing_error",
    ]


def test_every_alert_has_its_cases() -> None:
    """None is without series with which it fires, and series with which it does not."""
    assert set(CASES) == set(rules())


@pytest.mark.parametrize("alert", CASES)
def test_alert_fires_when_it_should_and_only_then(alert: str, tmp_path: Path) -> None:
    """By Prometheus' own rule tests, with series that fire it and series that are just as good as they have to be."""
    tests = []
    for case in CASES[alert]:
        for series, fires in ((case.fires, 1), (case.quiet, 0)):
            count = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
            asked = {"expr": count, "eval_time": f"{case.minute}m", "exp_samples": [{"labels": "{}", "value": fires}]}
            given = [{"series": name, "values": values} for name, values in series.items()]
            tests.append({"interval": "1m", "input_series": given, "promql_expr_test": [asked]})
    path = tmp_path / "tests.json"  # JSON is YAML
    path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", path)


@pytest.mark.parametrize("alert", rules())
def test_alert_has_a_runbook(alert: str) -> None:
    """Its link leads to a heading of the documents, below which is said what it means, how to see it, what to do."""
    rule = rules()[alert]
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert ROOT / page == RUNBOOKS
    parts = RUNBOOKS.read_text().split("\n## ")
    mine = [part for part in parts[1:] if part.partition("\n")[0] == alert]
    assert len(mine) == 1, f"headings called {alert} in {page}"
    assert anchor == alert.lower()
    assert all(part in mine[0] for part in PARTS_OF_RUNBOOK), mine[0]
    assert rule["labels"]["severity"] in ("warning", "critical")


def test_every_runbook_has_an_alert() -> None:
    """None is left of an alert that is gone."""
    headings = [line[3:] for line in RUNBOOKS.read_text().splitlines() if line.startswith("## GhostCacher")]
    assert headings == list(rules())
