"""The benchmark that compares the simulator with real engines: what needs no engine."""

from __future__ import annotations

import json
import math
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
    """A row for each figure; where a load has no such requests there is nothing to be off by."""
    real = calibration.Side(0.1, 0.05, math.nan, 0.2, 0.6, 2_000)
    found = calibration.Compared(2, "GhostCacher", 4, real, calibration.Side(0.115, 0.06, math.nan, 0.3, 0.63, 1_500))
    rows = [" ".join(row.split()) for row in calibration.report([found]).splitlines()]
    assert "GhostCacher 2 4 TTFT p50 100 ms 115 ms +15%" in rows
    assert "GhostCacher 2 4 of prompts that were found 50.0 ms 60.0 ms +20%" in rows
    assert "GhostCacher 2 4 prompts that were found 60% 63% +5%" in rows
    assert "GhostCacher 2 4 tokens computed 2,000 1,500 -25%" in rows


@pytest.mark.parametrize(
    ("figure", "real", "simulated", "far"),
    [("p50_s", 1.0, 1.19, False), ("p50_s", 1.0, 1.21, True), ("computed_p50_s", 1.0, 0.79, True),
     ("found_p50_s", 1.0, 1.21, True), ("found_p50_s", math.nan, math.nan, False), ("tokens", 100, 79, True),
     ("mean_s", 1.0, 2.0, False)],
)  # fmt: skip
def test_far_is_a_fifth_in_medians_and_tokens(figure: str, real: float, simulated: float, far: bool) -> None:
    side = calibration.Side(1.0, 0.5, 2.0, 1.2, 0.5, 1_000)
    found = calibration.Compared(2, "", 4, side._replace(**{figure: real}), side._replace(**{figure: simulated}))
    assert found.far == far


@pytest.mark.parametrize(("engines", "blocks"), [(2, 875), (5, 350)])
def test_fleet_holds_most_documents_however_many_engines_it_has(engines: int, blocks: int) -> None:
    """Seven eighths of 40 documents of 50 blocks of 32 tokens."""
    chosen = calibration.arguments(["--documents", "40", "--document-tokens", "1600"])
    options = calibration.options_of(chosen, "model", "redis://x", engines)
    assert [option.num_blocks for option in options] == [blocks] * engines
    assert len({option.name for option in options}) == engines


@pytest.mark.parametrize("sizes", ["1", "2,x", ""])
def test_wrong_sizes_are_refused(sizes: str) -> None:
    with pytest.raises(calibration.ConfigError, match="--engines: expected numbers from 2"):
        calibration.arguments(["--engines", sizes])


class Named:
    """An engine as far as its place is concerned."""

    def __init__(self, name: str, cores: str | None) -> None:
        self.options = EngineOptions(model="m", name=name, cores=cores)


@pytest.mark.parametrize(
    ("cpu", "places", "cores", "own", "together"),
    [
        (True, ["0", "1"], [0, 1], [0, 1], [0]),
        (True, ["0", "1", "0"], [0, 1, 0], [0, 1], [0, 2]),
        (True, ["2", "0,1", "0,1"], [0, 1, 1], [0, 1], [1, 2]),
        (True, [None, None, None], [0, 0, 0], [0], [0, 1, 2]),
        (False, [None, None], [0, 1], [0, 1], [0]),
    ],
)
def test_engines_are_measured_by_the_cores_on_which_they_are(
    monkeypatch: pytest.MonkeyPatch,
    cpu: bool,
    places: list[str | None],
    cores: list[int],
    own: list[int],
    together: list[int],
) -> None:
    """Those that are bound to no core share all of them; on GPUs each has its own."""
    monkeypatch.setattr(simulated_engines, "is_cpu_build", lambda: cpu)
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
    first, second = calibration.each_request(calibration.Asked("round robin", 1, 2, questions, real, run))
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
    both = enumerate(zip(real, runs, strict=True))
    found = calibration.compared([calibration.Asked("in turns", 1, order, questions, *each) for order, each in both])
    assert (found.engines, found.policy, found.clients) == (1, "in turns", 1)
    assert (found.real.p50_s, found.real.mean_s) == (5.0, 6.0)
    assert (found.simulated.p50_s, found.simulated.mean_s) == pytest.approx((1.009, 3.5 / 3 + 0.009))
    assert (found.real.tokens, found.simulated.tokens) == (3 * 33, 3 * 65)


def test_found_prompts_are_told_apart_from_computed_ones() -> None:
    """What an engine had at least half of counts as found; the rest does not move its median."""
    side = calibration.side_of([(0.1, 100, 20), (0.3, 100, 49), (2.0, 100, 50), (4.0, 100, 100), (3.0, 100, 100)])
    assert (side.found_p50_s, side.computed_p50_s, side.p50_s, side.mean_s) == (0.1, 3.0, 2.0, 1.88)
    assert (side.found_part, side.tokens) == (0.4, 319)
    assert math.isnan(calibration.side_of([(1.0, 100, 100)]).found_p50_s)


@pytest.mark.parametrize(("clients", "found"), [("4", [4]), ("4,each", [4, 3]), ("each", [3])])
def test_clients_are_so_many_or_one_for_each_engine(clients: str, found: list[int]) -> None:
    """Caches are the same for all of them, with room for what the most of them run at once."""
    chosen = calibration.arguments(["--clients", clients])
    assert calibration.clients_of(chosen, 3) == found
    needed = (max(found) // 2 + 1) * (1536 + 256) // 32
    assert {option.num_blocks for option in calibration.options_of(chosen, "m", "redis://x", 3)} == {max(168, needed)}


@pytest.mark.parametrize("clients", ["0", "4,all", ""])
def test_wrong_clients_are_refused(clients: str) -> None:
    with pytest.raises(calibration.ConfigError, match="--clients: expected numbers from 1, or each"):
        calibration.arguments(["--clients", clients])


def test_no_rounds_are_refused() -> None:
    with pytest.raises(calibration.ConfigError, match="--rounds: expected 1 or more, got 0"):
        calibration.arguments(["--rounds", "0"])


def test_figures_of_a_fleet_are_told() -> None:
    fleet, routed = (
        FleetSpec(3, WorkerSpec(Profile(arrival_s=each)), Cores((0, 1, 0), (1.0, 0.9), (1.0, 0.45)))
        for each in (0.02, 0.03)
    )
    told = calibration.describe(fleet, routed)
    assert told.startswith("3 engines: 10,000 tokens/s, 20.0 ms before (30.0 ms through the router)")
    assert told.endswith("at a time on cores of their own: 1.00, 0.90; on the same ones: 1.00, 0.45")
