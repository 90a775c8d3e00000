"""What caches of other policies than LRU would hit: the tiers' own policies, run on the trace at each size.

A long trace is sampled by block (SHARDS): of every n blocks one is kept, chosen by a hash of its number, and the cache
is n times smaller. The sampled blocks of a prompt still follow each other as its blocks do. What a sample gets wrong,
it gets wrong for LRU in much the same way; LRU is known exactly, so what is reported is the exact number of LRU and the
difference to it in the sample. On traces of conversations that came within about half a point of a run of all blocks
for n = 6, and within one and a half for n = 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from ghostcacher_cli.analyze.stack_distance import HitCurve, hit_curve
from ghostcacher_cli.analyze.traces import Trace
from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.retention.retention_settings import PolicyName, RetentionSettings
from ghostcacher_connector.core.retention.tier_retention import TierRetention
from ghostcacher_connector.core.types import SectionType

LRU = "lru"
POLICIES: Sequence[str] = (LRU, *(name for name in get_args(PolicyName) if name != LRU))
"""What can be compared: LRU first, which is always known."""
USES_MAX = 20_000
"""Uses of blocks that are run through a policy at each size: each takes up to 0.1 ms."""
KEY_BYTES = 4

SETTINGS = {
    **{f"{name}_ttl_s": None for name in ("doc", "session")},
    **{f"{name}_budget": 1.0 for name in ("tools", "sys", "doc", "session")},
}
"""Nothing but capacity ends the life of a block, so that policies are compared and nothing else."""


class Sample(NamedTuple):
    """Some of the blocks of a trace."""

    one_in: int
    """Of so many blocks one is kept; 1: all of them."""
    requests: Sequence[Sequence[int]]
    """The kept blocks of each request, in the order of its prompt."""


class PolicyRuns:
    """Runs policies on a trace, or on a sample of it."""

    def __init__(self, trace: Trace, exact: HitCurve, *, uses_max: int = USES_MAX) -> None:
        """exact: what LRU hits in the whole trace. uses_max: of blocks, about, that are run at each size."""
        self._trace = trace
        self._exact = exact
        self._sample = sample_of(trace, uses_max)
        starts = [0, *accumulate(map(len, self._sample.requests))]
        self._lru = hit_curve(list(chain.from_iterable(self._sample.requests)), starts, trace.tokens_of)

    @property
    def one_in(self) -> int:
        """Return of how many blocks one is looked at."""
        return self._sample.one_in

    def saved(self, policy: str, blocks: int) -> int:
        """Return the prompt tokens that a cache of so many blocks serves under a policy."""
        if policy == LRU:  # a run would say the same, and take longer
            return self._exact.at(blocks)
        if blocks == 0:
            return 0
        if blocks >= len(self._trace.tokens_of):
            return self._exact.most
        capacity = max(1, round(blocks / self.one_in))
        gained = run_policy(policy, self._trace, self._sample, capacity) - self._lru.at(capacity)
        return min(max(0, self._exact.at(blocks) + gained * self.one_in), self._exact.most)


def sample_of(trace: Trace, uses_max: int) -> Sample:
    """Return as many of the blocks as give about so many uses, or all of them."""
    blocks = np.frombuffer(trace.blocks, np.uint32)
    one_in = max(1, -(-len(blocks) // uses_max))
    kept = _mixed(blocks) % np.uint64(one_in) == 0
    spans = pairwise(trace.starts)
    return Sample(one_in, [blocks[start:end][kept[start:end]].tolist() for start, end in spans])


def run_policy(policy: str, trace: Trace, sample: Sample, capacity_blocks: int) -> int:
    """Return the tokens of a sample that a cache of so many blocks serves under a policy."""
    now = 0.0
    settings = RetentionSettings(**SETTINGS, eviction_policy=policy)  # type: ignore[arg-type]
    tier = TierRetention(settings, capacity_blocks, clock=lambda: now)
    saved = 0
    for blocks, arrived_s in zip(sample.requests, trace.arrived_s, strict=True):
        now = arrived_s
        saved += _serve(tier, trace, blocks)
    return saved


def _serve(tier: TierRetention, trace: Trace, blocks: Sequence[int]) -> int:
    """Let a request use its blocks, and leave those in the tier that it takes; return the tokens that it served."""
    saved = 0
    missing = []
    parent: bytes | None = None
    for depth, block in enumerate(blocks):
        key = block.to_bytes(KEY_BYTES, "little")
        # What a prompt ends with is what the next one of the conversation begins with.
        section = min(SectionType(trace.section_of[block]), SectionType.SESSION)
        tokens = trace.tokens_of[block]
        traits = BlockTraits(section, depth, tokens, size_bytes=1, prompt_blocks=len(blocks))
        if tier.touch(key, traits):
            # All before it is there, too: a tier never gives up a block before those that follow it.
            saved += tokens
        else:
            missing.append((key, parent, traits))
        parent = key
    for key, before, traits in missing:
        # Without the block before it, none that follows serves a prompt.
        if not tier.insert(key, before, traits).admitted:
            break
    return saved


def _mixed(numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """Return 64 well-mixed bits of each number (the last steps of SplitMix64)."""
    mixed = numbers.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
