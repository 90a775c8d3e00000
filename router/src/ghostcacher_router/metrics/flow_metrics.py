"""The metrics of flow control. Tenants and priorities are no labels: clients could make up as many as they like."""

from __future__ import annotations

from collections.abc import Callable

from ghostcacher_router.metrics.instruments import Counter, Histogram

REFUSALS = ("full", "displaced", "timeout", "deadline")
"""full: the queue was. displaced: another request took its place in a full queue. timeout: it waited too long for its
turn. deadline: its own had passed."""

WAIT_MS_BOUNDS = (1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000, 300_000)


class FlowMetrics:
    """What waited for its turn. put_counter, put_histogram: add an instrument to the page."""

    def __init__(
        self, put_counter: Callable[[Counter], Counter], put_histogram: Callable[[Histogram], Histogram]
    ) -> None:
        self.wait_ms = put_histogram(
            Histogram(
                "gc_router_queue_wait_ms",
                "How long requests waited in the router for their turn that got it, in ms; those that needed not wait "
                "are not counted.",
                WAIT_MS_BOUNDS,
            )
        )
        self.refusals = put_counter(
            Counter(
                "gc_router_queue_refusals_total",
                "Requests that got no turn: the queue was full, another took their place in it, they waited too long, "
                "or their deadline had passed.",
                ["reason"],
                known=[REFUSALS],
            )
        )
