"""Has this rank copy to its host tier what SGLang's tree will evict next. Driven by the scheduler's thread alone.

SGLang evicts the leaves that were used least lately. Here the order is that of the prompts that came: the pages that
were published or asked for longest ago are copied, once fewer pages are free than the window, which is as on vLLM
(engines/vllm/scheduling/eviction_window.py). The tier is that of one rank: engine_rank.py refuses several.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from ghostcacher_connector.config import Settings
from ghostcacher_connector.engines.sglang.engine_rank import EngineRank
from ghostcacher_connector.slots import SlotTable
from ghostcacher_connector.tiers.host_tier import HostTier
from ghostcacher_connector.transfer.copier import Copier

PROMPTS = 64
"""Recent prompts of which the largest one counts."""

VISITS_MAX = 1024
"""Pages that one pass looks at."""


class PageCopying:
    """Chooses the pages, and follows their copies."""

    def __init__(
        self, tier: HostTier, copier: Copier, table: SlotTable, allocator: Any, *, page_count: int, threshold: float
    ) -> None:
        """allocator: SGLang's. page_count: of its pool. threshold: share of it beyond which pages are copied."""
        self.tier = tier
        self._copier = copier
        self._table = table
        self._allocator = allocator
        self._least = math.ceil((1.0 - threshold) * page_count)
        self._prompts: deque[int] = deque(maxlen=PROMPTS)
        self._bump()

    def arrived(self, page_count: int) -> None:
        """Note the size of a prompt."""
        self._prompts.append(page_count)

    def begin_pass(self, *, sharing: bool) -> None:
        """Take note of copies that have ended, and begin others. sharing: whether what is in the tree may be used."""
        for result in self._copier.poll():
            self.tier.reported(result.copy_id, result.valid.tolist())
        self.tier.record_metrics()
        if not sharing or not self.tier.wanted:
            return
        free = int(self._allocator.available_size()) // int(self._allocator.page_size)
        short = max(self._least, *self._prompts, 0) - free
        if short <= 0:
            return
        soon = self.tier.oldest(min(short, VISITS_MAX))
        orders = self.tier.order([page for page in soon if page in self.tier.wanted])
        self._bump()  # before anything is written into what was given up for these copies
        for order in orders:
            self._copier.submit(order)

    def clear(self) -> int:
        """Forget and withdraw everything that was copied; return how many pages that were."""
        held = self.tier.clear()
        self._bump()
        return held

    def _bump(self) -> None:
        if self.tier.ledger.bumps_waiting:
            self._table.bump(*self.tier.ledger.take_bumps())


def make_copying(engine: EngineRank, allocator: Any, settings: Settings) -> PageCopying | None:
    """Return what fills the host tier of a rank; None without one, or where nothing is published."""
    if engine.runtime.copier is None or engine.fleet is None:
        return None
    tier = HostTier(
        engine.fleet.publisher,
        engine.recorder,
        worker=engine.worker,
        first_slot=engine.page_count,
        slot_count=engine.table.slot_count - engine.page_count,
        ranks=1,
        block_bytes=engine.page_bytes,
        retention=settings,
    )
    return PageCopying(
        tier,
        engine.runtime.copier,
        engine.table,
        allocator,
        page_count=engine.page_count,
        threshold=settings.hbm_swap_threshold,
    )
