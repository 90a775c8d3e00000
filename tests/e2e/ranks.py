"""What engines of two ranks are tested for, whatever the engine: a fault of one rank is a miss on all."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from ghostcacher_connector.core import schema
from ghostcacher_connector.core.types import WorkerRecord
from tests.e2e.fleet import DIRECTORY_S, FORGED_TTL_S, Fleet, until

RANKS = 2
FAULTS = ("another incarnation", "no such agent")
BLOCKS = 6


def check_fault_of_one_rank(fleet: Fleet, fault: str, assert_right: Callable[..., None]) -> None:
    """Spoil rank 1 of a's record; b must compute, rightly, though its rank 0 could pull. Leaves the fleet whole."""
    tokens = BLOCKS * fleet.block_tokens("a") + 1
    prompts = [fleet.document(tokens) for _ in range(8)]
    for prompt in prompts:
        fleet.compute("a", prompt, max_tokens=1)
    record = fleet.record("a")
    assert record is not None

    fleet.engines["a"].pause()  # it would put its own record back
    try:
        key = schema.worker_key(record.namespace, "a")
        fleet.raw(lambda client: client.set(key, _without_rank_1(record, fault), ex=FORGED_TTL_S))
        until(lambda: _is_refused(fleet, prompts.pop(), assert_right), "rank 1 of b to look at the directory")
    finally:
        fleet.engines["a"].resume()

    until(lambda: fleet.record("a") == record, "the owner's own record, put back by its renewal")
    fleet.prime("b", "a")


def check_record_of_every_rank(fleet: Fleet) -> None:
    """Assert that peers see one endpoint a rank, each with memory and an incarnation of its own."""
    record = fleet.record("a")
    assert record is not None
    assert [endpoint.rank for endpoint in record.ranks] == list(range(RANKS))
    assert len({endpoint.incarnation for endpoint in record.ranks}) == RANKS


def _without_rank_1(record: WorkerRecord, fault: str) -> bytes:
    changes = {"another incarnation": {"incarnation": bytes(16)}, "no such agent": {"agent_metadata": b"garbage"}}
    broken = msgspec.structs.replace(record.ranks[1], **changes[fault])
    return schema.pack_record(msgspec.structs.replace(record, ranks=(record.ranks[0], broken)))


def _is_refused(fleet: Fleet, prompt: list[int], assert_right: Callable[..., None]) -> bool:
    """Ask b; assert that the answer is right; say whether one rank pulled, the other could not, and neither counted."""
    time.sleep(DIRECTORY_S)
    counters = fleet.counters("b")
    answer = fleet.client("b").complete(prompt, max_tokens=8)
    pulled = counters.hits()
    if not pulled:
        assert counters.grown("gc_rdma_transfers_total", outcome="done") == 1, counters.reasons()
        assert counters.grown("gc_rdma_transfers_total") == RANKS
        reasons = counters.reasons()
        # Of the computation that a prompt before was compared with: an engine's statistics may come late.
        reasons.pop("not_indexed", None)
        assert sum(reasons.values()) == BLOCKS, counters.reasons()
        assert answer.cached_tokens in (0, None)
    assert_right("b", answer, prompt)
    return not pulled
