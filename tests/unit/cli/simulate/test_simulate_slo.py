"""How many workers are enough: what a goal says, when a run keeps it, which fleet is the least one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_cli.simulate.arguments import parse
from ghostcacher_cli.simulate.results import report_of, run_found
from ghostcacher_cli.simulate.results_text import report_lines
from ghostcacher_cli.simulate.run import load_of, simulate
from ghostcacher_cli.simulate.slo import Goal, least_workers, parse_goals, serves
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_simulator.replay.replay import Ending, Served
from tests.unit.cli.simulate.test_simulate_results import FIRST, RUN, SECOND, SERVED


def test_goals_are_read() -> None:
    assert parse_goals("ttft-p90=0.5,itl-p50=3e-2") == [Goal("ttft", 90, 0.5), Goal("itl", 50, 0.03)]
    assert str(Goal("ttft", 90, 0.5)) == "ttft-p90 of at most 0.5 s"


@pytest.mark.parametrize("text", ["ttft=1", "ttft-p95=1", "ttft-p90=0", "ttft-p90=-1", "ttft-p90=1..2", "x-p50=1", ""])
def test_wrong_goal_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--slo: expected ttft-pN=S or itl-pN=S with N of 50, .*, got"):
        parse_goals(text)


def test_run_keeps_a_goal_that_its_percentile_keeps() -> None:
    """Of the two answers one had its first token after 1 s, one after 4 s."""
    run = run_found(RUN._replace(served=SERVED[:2]))
    assert serves(run, [Goal("ttft", 50, 1.0), Goal("ttft", 90, 4.0), Goal("itl", 99, 0.03)])
    assert not serves(run, [Goal("ttft", 90, 3.9)])
    assert not serves(run, [Goal("ttft", 90, 4.0), Goal("itl", 99, 0.02)])


@pytest.mark.parametrize("ending", Ending)
def test_run_that_loses_an_answer_keeps_no_goal(ending: Ending) -> None:
    """What fits no cache is no fault of a fleet's size."""
    run = run_found(RUN._replace(served=[SERVED[0], Served(SECOND, ending)]))
    assert serves(run, [Goal("ttft", 99, 9.0)]) == (ending in {Ending.ANSWERED, Ending.TOO_LONG})


def test_time_that_no_request_has_is_kept() -> None:
    assert serves(
        run_found(RUN._replace(served=[Served(FIRST, Ending.ANSWERED, "w0", 1, 1.0)])), [Goal("itl", 50, 1e-9)]
    )


@given(needed=st.integers(1, 300), most=st.integers(1, 256))
def test_least_fleet_is_found_with_few_runs(needed: int, most: int) -> None:
    """No size is tried twice, and none above the largest."""
    tried: list[int] = []

    def enough(size: int) -> bool:
        tried.append(size)
        return size >= needed

    assert least_workers(enough, most) == (needed if needed <= most else None)
    assert len(tried) == len(set(tried)) <= 18
    assert max(tried) <= most


def test_failures_happen_in_every_run_and_are_watched() -> None:
    words = ["documents:requests=40,documents=4", "--workers", "1,2", "--fail", "death:w0@2", "--fail", "redis@1+2"]
    options = parse(words)
    one, two = simulate(options, load_of(options.load), lambda _: None)[0]
    assert run_found(one).endings["unplaced"] > 0
    assert set(run_found(two).endings) <= {"answered", "broken"}


def test_least_fleet_keeps_the_goal_and_one_worker_fewer_does_not() -> None:
    words = "documents:requests=120,documents=10,tokens=4000,rate=6 --prefill-tokens-per-second 5000 --policies hashing"
    options = parse([*words.split(), "--slo", "ttft-p90=2.0", "--workers-max", "16"])
    runs, (least,) = simulate(options, load_of(options.load), lambda _: None)
    assert least.workers is not None
    assert least.workers > 1
    kept = {run.fleet.workers: serves(run_found(run), options.goals) for run in runs}
    assert list(kept) == sorted(kept)
    assert (kept[least.workers], kept[least.workers - 1]) == (True, False)
    found = next(run_found(run) for run in runs if run.fleet.workers == least.workers)
    assert found.ttft is not None
    assert (least.tried, least.reached) == (least.workers, [f"ttft-p90 {found.ttft.p90_s:.3g} s"])


def test_goal_that_no_fleet_keeps_is_told_with_what_the_largest_has() -> None:
    """A step alone takes longer than an answer's token may."""
    words = "documents:requests=9 --step-ms 50 --workers-max 3 --policies hashing"
    options = parse([*words.split(), "--slo", "itl-p50=0.01"])
    runs, (least,) = simulate(options, load_of(options.load), lambda _: None)
    found = run_found(runs[-1])
    assert found.itl is not None
    assert found.itl.p50_s > 0.05
    report = report_of(load_of(options.load), options.fleet, runs, [least])
    said = f"(with 3: itl-p50 {found.itl.p50_s:.3g} s)"
    assert f"no fleet of up to 3 workers is enough for itl-p50 of at most 0.01 s {said}" in report_lines(report)[2]


def test_load_that_is_neither_a_file_nor_a_kind_is_refused_with_both() -> None:
    """A kind with a typing error is no file that is missing."""
    with pytest.raises(ConfigError, match=r"LOAD: expected a file, or one of documents, .*no file chats:rate=3"):
        load_of(parse(["chats:rate=3"]).load)
