"""The metrics of the endpoint picker."""

from __future__ import annotations

from collections.abc import Callable

from ghostcacher_router.metrics.instruments import Counter


class PickerMetrics:
    """What gateways asked, and what became of it. put: adds an instrument to the page."""

    def __init__(self, put: Callable[[Counter], Counter]) -> None:
        self.picks = put(
            Counter(
                "gc_epp_picks_total",
                "Requests of gateways, by how a worker was picked: by the prompt (prompt), or by load since the body "
                "could not be read (unread), was too long (long), was not sent (bodyless) or waited for something that "
                "came too late (late); or not at all (refused).",
                ["how"],
            )
        )
        self.moved = put(
            Counter(
                "gc_epp_moved_total",
                "Requests that the gateway sent to another endpoint than the first of those that it was given.",
            )
        )
        self.prefills = put(
            Counter("gc_epp_prefills_total", "Requests for which a second worker was named, to compute the prompt.")
        )
