"""Replays of traces: that a run ends with a table and is always alike, and what the check says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import routing_scale, routing_traces
from benchmarks.routing_traces import Result, questions, verdict
from ghostcacher_simulator.load.generated import Documents, make_load
from ghostcacher_simulator.load.requests import BLOCK_TOKENS
from ghostcacher_simulator.machines.workers import fleet_of
from ghostcacher_simulator.replay.policies import entrants
from ghostcacher_simulator.replay.replay import replay
from ghostcacher_simulator.virtual_time import run_virtual

ROWS = [
    {"timestamp": 1_000, "input_length": 1_100, "output_length": 5, "hash_ids": [7, 8, 9]},
    {"timestamp": 9_000, "input_length": 1_600, "output_length": 0, "hash_ids": [7, 8, 10, 11]},
    {"timestamp": 15_000, "input_length": 40_000, "output_length": 9, "hash_ids": list(range(79))},
]


def mooncake(folder: Path) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("text", ["60", "60:", "x:16", "0:16", "60:-1"])
def test_a_wrong_description_of_documents_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert routing_traces.main(["--documents", text]) == 1
    assert f"--documents: expected N:BLOCKS, such as 60:16, got {text!r}" in capsys.readouterr().err


def test_runs_are_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All policies on a small trace: a line for each, and the same lines again."""
    argv = ["--trace", str(mooncake(tmp_path)), "--routers", "2"]
    tables = []
    for _ in range(2):
        assert routing_traces.main(argv) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert "GhostCacher, 2 routers" in tables[0]
    assert len(tables[0].splitlines()) == 2 + 11


def test_documents_that_just_fit_are_spread_as_they_fit() -> None:
    """Of twelve documents each engine has room for four. Nobody gets a fifth: it would be computed again and again."""
    ours = next(entrant for entrant in entrants(1) if entrant.name == "GhostCacher")
    found = run_virtual(replay(ours, questions(12, 64, count=200, rate_per_s=5.0), fleet_of(3, 320, 10_000.0)))
    assert found.computed_tokens < 3 * 12 * 64 * BLOCK_TOKENS


def test_routers_that_know_nothing_of_each_other_send_each_document_to_one_engine() -> None:
    """Four routers before plain engines compute less than twice of what one router alone has them compute."""
    load, fleet = questions(60, 16, count=900, rate_per_s=6.0), fleet_of(3, 320, 10_000.0)
    one, four = (
        run_virtual(replay(entrant, load, fleet))
        for entrant in entrants(4)
        if entrant.name.removeprefix("GhostCacher, ") in ("plain engines", "4 routers, plain engines")
    )
    assert four.computed_tokens < 2.0 * one.computed_tokens


@pytest.mark.parametrize(("workers", "seed", "routers"), [(16, 2, 1), (32, 1, 1), (24, 2, 4)])
def test_requests_are_spread_though_some_documents_are_popular(workers: int, seed: int, routers: int) -> None:
    """No worker gets more than 1.7 times the mean, and hardly more is computed than each document once."""
    made = Documents(requests=36 * workers, rate=4.0 * workers, documents=10 * workers, zipf=1.0)
    load = make_load(made, seed=seed, block_tokens=BLOCK_TOKENS)
    name = "ghostcacher" if routers == 1 else "ghostcacher-routers"
    ours = next(entrant for entrant in entrants(routers) if entrant.key == name)
    found = run_virtual(replay(ours, load, fleet_of(workers, 4_000, 20_000.0)))
    sent = Counter(each.worker for each in found.served)
    assert max(sent.values()) * workers / len(found.served) <= 1.7
    once = len({each.request.segments[0] for each in found.served}) * made.tokens
    assert found.computed_tokens < 1.2 * (once + len(found.served) * made.question)


def test_check_names_who_is_too_much_worse(capsys: pytest.CaptureFixture[str]) -> None:
    """Ways of ours fail the check when they are slower than the best simple policy, and not than each other."""
    simple, *_, sharing, plain = entrants(4)

    def status(simple_s: float, sharing_s: float, plain_s: float) -> int:
        means = [(simple, simple_s), (sharing, sharing_s), (plain, plain_s)]
        return verdict([Result(entrant, [mean_s], 1, 1, 0) for entrant, mean_s in means])

    assert status(1.0, 0.5, 1.3) == 1
    assert f"{plain.name}: expected at most 1.25 times the mean of {simple.name}" in capsys.readouterr().out
    assert status(1.0, 0.5, 1.2) == 0
    assert status(1.3, 1.0, 1.0) == 0


def test_placements_are_measured_at_all_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each policy at each size; only the project's router has decisions to measure."""
    assert routing_scale.main(["--workers", "2,17", "--requests", "4", "--policies", "ghostcacher,hashing"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["2", "2", "17", "17"]
    assert [row.count("-") for row in rows] == [0, 1, 0, 1]
