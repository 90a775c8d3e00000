"""Chains under the ids of answers that no router knows yet."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core.coordination.base import PromptChain
from ghostcacher_router.prefix_map import EarlyChains
from tests.support.index_parts import FakeClock


def chain(request: str, *, count: int = 2, last: bytes = b"z") -> PromptChain:
    counts = tuple(range(1, count + 1))
    hashes = [*(bytes([number % 250 + 1]) for number in counts[:-1]), last]
    return PromptChain(request, 100, counts, tuple(hashes))


def test_chain_is_given_once() -> None:
    early = EarlyChains()
    early.put("ns", chain("resp_1"))
    assert early.pop("resp_1") == ("ns", chain("resp_1"))
    assert early.pop("resp_1") is None


def test_other_requests_are_not_kept() -> None:
    """Their routers know them, or never will."""
    early = EarlyChains()
    early.put("ns", chain("gc-r1-7"))
    assert "chains=0" in repr(early)


@pytest.mark.parametrize("again", [2, 3])
def test_id_of_several_requests_is_nobodys(again: int) -> None:
    """Clients can name answers themselves. The same chain again, as after a preemption, is no other request."""
    early = EarlyChains()
    for _ in range(again):
        early.put("ns", chain("resp_same"))
    assert early.pop("resp_same") is not None
    for number in range(again):
        early.put("ns", chain("resp_both", last=bytes([number % 2])))
    assert early.pop("resp_both") is None


def test_early_chains_are_bounded() -> None:
    """In the hashes of all, and in time; the oldest go first."""
    clock = FakeClock()
    early = EarlyChains(hashes_max=100, ttl_s=10.0, clock=clock)
    for number in range(50):
        early.put("ns", chain(f"resp_{number}", count=9))
    assert "chains=10, hashes=100" in repr(early)
    assert early.pop("resp_39") is None
    assert early.pop("resp_40") is not None
    clock.now += 11.0
    assert early.pop("resp_45") is None
    early.put("ns", chain("resp_new"))
    assert "chains=1, hashes=3" in repr(early)
    early.put("ns", chain("resp_huge", count=200))
    assert "chains=0, hashes=0" in repr(early)
