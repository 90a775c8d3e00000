"""Two engines of two ranks each: every rank pulls its own share, and a block that one rank lacks is missing on all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from benchmarks.harness import core_shares
from ghostcacher_connector import schema
from ghostcacher_connector.types import WorkerRecord
from tests.e2e.fleet import BLOCK_TOKENS, Fleet, running, until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

RANKS = 2
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
    record = fleet.record("a")
    assert record is not None
    assert [endpoint.rank for endpoint in record.ranks] == list(range(RANKS))
    assert len({endpoint.incarnation for endpoint in record.ranks}) == RANKS


@pytest.mark.parametrize("fault", ["another incarnation", "no such agent"])
def test_failure_on_one_rank_is_a_failure_on_all(fleet: Fleet, fault: str) -> None:
    """When rank 1 cannot vouch for a block, rank 0's good copy of it is not used: all is computed, rightly."""
    prompts = [fleet.document(6 * BLOCK_TOKENS + 1) for _ in range(8)]
    for prompt in prompts:
        fleet.compute("a", prompt, max_tokens=1)
    record = fleet.record("a")
    assert record is not None

    fleet.engines["a"].pause()  # it would put its own record back
    try:
        key = schema.worker_key(record.namespace, "a")
        fleet.raw(lambda client: client.set(key, _without_rank_1(record, fault), keepttl=True))
        until(lambda: _is_refused(fleet, prompts.pop()), "rank 1 of b to look at the directory")
    finally:
        fleet.engines["a"].resume()

    until(lambda: fleet.record("a") == record, "the owner's own record, put back by its renewal")
    fleet.prime("b", "a")


def _without_rank_1(record: WorkerRecord, fault: str) -> bytes:
    changes = {"another incarnation": {"incarnation": bytes(16)}, "no such agent": {"agent_metadata": b"garbage"}}
    broken = msgspec.structs.replace(record.ranks[1], **changes[fault])
    return schema.pack_record(msgspec.structs.replace(record, ranks=(record.ranks[0], broken)))


def _is_refused(fleet: Fleet, prompt: list[int]) -> bool:
    """Ask b; assert that the answer is right; say whether one rank pulled, the other could not, and neither counted."""
    counters = fleet.counters("b")
    answer = fleet.client("b").complete(prompt, max_tokens=8)
    fleet.assert_right("b", answer, prompt)
    if counters.hits():
        return False
    assert counters.grown("gc_rdma_transfers_total", outcome="done") == 1, counters.reasons()
    assert counters.grown("gc_rdma_transfers_total") == RANKS
    assert counters.misses() == 6
    assert answer.cached_tokens in (0, None)
    return True
