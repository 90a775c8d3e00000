"""Policies run on a trace: exact where all blocks are looked at, and close where a sample is."""

from __future__ import annotations

import random
from typing import get_args

import pytest
from hypothesis import given

from ghostcacher_cli.analyze import policy_curves
from ghostcacher_cli.analyze.policy_curves import LRU, POLICIES, PolicyRuns, run_policy, sample_of
from ghostcacher_cli.analyze.stack_distance import HitCurve, hit_curve
from ghostcacher_cli.analyze.traces import Trace
from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.retention.retention_settings import PolicyName
from ghostcacher_connector.core.retention.tier_retention import TierRetention
from tests.unit.cli.analyze.support import longest, prompts, trace_of

OTHERS = [name for name in POLICIES if name != LRU]


def curve_of(trace: Trace) -> HitCurve:
    return hit_curve(trace.blocks, trace.starts, trace.tokens_of)


@pytest.fixture(scope="module")
def documents() -> Trace:
    """Questions on documents of 12 blocks, of which some are much more wanted than others, behind a common block."""
    source = random.Random(5)
    wanted = source.choices(range(200), [1 / (rank + 1) for rank in range(200)], k=1500)
    return trace_of([[0, *([1 + document] * 12), 1000 + number] for number, document in enumerate(wanted)])


def test_every_policy_of_the_tiers_is_compared() -> None:
    """LRU first: it is always known."""
    assert POLICIES[0] == LRU
    assert sorted(POLICIES) == sorted(get_args(PolicyName)) == ["hit-density", "lru", "seed-score"]


def test_policy_is_told_what_blocks_are_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an engine: without it, it would learn of those alone that it has kept."""
    asked: list[tuple[int, int | None]] = []

    class Noting(TierRetention):
        def touch(self, key: bytes, traits: BlockTraits | None = None) -> bool:
            found = super().touch(key, traits)
            if not found and traits is not None:
                asked.append((traits.depth, traits.prompt_blocks))
            return found

    monkeypatch.setattr(policy_curves, "TierRetention", Noting)
    trace = trace_of([[1, 2], [3, 4, 5]])
    run_policy("hit-density", trace, sample_of(trace, 10**9), 5)
    assert asked == [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]


@given(prompts)
def test_lru_that_is_run_hits_what_stack_distances_say(requests: list[list[int]]) -> None:
    """At every size at which the longest prompt fits: the tiers' own LRU is the one that is computed."""
    trace = trace_of(requests)
    exact, sample = curve_of(trace), sample_of(trace, 10**9)
    assert sample.one_in == 1
    for capacity in range(max(1, longest(trace)), len(trace.tokens_of) + 2):
        assert run_policy(LRU, trace, sample, capacity) == exact.at(capacity)


def test_sample_keeps_the_same_blocks_of_all_requests(documents: Trace) -> None:
    """About one in so many, in the order of their prompts."""
    sample = sample_of(documents, len(documents.blocks) // 5)
    assert sample.one_in in (5, 6)
    kept = {block for blocks in sample.requests for block in blocks}
    assert 0.8 < len(kept) * sample.one_in / len(documents.tokens_of) < 1.2
    for request, blocks in enumerate(sample.requests):
        assert blocks == [block for block in documents.blocks_of(request) if block in kept]


@pytest.mark.parametrize("policy", OTHERS)
def test_sample_comes_close_to_all_blocks(documents: Trace, policy: str) -> None:
    """Within a few points of what a run of all blocks gives, at sizes at which LRU hits little and much."""
    exact = curve_of(documents)
    whole, part = PolicyRuns(documents, exact, uses_max=10**9), PolicyRuns(documents, exact, uses_max=5000)
    assert (whole.one_in, part.one_in) == (1, 5)
    for blocks in (150, 600):
        difference = whole.saved(policy, blocks) - part.saved(policy, blocks)
        assert abs(difference) < 0.05 * sum(documents.prompt_tokens)


@pytest.mark.parametrize("policy", POLICIES)
def test_cache_that_holds_all_saves_all(documents: Trace, policy: str) -> None:
    """And none saves more, or less than nothing."""
    exact = curve_of(documents)
    runs = PolicyRuns(documents, exact, uses_max=2000)
    assert runs.saved(policy, len(documents.tokens_of)) == exact.most
    assert runs.saved(policy, 0) == 0
    assert 0 <= runs.saved(policy, 1) <= runs.saved(policy, 300) <= exact.most


def test_lru_is_never_a_guess(documents: Trace) -> None:
    exact = curve_of(documents)
    assert PolicyRuns(documents, exact, uses_max=500).saved(LRU, 77) == exact.at(77)
