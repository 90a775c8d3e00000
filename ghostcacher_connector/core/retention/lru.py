"""Least recently used: for comparison, and for whoever wants to foresee what goes."""

from __future__ import annotations

from ghostcacher_connector.core.retention.base import BlockKey, BlockTraits, TierBlock


class Lru:
    """The leaf that was used longest ago goes first, and every newcomer is taken in."""

    def asked(self, key: BlockKey, traits: BlockTraits | None, now: float) -> None:
        pass

    def offered(self, block: TierBlock, now: float) -> float:  # noqa: ARG002
        return float("inf")

    def came(self, block: TierBlock, now: float) -> None:
        block.rank = now

    def used(self, block: TierBlock, now: float) -> None:
        block.rank = now

    def left(self, block: TierBlock, now: float) -> None:
        pass

    def worth(self, block: TierBlock, now: float) -> float:  # noqa: ARG002
        return block.used_at
