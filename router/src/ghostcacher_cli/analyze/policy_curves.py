"""What caches of other policies than LRU would hit: the tiers' own policies, run on the trace at each size.

A long trace is sampled by block (SHARDS): of every n blocks one is kept, chosen by a hash of its number, and the cache
is n times smaller. The sampled blocks of a prompt still follow each other as its blocks do. What a sample gets wrong,
it gets wrong for LRU in much the same way; LRU is known exactly, so what is reported is the exact number of LRU and the
difference to it in the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import numpy as np

from ghostcacher_cli.analyze.stack_distance import HitCurve, hit_curve
from ghostcacher_cli.analyze.traces import Trace
from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.retention.tier_retention import TierRetention
from ghostcacher_connector.core.types import SectionType

LRU = "lru"
POLICIES: Sequence[str] = ("lru",)
USES_MAX = 60_000
"""Uses of blocks that are run through a policy at each size; some microseconds each."""


class PolicyCurve(NamedTuple):
    """What caches of one policy hit."""

    policy: str
    """Its name, as in the settings of the tiers."""
    saved: Sequence[int]
    """Prompt tokens that need not be computed, at each size; shape (sizes,)."""


class Sample(NamedTuple):
    """Some of the blocks of a trace."""

    one_in: int
    """Of so many blocks one is kept; 1: all of them."""
    requests: Sequence[Sequence[int]]
    """The kept blocks of each request, in the order of its prompt."""


def sample_of(trace: Trace, uses_max: int = USES_MAX) -> Sample:
    """Return as many of the blocks as give no more uses than that, or all of them."""
    blocks = np.frombuffer(trace.blocks, np.uint32)
    one_in = max(1, -(-len(blocks) // uses_max))
    kept = _hashed(blocks) % np.uint64(one_in) == 0
    starts = np.frombuffer(trace.starts, np.uint64).astype(np.int64)
    return Sample(
        one_in,
        [blocks[start:end][kept[start:end]].tolist() for start, end in pairwise(starts)],
    )


def lru_of(sample: Sample, trace: Trace) -> HitCurve:
    """Return what LRU hits in a sample."""
    starts = [0, *accumulate(map(len, sample.requests))]
    return hit_curve(list(chain.from_iterable(sample.requests)), starts, trace.tokens_of)


def policy_curve(policy: str, trace: Trace, sample: Sample, sizes: Sequence[int], exact: HitCurve) -> PolicyCurve:
    """Return what a policy hits at each size, in blocks. exact: what LRU hits in the whole trace."""
    if policy == LRU:
        return PolicyCurve(policy, [exact.at(size) for size in sizes])
    of_lru = lru_of(sample, trace)
    saved = []
    for size in sizes:
        capacity = max(1, round(size / sample.one_in))
        gained = (simulated(policy, trace, sample, capacity) - of_lru.at(capacity)) * sample.one_in
        saved.append(min(max(0, exact.at(size) + gained), exact.most))
    return PolicyCurve(policy, saved)


def simulated(policy: str, trace: Trace, sample: Sample, capacity_blocks: int) -> int:
    """Return the tokens of a sample that a cache of so many blocks serves under a policy."""
    tokens_of = trace.tokens_of
    now = 0.0
    settings = RetentionSettings(**SETTINGS, eviction_policy=policy)  # type: ignore[arg-type]
    tier = TierRetention(settings, capacity_blocks, clock=lambda: now)
    saved = 0
    for blocks, arrived_s in zip(sample.requests, trace.arrived_s, strict=True):
        now = arrived_s
        parent: bytes | None = None
        whole = True
        for depth, block in enumerate(blocks):
            key = block.to_bytes(4, "little")
            if tier.touch(key):
                saved += tokens_of[block] if whole else 0
            else:
                whole = False
                section = min(SectionType(trace.section_of[block]), SectionType.SESSION)
                traits = BlockTraits(section, depth, tokens_of[block], 1)
                if not tier.insert(key, parent, traits).admitted:
                    break
            parent = key
    return saved


SETTINGS = {
    **{f"{name}_ttl_s": None for name in ("doc", "session")},
    **{f"{name}_budget": 1.0 for name in ("tools", "sys", "doc", "session")},
}
"""Nothing but capacity ends the life of a block, so that policies are compared and nothing else."""


def _hashed(numbers: np.ndarray) -> np.ndarray:
    """Return 64 well-mixed bits of each number (the last steps of SplitMix64)."""
    mixed = numbers.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
