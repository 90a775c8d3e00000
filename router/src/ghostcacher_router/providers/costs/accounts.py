"""Counts what goes to providers, what it used, and what that costs by the price table."""

from __future__ import annotations

from typing import NamedTuple

from ghostcacher_router.metrics.instruments import OTHER
from ghostcacher_router.metrics.provider_metrics import ProviderMetrics
from ghostcacher_router.providers.choice import Provider
from ghostcacher_router.providers.costs.prices import PriceTable, cost_of
from ghostcacher_router.providers.costs.usage import Usage

NO_STATUS = "none"


class Sending(NamedTuple):
    """What is counted of a request when it is sent."""

    model: str | None
    """As it names it."""
    changed: bool = False
    """Whether something was put into its body."""
    instead: bool = False
    """Whether it was for own workers, none of which takes it."""


class Accounts:
    """The accounts of one router. Loop only."""

    def __init__(self, metrics: ProviderMetrics, prices: PriceTable) -> None:
        self._metrics, self._prices = metrics, prices

    def __repr__(self) -> str:
        return f"Accounts({self._prices!r})"

    def sent(self, provider: Provider, sending: Sending) -> None:
        """Note that a request is sent."""
        self._metrics.bodies.inc(provider.value, "changed" if sending.changed else "as_it_came")
        if sending.instead:
            self._metrics.fallbacks.inc(provider.value)

    def answered(self, provider: Provider, model: str | None, status: int | None, usage: Usage | None) -> None:
        """Note how a request has ended. usage: None where the answer did not say."""
        metrics, name = self._metrics, provider.value
        metrics.requests.inc(name, NO_STATUS if status is None else status)
        if usage is None:
            return
        found = None if model is None else self._prices.find(model)
        label = OTHER if found is None else found[0]
        written = usage.written_tokens + usage.written_long_tokens
        for kind, count in (
            ("input", usage.input_tokens),
            ("cache_read", usage.read_tokens),
            ("cache_write", written),
            ("output", usage.output_tokens),
        ):
            metrics.tokens.add(count, name, label, kind)
        if found is not None:
            cost = cost_of(usage, found[1])
            metrics.usd.add(cost.total, name)
            metrics.saved_usd.add(max(0.0, cost.saved), name)
            metrics.cache_write_usd.add(max(0.0, cost.writing), name)
