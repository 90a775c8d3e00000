"""Two engines of two ranks each: every rank pulls its own share, and a block that one rank lacks is missing on all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness import core_shares
from tests.e2e.fleet import BLOCK_TOKENS, Fleet, running
from tests.e2e.ranks import FAULTS, RANKS, check_fault_of_one_rank, check_record_of_every_rank

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

LEASE_S = 40.0
"""Outlasts the time for which an owner is stopped below, on a busy machine, too."""

PATIENT = {"lease_ttl_s": LEASE_S, "lookup_deadline_ms": 30_000.0, "redis_timeout_s": 10.0}
"""Four spinning ranks on two cores can keep a lookup waiting for more than a second: here that must not be a miss."""


@pytest.fixture(scope="module")
def fleet(model: Path, log_dir: Path) -> Iterator[Fleet]:
    options = {
        "extra_args": ("--tensor-parallel-size", str(RANKS)),
        "cores": "|".join(core_shares(RANKS)),
        "dtype": "bfloat16",  # As most models are served; each answer here has a reference of its very shape.
    }
    with running(model, {"a": options, "b": options}, log_dir=log_dir, connector=PATIENT) as fleet:
        fleet.prime("b", "a")
        yield fleet


@pytest.mark.parametrize("tokens", [33, 64, 700])
def test_every_rank_pulls_its_share(fleet: Fleet, tokens: int) -> None:
    """A prefix pulled by two ranks gives the answer of a full recompute, and both ranks' transfers are counted."""
    prompt = fleet.document(tokens)
    fleet.compute("a", prompt)
    counters = fleet.counters("b")

    pulled = fleet.client("b").complete(prompt, max_tokens=8)

    assert pulled.cached_tokens == (tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert counters.hits() == (tokens - 1) // BLOCK_TOKENS
    assert counters.grown("gc_rdma_transfers_total", outcome="done") == RANKS
    fleet.assert_right("b", pulled, prompt)


def test_record_describes_every_rank(fleet: Fleet) -> None:
    """Peers see one endpoint a rank, each with memory and an incarnation of its own."""
    check_record_of_every_rank(fleet)


@pytest.mark.parametrize("fault", FAULTS)
def test_failure_on_one_rank_is_a_failure_on_all(fleet: Fleet, fault: str) -> None:
    """When rank 1 finds its copy of a block invalid, rank 0's good copy of it is not used: all is computed, rightly."""
    check_fault_of_one_rank(fleet, fault, fleet.assert_right)
