"""What a fleet computes whose caches hold just what is asked for again, beside the policy that never makes a copy."""

from __future__ import annotations

from ghostcacher_simulator.load.generated import Documents, make_load
from ghostcacher_simulator.machines.workers import fleet_of
from ghostcacher_simulator.replay.replay import Run, replay
from ghostcacher_simulator.virtual_time import run_virtual
from tests.unit.simulator.replay.support import entrant

WORKERS, BLOCK_TOKENS = 3, 512
DOCUMENTS = Documents(requests=600)


def run_of(key: str, size: float, seed: int) -> Run:
    """Return a run at caches that hold so much of all documents."""
    held = int(size * DOCUMENTS.documents * DOCUMENTS.tokens / WORKERS / BLOCK_TOKENS)
    load = make_load(DOCUMENTS, seed=seed, block_tokens=BLOCK_TOKENS)
    return run_virtual(replay(entrant(key), load, fleet_of(WORKERS, held, 10_000.0)))


def mean_ttft_s(run: Run) -> float:
    return sum(served.ttft_s or 0.0 for served in run.served) / len(run.served)


def test_full_caches_compute_hardly_more_than_hashing_does_and_answer_sooner() -> None:
    """Copies that push out other documents for a shorter wait are not made."""
    hashing, own = ([run_of(key, 1.0, seed) for seed in (1, 2, 3)] for key in ("hashing", "ghostcacher"))
    assert sum(run.computed_tokens for run in own) < 1.04 * sum(run.computed_tokens for run in hashing)
    assert sum(map(mean_ttft_s, own)) < 0.9 * sum(map(mean_ttft_s, hashing))


def test_roomy_caches_are_full_of_copies() -> None:
    """Where each document has room twice, a copy costs nobody anything, and is made instead of waiting."""
    hashing, own = (run_of(key, 3.0, 1) for key in ("hashing", "ghostcacher"))
    assert own.pulls > DOCUMENTS.documents / 2
    assert own.computed_tokens < 1.01 * hashing.computed_tokens
    assert mean_ttft_s(own) < 0.9 * mean_ttft_s(hashing)
