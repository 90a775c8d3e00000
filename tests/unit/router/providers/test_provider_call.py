"""A request at a provider, as far as it can be seen from outside."""

from __future__ import annotations

from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.providers.choice import Provider
from ghostcacher_router.providers.costs.accounts import Accounts, Sending
from ghostcacher_router.providers.costs.prices import read_prices
from ghostcacher_router.providers.provider_call import ProviderCall
from ghostcacher_router.types import Endpoint


def test_call_does_not_show_the_key_that_it_carries() -> None:
    """Whatever logs it."""
    accounts = Accounts(RouterMetrics().providers, read_prices(None))
    head = b"POST / HTTP/1.1\r\nauthorization: k\r\n\r\n"
    at = Endpoint("h", 443, True, "")
    call = ProviderCall(Provider.OPENAI, at, head, b"{}", Sending(None), accounts)
    assert repr(call) == "ProviderCall(openai, body_bytes=2)"
