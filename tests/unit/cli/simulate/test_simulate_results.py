"""What is made of a run: percentiles, parts, balance, cost, as numbers, text and points of a picture."""

from __future__ import annotations

import pytest

from ghostcacher_cli.simulate.fleets import FleetOptions
from ghostcacher_cli.simulate.pictures import mark_seconds, points_of
from ghostcacher_cli.simulate.results import report_of, run_found
from ghostcacher_cli.simulate.results_text import report_lines
from ghostcacher_simulator.machines.workers import ObjectTier
from ghostcacher_simulator.replay.replay import Ending, Run, Served
from tests.unit.simulator.replay.support import entrant, fleet, load

LOAD = load(*((float(number), "a") for number in range(4)), answer_tokens=190)
FIRST, SECOND, THIRD, FOURTH = LOAD.requests
SERVED = [
    Served(FIRST, Ending.ANSWERED, "w0", 1, 4.0, 0.01, 0, 0, 0, 0, 810),
    Served(SECOND, Ending.ANSWERED, "w0", 1, 1.0, 0.03, 400, 200, 100, 50, 60),
    Served(THIRD, Ending.BROKEN, "w1", 2, 2.0, None, 800, 0, 0, 0, 10),
    Served(FOURTH, Ending.UNPLACED),
]
SPEC = fleet(2, price=1.8)
RUN = Run(entrant("ghostcacher"), LOAD, SPEC, SERVED, 100.0, 940, 1, 3)


def test_what_is_stored_has_a_price_too() -> None:
    """Two workers for 100 s are 0.1 USD; 2,592 GB for as long, at 30 USD a month, are 3 USD."""
    stored = RUN._replace(
        fleet=SPEC._replace(objects=ObjectTier(1e9, usd_per_gb_month=30.0)), stored_bytes=2_592 * 10**9
    )
    assert run_found(stored).usd_per_million_tokens == pytest.approx(3.1 / 2_000 * 1e6)
    assert run_found(stored).stored_bytes == 2_592 * 10**9


def test_numbers_of_a_run() -> None:
    """Parts are of those that got a token; the price is that of two workers for 100 s and 2 x 1,000 tokens."""
    found = run_found(RUN)
    assert found.endings == {"answered": 2, "broken": 1, "unplaced": 1}
    assert found.ttft is not None
    assert found.itl is not None
    assert found.sources is not None
    assert (found.ttft.p50_s, found.ttft.p90_s, found.ttft.mean_s) == (2.0, 4.0, pytest.approx(7 / 3))
    assert (found.itl.p50_s, found.itl.p99_s) == (0.01, 0.03)
    parts = [
        found.sources.engine,
        found.sources.host,
        found.sources.peers,
        found.sources.objects,
        found.sources.computed,
    ]
    assert parts == [1_200 / 2_430, 200 / 2_430, 100 / 2_430, 50 / 2_430, 880 / 2_430]
    assert found.requests_max_over_mean == pytest.approx(2 / 1.5)
    assert found.computed_max_over_mean == pytest.approx(870 / 440)
    assert found.usd_per_million_tokens == pytest.approx(2 * 1.8 * 100 / 3_600 / 2_000 * 1e6)


def test_idle_workers_count_in_the_balance() -> None:
    found = run_found(RUN._replace(fleet=fleet(4)))
    assert found.requests_max_over_mean == pytest.approx(2 / (3 / 4))


def test_run_in_which_nothing_was_served_has_no_numbers() -> None:
    found = run_found(RUN._replace(served=[Served(FIRST, Ending.TOO_LONG)]))
    assert (found.ttft, found.itl, found.sources, found.usd_per_million_tokens) == (None, None, None, None)
    assert found.requests_max_over_mean == 1.0


def test_report_says_all_of_it_as_text() -> None:
    report = report_of(LOAD, FleetOptions(SPEC.worker, ["a source"]), [RUN])
    assert (report.load.distinct_tokens, report.load.prompt_tokens) == (8 * 100 + 4 * 10, 4 * 810)
    text = "\n".join(report_lines(report))
    assert "test: 4 requests in 3 s, 3,240 prompt tokens (74.1 % of them were there before), 760 answer tokens" in (
        text.replace("3240", "3,240")
    )
    row = next(line for line in text.splitlines() if "4,000 ms" in line)
    times = "2,000 ms 4,000 ms 4,000 ms 10.0 ms 30.0 ms 30.0 ms"
    assert row.split() == f"GhostCacher 2 {times} 1 min 40 s 50.000".split()
    assert "  GhostCacher, 2 workers: 2 answered, 1 broken, 1 unplaced" in text
    assert "  a source" in text


def test_tenants_are_told_apart() -> None:
    """By priority, with what they waited, got and did not get; of a run without tenants nothing is said."""
    urgent = {"tenant": "urgent", "priority": -5}
    served = [
        SERVED[0]._replace(request=FIRST._replace(**urgent), queued_s=0.5),
        SERVED[1]._replace(request=SECOND._replace(tenant="flood"), queued_s=3.0),
        Served(THIRD._replace(tenant="flood"), Ending.REFUSED),
        Served(FOURTH._replace(tenant="flood"), Ending.TIMED_OUT, queued_s=9.0),
    ]
    first, second = run_found(RUN._replace(served=served)).tenants
    assert (first.tenant, first.priority, first.requests, first.queued) == ("urgent", -5, 1, 1)
    assert first.ttft is not None
    assert first.ttft.p50_s == 4.0
    assert (second.tenant, second.requests, second.queued) == ("flood", 3, 2)
    assert second.endings == {"answered": 1, "refused": 1, "timed out": 1}
    assert second.wait is not None
    assert (second.wait.mean_s, second.wait.p50_s, second.wait.p99_s) == (4.0, 3.0, 9.0)
    text = "\n".join(report_lines(report_of(LOAD, FleetOptions(SPEC.worker, []), [RUN._replace(served=served)])))
    row = "GhostCacher 2 flood 0 3 2 3,000 ms 9,000 ms 9,000 ms 1 1 0 1,000 ms 1,000 ms"
    assert row.split() in [line.split() for line in text.splitlines()]
    assert not run_found(RUN).tenants
    assert "turn" not in "\n".join(report_lines(report_of(LOAD, FleetOptions(SPEC.worker, []), [RUN])))


def test_picture_ends_below_100_percent_where_requests_got_no_token() -> None:
    assert points_of(RUN) == ([1.0, 2.0, 4.0], [25.0, 50.0, 75.0])
    assert points_of(RUN._replace(served=[Served(FIRST, Ending.TOO_LONG)])) == ([], [])


def test_seconds_are_marked_in_plain_numbers() -> None:
    """Less than two decades, which are marked else with powers of ten that overlap each other."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([0.015, 0.9], [0, 100])
    axes.set_xscale("log")
    mark_seconds(axes.xaxis)
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    shown = [label.get_text() for label in axes.get_xticklabels(which="both") if low <= label.get_position()[0] <= high]
    assert shown == ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]
