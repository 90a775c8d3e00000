"""Two SGLang engines of two ranks each, pages of 64: every rank pulls its share, and all agree on how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.fleet import Fleet, running
from tests.e2e.ranks import FAULTS, RANKS, check_fault_of_one_rank, check_record_of_every_rank
from tests.e2e.sglang import assert_right, engine, engine_marks

pytestmark = engine_marks(900)

PAGE = 64
PATIENT = {"lease_ttl_s": 40.0, "lookup_deadline_ms": 10_000.0, "redis_timeout_s": 10.0}


@pytest.fixture(scope="module")
def fleet(model: Path, log_dir: Path) -> Iterator[Fleet]:
    options = engine(tp=RANKS, page_tokens=PAGE, chunk_tokens=512)
    with running(model, {"a": options, "b": options}, log_dir=log_dir, connector=PATIENT) as fleet:
        fleet.prime("b", "a")
        yield fleet


@pytest.mark.parametrize("tokens", [PAGE + 1, 700])
def test_every_rank_pulls_its_share(fleet: Fleet, tokens: int) -> None:
    """A prefix pulled by two ranks gives the answer of a full recompute, and both ranks' transfers are counted."""
    prompt = fleet.document(tokens)
    fleet.compute("a", prompt)
    counters = fleet.counters("b")

    pulled = fleet.client("b").complete(prompt, max_tokens=8)

    assert pulled.cached_tokens == (tokens - 1) // PAGE * PAGE
    assert counters.hits() == (tokens - 1) // PAGE
    assert counters.grown("gc_rdma_transfers_total", outcome="done") == RANKS
    assert_right(fleet, "b", pulled, prompt)


def test_record_describes_every_rank(fleet: Fleet) -> None:
    """Peers see one endpoint a rank, each with memory and an incarnation of its own."""
    check_record_of_every_rank(fleet)


@pytest.mark.parametrize("fault", FAULTS)
def test_failure_on_one_rank_is_a_failure_on_all(fleet: Fleet, fault: str) -> None:
    """When rank 1 finds its pages invalid, rank 0's good copies are not used: all is computed, rightly."""
    check_fault_of_one_rank(fleet, fault, lambda *what: assert_right(fleet, *what))
