"""The metrics of hosted providers."""

from __future__ import annotations

from collections.abc import Callable

from ghostcacher_router.metrics.instruments import Counter


class ProviderMetrics:
    """What went to providers, and what it cost. put: adds an instrument to the page."""

    def __init__(self, put: Callable[[Counter], Counter]) -> None:
        self.requests = put(
            Counter(
                "gc_provider_requests_total",
                "Requests that were sent to a hosted provider, by the status of its answer (none: it gave none).",
                ["provider", "status"],
            )
        )
        self.fallbacks = put(
            Counter(
                "gc_provider_fallbacks_total",
                "Those of them that were for own workers, none of which took them.",
                ["provider"],
            )
        )
        self.bodies = put(
            Counter(
                "gc_provider_bodies_total",
                "Their bodies, by whether something was put in for the provider's cache.",
                ["provider", "body"],
            )
        )
        self.tokens = put(
            Counter(
                "gc_provider_tokens_total",
                "Tokens by what answers of providers say; each token of a prompt is input, cache_read or cache_write. "
                "A model that the price table has not is called other.",
                ["provider", "model", "kind"],
            )
        )
        self.usd = put(
            Counter(
                "gc_provider_usd_total", "What answers of providers cost, by the price table, in USD.", ["provider"]
            )
        )
        self.saved_usd = put(
            Counter(
                "gc_saved_usd_total",
                "What the tokens that providers read from their caches would have cost more without, by the price "
                "table, in USD. Writing to the caches cost gc_provider_cache_write_usd_total.",
                ["provider"],
            )
        )
        self.cache_write_usd = put(
            Counter(
                "gc_provider_cache_write_usd_total",
                "What the tokens that providers wrote to their caches cost more than without, by the price table, in "
                "USD.",
                ["provider"],
            )
        )
