"""Hosted providers, as a router's settings say."""

from __future__ import annotations

import time

from ghostcacher_router.config import RouterSettings
from ghostcacher_router.dns.resolver import Resolver
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.providers.bodies.breakpoints import parse_ttl
from ghostcacher_router.providers.choice import Provider, ProviderChoice, parse_fallbacks, parse_models, parse_upstream
from ghostcacher_router.providers.costs.accounts import Accounts
from ghostcacher_router.providers.costs.prices import read_prices
from ghostcacher_router.providers.providers import Providers, provider_tls
from ghostcacher_router.providers.signing import BedrockSigner


def make_providers(
    settings: RouterSettings, limits: Limits, metrics: RouterMetrics, resolver: Resolver
) -> Providers | None:
    """Return the hosted providers beside own workers; None when there are none. Raises ConfigError."""
    if not settings.upstreams:
        return None
    upstreams = [parse_upstream(text, "upstreams") for text in settings.upstreams]
    prices = read_prices(settings.provider_prices)
    metrics.gauge(
        "gc_provider_prices_timestamp_seconds",
        "The day from which the price table is, as seconds since 1970.",
        lambda: {"": prices.as_of_s},
    )
    choice = ProviderChoice(
        upstreams,
        parse_models(settings.provider_models, "provider_models"),
        parse_fallbacks(settings.provider_fallbacks, "provider_fallbacks"),
    )
    bedrock = choice.endpoints.get(Provider.BEDROCK) if settings.bedrock_sign else None
    return Providers(
        choice,
        limits=limits,
        connect_s=settings.provider_connect_timeout_s,
        tls=provider_tls(settings.provider_ca_file),
        resolver=resolver,
        admin_token=settings.admin_token,
        ttl=parse_ttl(settings.provider_ttl, "provider_ttl") if settings.provider_cache else None,
        accounts=Accounts(metrics.providers, prices),
        signer=None if bedrock is None else BedrockSigner(bedrock, settings.bedrock_region),
        clock=time.monotonic,
    )
