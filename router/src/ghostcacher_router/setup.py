"""Parts of a router as its settings say: limits on what it takes from clients, and hosted providers."""

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


def limits_of(settings: RouterSettings, *, takes_turns: bool) -> Limits:
    """Return the limits on connections, requests and waits. takes_turns: whether requests wait for their turn."""
    return Limits(
        head_bytes_max=settings.head_bytes_max,
        body_bytes_max=settings.body_bytes_max,
        buffered_bytes_max=settings.buffered_bytes_max,
        connections_max=settings.connections_max,
        allowed_origins=settings.allowed_origins,
        connections_per_address_max=settings.connections_per_address_max,
        client_header_s=settings.client_header_timeout_s,
        client_body_s=settings.client_body_timeout_s,
        keep_alive_s=settings.keep_alive_timeout_s,
        connect_s=settings.connect_timeout_s,
        worker_silence_s=settings.read_timeout_s,
        upstream_idle_s=settings.upstream_idle_s,
        retries_max=settings.retries_max,
        takes_turns=takes_turns,
        section_hints=settings.section_hints,
        kv_transfer_from_clients=settings.kv_transfer_from_clients,
        prefill_tokens_min=settings.prefill_tokens_min,
        prefill_s=settings.prefill_timeout_s,
    )


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
