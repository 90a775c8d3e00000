"""The plain score: type priority, times uses, times tokens, divided by age."""

from __future__ import annotations

from collections.abc import Mapping

from ghostcacher_connector.core.retention.base import BlockKey, BlockTraits, TierBlock
from ghostcacher_connector.core.types import SectionType

AGE_S_MIN = 1e-3
"""Younger blocks count as of this age."""
EXACT_USES = 16
"""Blocks that were used more often share queues by powers of two."""


class SeedScore:
    """``type_priority * hit_count * token_count / age_hours``, the least first. To have come counts as the first hit.

    All of one type, size and count of uses keep their order as time passes, the oldest first, so they are one queue.
    """

    def __init__(self, priorities: Mapping[SectionType, float]) -> None:
        self._priorities = priorities

    def asked(self, key: BlockKey, traits: BlockTraits | None, now: float) -> None:
        pass

    def offered(self, block: TierBlock, now: float) -> float:  # noqa: ARG002
        # A score of age 0 has no limit.
        return float("inf")

    def came(self, block: TierBlock, now: float) -> None:  # noqa: ARG002
        self._place(block, 1)

    def used(self, block: TierBlock, now: float) -> None:  # noqa: ARG002
        self._place(block, block.hits + 2)

    def left(self, block: TierBlock, now: float) -> None:
        pass

    def worth(self, block: TierBlock, now: float) -> float:
        age_h = max(now - block.came_at, AGE_S_MIN) / 3_600
        return self._priorities[block.section] * (block.hits + 1) * block.tokens / age_h

    def _place(self, block: TierBlock, uses: int) -> None:
        block.queue = (block.tokens, uses if uses <= EXACT_USES else EXACT_USES + uses.bit_length())
        block.rank = block.came_at
