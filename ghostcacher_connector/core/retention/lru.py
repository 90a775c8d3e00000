"""Least recently used."""

from __future__ import annotations

from ghostcacher_connector.core.retention.base import BlockKey, TierBlock


class Lru:
    """The leaf that was used longest ago goes first."""

    def admits(self, key: BlockKey, now: float) -> bool:  # noqa: ARG002
        return True

    def came(self, block: TierBlock, now: float) -> None:
        block.rank = now

    def used(self, block: TierBlock, now: float) -> None:
        block.rank = now

    def left(self, block: TierBlock, now: float) -> None:
        pass

    def worth(self, block: TierBlock, now: float) -> float:  # noqa: ARG002
        return block.used_at
