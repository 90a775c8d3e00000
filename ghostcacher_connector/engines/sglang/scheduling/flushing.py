"""Carries out orders to flush on an engine with one rank. Driven by the scheduler's thread alone.

SGLang's tree gives up whole leaves that nobody uses, and no page that somebody names; it is emptied as a whole, once
the engine has no request (`Scheduler.flush_cache`). So the scope "all" is the one that is taken:

1. at once: nothing that was published can be read by peers any more, the host tier is emptied, and nothing is shared
   until 2, since what is computed now may stand on what was flushed;
2. when SGLang idles: its own tree is emptied, and the order is answered once more.

Several ranks would have to do so in one and the same pass, and only one of them hears of orders: engine_rank.py says
that such a worker takes none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ghostcacher_connector.core.coordination.flushes import FlushOrder, FlushReport, TierDropped
from ghostcacher_connector.core.types import FlushScope, Tier

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler

logger = logging.getLogger(__name__)

NOT_TAKEN = "nothing was dropped: SGLang's tree gives up no single pages, and takes the scope all alone"
BUSY = (
    "peers read nothing of it any more; the engine's own requests may until it has none: then SGLang empties its tree"
)


class TreeFlusher:
    """See the module's docstring."""

    def __init__(
        self,
        allocator: Any,
        withdraw: Callable[[], int],
        amend: Callable[[FlushOrder, TierDropped], None],
        *,
        page_count: int,
        page_bytes: int,
        has_host_tier: bool,
    ) -> None:
        """allocator: SGLang's. page_count: of its pool, the one for padding included. page_bytes: of one page.

        withdraw: has nothing shared until the tree was emptied; returns how many blocks the host tier held. amend: told
        when the tree was emptied.
        """
        self._allocator, self._withdraw, self._amend = allocator, withdraw, amend
        self._page_count, self._page_bytes = page_count, page_bytes
        self._has_host_tier = has_host_tier
        self._waiting: list[FlushOrder] = []

    def drop(self, order: FlushOrder) -> FlushReport:
        """Drop what can be dropped at once; return what that was."""
        if order.scope != FlushScope.ALL.value:
            return FlushReport((TierDropped(Tier.DEVICE, 0, 0, error=NOT_TAKEN),))
        held = self._withdraw()
        self._waiting.append(order)
        dropped = [TierDropped(Tier.DEVICE, 0, 0, complete=False, error=BUSY)]
        if self._has_host_tier:
            dropped.append(self._dropped(Tier.HOST, held))
        return FlushReport(tuple(dropped))

    def idle(self, scheduler: Scheduler) -> None:
        """The engine has nothing to compute: empty its tree, if that was ordered and no request is left."""
        if not self._waiting or not scheduler.is_fully_idle():
            return
        used = self._page_count - 1 - int(self._allocator.available_size()) // int(self._allocator.page_size)
        if not scheduler.flush_cache():
            return
        orders, self._waiting = self._waiting, []
        for order in orders:
            self._amend(order, self._dropped(Tier.DEVICE, used))
            used = 0  # of a second order nothing was left

    def _dropped(self, tier: Tier, blocks: int) -> TierDropped:
        return TierDropped(tier, blocks, blocks * self._page_bytes)
