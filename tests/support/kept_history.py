"""How one process has fared, as its dashboard keeps it, without a fleet."""

from __future__ import annotations

from ghostcacher_connector.core.dashboard_api import History
from ghostcacher_router.admin.dashboard.history import HistoryKeeper
from ghostcacher_router.metrics.catalog import RouterMetrics


class KeptHistory:
    """The history of some metrics: an interval is ended by each `sample`, at `now`, which is advanced by hand."""

    def __init__(self, metrics: RouterMetrics) -> None:
        self.now = 1000.0
        self._keeper = HistoryKeeper("r", metrics, {}, lambda _: 0, clock=lambda: self.now, wall_clock=lambda: self.now)

    def history(self, after: float | None) -> History:
        """As the dashboard."""
        return self._keeper.since(after)

    def sample(self) -> None:
        """As the dashboard."""
        self._keeper.sample()
