"""Fleets that seeds make, with what fails in them: at each step all must hold. A failure names its seed.

python -c "from tests.support.seeded_fleets import run_case; run_case(SEED)"     # again, alone
"""

from __future__ import annotations

import random

import pytest

from ghostcacher_simulator.replay.replay import Ending
from tests.support.seeded_fleets import case_of, run_case

SEEDS = 2_000
CHUNK = 100
LOOKED_AT = 160
LONG_SEEDS = 20_000
LONG_CHUNK = 1_000


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_all_holds_in_every_fleet(first: int) -> None:
    for seed in range(first, first + CHUNK):
        run_case(seed)


@pytest.mark.soak
@pytest.mark.parametrize("chunk", range(LONG_SEEDS // LONG_CHUNK))
def test_all_holds_in_fleets_that_nobody_has_seen(chunk: int) -> None:
    """Other seeds each time: what it finds is named, and becomes a test of its own."""
    chance = random.SystemRandom()
    for _ in range(LONG_CHUNK):
        run_case(chance.randrange(1 << 48))


def test_seed_makes_the_same_fleet_and_the_same_run() -> None:
    assert case_of(7).failures == case_of(7).failures
    first, again = ([(each.request.request_id, each.ending, each.ttft_s) for each in run_case(7).served] for _ in "ab")
    assert first == again


def test_seeds_make_fleets_of_all_kinds() -> None:
    """Routers of the project and others, tiers, every kind of failure, and requests that end in every way but one."""
    cases = [case_of(seed) for seed in range(LOOKED_AT)]
    kinds = {"death", "redis", "flush", "link", "drain", "restart"}
    assert {failure.kind for case in cases for failure in case.failures} == kinds
    assert {case.entrant.key for case in cases} >= {"ghostcacher", "ghostcacher-routers", "plain", "oracle", "hashing"}
    assert {case.fleet.worker.host is not None for case in cases} == {True, False}
    assert len({case.fleet.workers for case in cases}) == 5
    served = [each for seed in range(CHUNK) for each in run_case(seed).served]
    assert {each.ending for each in served} == set(Ending) - {Ending.FAILED}
    assert any(each.queued_s and each.ending is Ending.ANSWERED for each in served)
