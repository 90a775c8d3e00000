"""The providers of one router: which requests go there, as what, and over which connections."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.dns.resolver import Resolver
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.providers.choice import ProviderChoice
from ghostcacher_router.providers.provider_call import ProviderCall
from ghostcacher_router.providers.request_lines import leaving_lines, provider_request
from ghostcacher_router.types import Body, RequestShape
from ghostcacher_router.upstreams.worker_pools import Pools

IDLE_S = 30.0
"""Of a connection kept for later. Providers keep theirs for a minute or more, and a new one costs three round trips."""


class Providers:
    """The port of the HTTP proxy to providers. Loop only. pools: connections to them, apart from those to workers."""

    def __init__(
        self,
        choice: ProviderChoice,
        *,
        limits: Limits,
        connect_s: float,
        tls: ssl.SSLContext,
        resolver: Resolver,
        admin_token: str | None,
        clock: Callable[[], float],
    ) -> None:
        """limits: those of the proxy, of which connections here have their own times. connect_s: TLS included.

        admin_token: of the router, which no provider ever gets.
        """
        self._choice = choice
        self._admin_token = admin_token
        own = limits._replace(connect_s=connect_s, upstream_idle_s=IDLE_S)
        self.pools = Pools(own, clock(), tls, resolver)

    def __repr__(self) -> str:
        return f"Providers({self._choice!r})"

    def call(self, head: RequestHead, shape: RequestShape, body: Body) -> ProviderCall | Awaitable[ProviderCall] | None:
        """Return a request as its provider gets it, at once or to be awaited; None for one that workers answer.

        Raises NoWorker for one that names a provider that there is not.
        """
        provider = self._choice.of(head, shape.model)
        if provider is None:
            return None
        endpoint = self._choice.endpoints[provider]
        lines = leaving_lines(provider, head, self._admin_token)
        return ProviderCall(provider, endpoint, provider_request(head, endpoint, lines, len(body)), body)


def provider_tls(ca_file: str | None) -> ssl.SSLContext:
    """Return how connections to providers are encrypted: certificates and names are always checked.

    ca_file: certificates in PEM that are trusted beside the system's. Raises ConfigError.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(cadata=Path(ca_file).read_text())
        except (OSError, ValueError) as exc:
            raise ConfigError(f"provider_ca_file: expected certificates in PEM, got {ca_file!r}: {exc}") from None
    return context
