"""The benchmark that compares the simulator with real engines: what needs no engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import simulator_calibration as calibration
from benchmarks.harness import simulated_engines
from benchmarks.harness.client import Completion
from benchmarks.harness.launch import EngineOptions
from benchmarks.harness.workload import Load as Questions
from benchmarks.harness.workload import Result
from ghostcacher_simulator.engine import Profile
from ghostcacher_simulator.machines.workers import FleetSpec, WorkerSpec
from ghostcacher_simulator.processor import Cores
from ghostcacher_simulator.replay.policies import entrants
from ghostcacher_simulator.replay.replay import replay
from ghostcacher_simulator.virtual_time import run_virtual


class Letters:
    """A tokenizer of letters."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def test_simulated_questions_share_what_the_engines_tokens_share() -> None:
    """Blocks of 32 tokens: the first three are one document's, the last one is the question's own."""
    document = "".join(chr(97 + number % 26) for number in range(96))
    questions = Questions([f"{document}{number}{'?' * 39}" for number in range(2)], [0, 0])
    load = calibration.simulated_load(questions, Letters())  # type: ignore[arg-type]
    first, second = (request.prompt for request in load.requests)
    assert (first.tokens, len(first.blocks), first.answer_tokens) == (136, 4, calibration.ANSWER_TOKENS)
    assert first.blocks[:3] == second.blocks[:3]
    assert first.blocks[3] != second.blocks[3]


def test_table_says_how_far_off_it_is() -> None:
    found = calibration.Compared(2, "GhostCacher", 0.100, 0.115, 0.2, 0.3, 2_000, 1_500)
    assert found.off == (pytest.approx(0.15), pytest.approx(-0.25))
    row = calibration.report([found]).splitlines()[-1]
    times = ["100", "ms", "115", "ms", "+15%", "200", "ms", "300", "ms"]
    assert row.split() == ["GhostCacher", "2", *times, "2,000", "1,500", "-25%"]


def test_fleet_holds_half_of_the_documents_and_is_shared_by_its_engines() -> None:
    chosen = calibration.arguments(["--documents", "40", "--document-tokens", "1600"])
    options = calibration.options_of(chosen, "model", "redis://x", 2)
    assert [option.num_blocks for option in options] == [40 * 1600 // 2 // 2 // 32] * 2
    assert len({option.name for option in options}) == 2


@pytest.mark.parametrize("sizes", ["1", "2,x", ""])
def test_wrong_sizes_are_refused(sizes: str) -> None:
    with pytest.raises(calibration.ConfigError, match="--engines: expected numbers from 2"):
        calibration.arguments(["--engines", sizes])


class Named:
    """An engine as far as its place is concerned."""

    def __init__(self, name: str, cores: str | None) -> None:
        self.options = EngineOptions(model="m", name=name, cores=cores)


@pytest.mark.parametrize(
    ("places", "cores", "own", "together"),
    [
        (["0", "1"], [0, 1], [0, 1], [0]),
        (["0", "1", "0"], [0, 1, 0], [0, 1], [0, 2]),
        (["2", "0,1", "0,1"], [0, 1, 1], [0, 1], [1, 2]),
        ([None, None], [0, 1], [0, 1], [0]),
    ],
)
def test_engines_are_measured_by_the_cores_on_which_they_are(
    places: list[str | None], cores: list[int], own: list[int], together: list[int]
) -> None:
    """On GPUs each has its own."""
    engines: Any = [Named(f"w{number}", place) for number, place in enumerate(places)]
    found = simulated_engines.cores_of(engines)
    assert found == cores
    assert simulated_engines.on_cores_of_their_own(found) == own
    assert simulated_engines.on_one_core(found) == together


def test_each_request_is_told_of_both() -> None:
    """Real times are from the first request on, whichever that was; tokens add up to the prompt."""
    questions = Questions([f"{'a' * 64}{number}" for number in range(2)], [0, 0])
    load = calibration.simulated_load(questions, Letters())  # type: ignore[arg-type]
    worker = WorkerSpec(Profile(kv_blocks=20, block_tokens=32, prefill_tokens_per_s=100.0))
    fleet = FleetSpec(1, worker, Cores((0,), (1.0,)))
    (round_robin,) = (each for each in entrants(1) if each.key == "round-robin")
    run = run_virtual(replay(round_robin, load, fleet, clients=1))
    answer = Completion("", (), (), 0.25, 0.3, 65, 1, 32, "stop", began_at=7.5, worker="w0", forecast_ms=9.0)
    real = Result("round robin", [answer, answer._replace(began_at=7.0, cached_tokens=None)], 1.0)
    first, second = calibration.each_request("round robin", 2, questions, real, run)
    assert json.loads(json.dumps(first)) == first
    assert (first["round"], first["request"], first["document"], first["prompt_tokens"]) == (2, 0, 0, 65)
    assert first["real"] == {"worker": "w0", "at_s": 0.5, "ttft_s": 0.25, "forecast_ms": 9.0, "cached_tokens": 32}
    assert (second["real"]["at_s"], second["real"]["cached_tokens"]) == (0.0, 0)
    assert (first["simulated"]["cached_tokens"], second["simulated"]["cached_tokens"]) == (0, 64)
    assert second["simulated"]["at_s"] > first["simulated"]["ttft_s"] > 0.65


def test_figures_are_of_all_rounds_together() -> None:
    """Rounds of fast, slow and very slow answers: the median is of one, the mean of all."""
    questions = Questions(["a" * 65], [0])
    load = calibration.simulated_load(questions, Letters())  # type: ignore[arg-type]
    fleets = [
        FleetSpec(1, WorkerSpec(Profile(kv_blocks=20, block_tokens=32, prefill_tokens_per_s=rate)))
        for rate in (65.0, 130.0, 32.5)
    ]
    (round_robin,) = (each for each in entrants(1) if each.key == "round-robin")
    runs = [run_virtual(replay(round_robin, load, fleet, clients=1)) for fleet in fleets]
    answer = Completion("", (), (), 3.0, 3.0, 65, 1, 32, "stop")
    real = [Result("", [answer._replace(ttft_s=seconds)], 1.0) for seconds in (5.0, 3.0, 10.0)]
    found = calibration.compared("in turns", list(zip(real, runs, strict=True)))
    assert (found.engines, found.policy, found.real_p50_s, found.real_mean_s) == (1, "in turns", 5.0, 6.0)
    assert (found.simulated_p50_s, found.simulated_mean_s) == pytest.approx((1.009, 3.5 / 3 + 0.009))
    assert (found.real_tokens, found.simulated_tokens) == (3 * 33, 3 * 65)


def test_no_rounds_are_refused() -> None:
    with pytest.raises(calibration.ConfigError, match="--rounds: expected 1 or more, got 0"):
        calibration.arguments(["--rounds", "0"])


def test_figures_of_a_fleet_are_told() -> None:
    told = calibration.describe(FleetSpec(3, WorkerSpec(Profile()), Cores((0, 1, 0), (1.0, 0.9), (1.0, 0.45))))
    assert told.startswith("3 engines: 10,000 tokens/s")
    assert told.endswith("one core is busy, two, ...: 1.00, 0.90; where one computes on a core, two, ...: 1.00, 0.45")
