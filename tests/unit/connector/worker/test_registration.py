"""How ranks become one worker."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core.errors import FingerprintMismatch, ProtocolError
from ghostcacher_connector.core.types import RankEndpoint, Role, SlotMemory, Tier, WorkerRecord
from ghostcacher_connector.worker.owner import this_process
from ghostcacher_connector.worker.registration import Introduction, first_prefill_rate, worker_record


def rank(number: int, namespace: str = "n" * 32) -> Introduction:
    endpoint = RankEndpoint(
        rank=number,
        incarnation=bytes([number]) * 16,
        memories=(SlotMemory(Tier.DEVICE, 4, ()),),
        table=1,
        agent_name=f"a{number}",
        agent_metadata=b"",
        relay=None,
        host="h",
    )
    return Introduction(endpoint=endpoint, fingerprint={"tp": "2"}, namespace=namespace, flops_per_s=1e9)


def record(*ranks: Introduction) -> WorkerRecord:
    return worker_record(ranks, worker="w", role=Role.BOTH, http=None, block_tokens=16)


def test_record_has_the_ranks_in_order() -> None:
    """Whatever order they come in; rank 0 names the life of the worker."""
    made = record(rank(1), rank(0))
    assert [endpoint.rank for endpoint in made.ranks] == [0, 1]
    assert made.incarnation == rank(0).endpoint.incarnation


@pytest.mark.parametrize("numbers", [(), (1,), (0, 2), (0, 0)])
def test_ranks_that_do_not_add_up_are_refused(numbers: tuple[int, ...]) -> None:
    """One that is missing, or there twice."""
    with pytest.raises(ProtocolError, match="ranks"):
        record(*map(rank, numbers))


def test_record_names_the_process_that_speaks_for_the_worker() -> None:
    """So that no other process takes its name."""
    assert record(rank(0)).owner == this_process()


def test_ranks_that_differ_are_refused() -> None:
    """A rank with other weights or another layout is named."""
    with pytest.raises(FingerprintMismatch, match="rank 1"):
        record(rank(0), rank(1, "m" * 32))


def test_first_prefill_rate_counts_all_ranks() -> None:
    """Two FLOP a weight and token, shared by the ranks; never zero."""
    assert first_prefill_rate([rank(0), rank(1)], layers=2, hidden=100) == pytest.approx(2e9 / (2 * 12 * 2 * 100**2))
    assert first_prefill_rate([rank(0)], layers=1000, hidden=100_000) == 1.0
