"""The providers of one router: which requests go there, as what, and over which connections."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.dns.resolver import Resolver
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.providers.bodies.json_places import Unclear
from ghostcacher_router.providers.bodies.rewriting import BYTES_MAX, rewritten
from ghostcacher_router.providers.choice import Fallback, Provider, ProviderChoice, model_in_path
from ghostcacher_router.providers.costs.accounts import Accounts, Sending
from ghostcacher_router.providers.fallback import allows, fallback_lines, with_model
from ghostcacher_router.providers.provider_call import ProviderCall
from ghostcacher_router.providers.request_lines import AUTHORIZATION, leaving_lines, provider_request
from ghostcacher_router.providers.signing import BedrockSigner
from ghostcacher_router.types import Body, RequestShape
from ghostcacher_router.upstreams.worker_pools import Pools

Made = TypeVar("Made")

NOW_BYTES_MAX = 64 << 10
"""The longest body that is written anew at once, which takes some milliseconds; longer ones in a thread."""

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
        ttl: Mapping[SectionType, str] | None,
        accounts: Accounts,
        signer: BedrockSigner | None,
        clock: Callable[[], float],
    ) -> None:
        """limits: those of the proxy, of which connections here have their own times. connect_s: TLS included.

        admin_token: of the router, which no provider ever gets. ttl: for how long providers are asked to keep what they
        cache, by section; None: bodies go as they came. signer: signs what goes to Bedrock without a key; None: none.
        """
        self._choice, self._fallbacks = choice, choice.fallbacks
        self._admin_token = admin_token
        self._ttl, self._accounts, self._signer = ttl, accounts, signer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gc-provider")
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
        signed = provider is Provider.BEDROCK and self._signer is not None
        return self._soon(lambda: self._call(provider, head, shape.model, body), body, later=signed)

    def fallback(
        self, head: RequestHead, shape: RequestShape, body: Body
    ) -> ProviderCall | Awaitable[ProviderCall | None] | None:
        """Return a request that no worker takes as a provider gets it, at once or to be awaited; None: it stays."""
        found = None if shape.model is None else self._fallbacks.get(shape.model)
        if found is None or not allows(head, found, self._admin_token) or len(body) > BYTES_MAX:
            return None
        return self._soon(lambda: self._fall_back(found, head, body), body)

    def _soon(self, make: Callable[[], Made], body: Body, *, later: bool = False) -> Made | Awaitable[Made]:
        """Return what is made, in a thread where that takes long. later: it does, whatever the body."""
        if later or (len(body) > NOW_BYTES_MAX and self._ttl is not None):
            return asyncio.get_running_loop().run_in_executor(self._thread, make)
        return make()

    async def close(self) -> None:
        """Close every connection."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        await self.pools.close()

    def _call(self, provider: Provider, head: RequestHead, model: str | None, body: Body) -> ProviderCall:
        lines = leaving_lines(provider, head, self._admin_token)
        return self._written(provider, head, lines, model or model_in_path(head.path), body)

    def _fall_back(self, fallback: Fallback, head: RequestHead, body: Body) -> ProviderCall | None:
        try:
            given = with_model(body if isinstance(body, bytes) else body.join(), fallback.model)
        except Unclear:
            return None
        lines = fallback_lines(head, fallback, self._admin_token)
        return self._written(fallback.provider, head, lines, fallback.model, given, instead=True)

    def _written(
        self,
        provider: Provider,
        head: RequestHead,
        lines: list[bytes],
        model: str | None,
        body: Body,
        *,
        instead: bool = False,
    ) -> ProviderCall:
        endpoint, sent = self._choice.endpoints[provider], body
        if self._ttl is not None and len(body) <= BYTES_MAX:
            sent = rewritten(provider, head, model, body if isinstance(body, bytes) else body.join(), self._ttl)
        if provider is Provider.BEDROCK and self._signer is not None and not _has_key(lines):
            target = endpoint.path.encode() + head.target
            lines += self._signer.lines(endpoint, head.method, target, lines, sent)
        written = provider_request(head, endpoint, lines, len(sent))
        sending = Sending(model, changed=len(sent) != len(body), instead=instead)
        return ProviderCall(provider, endpoint, written, sent, sending, self._accounts)


def _has_key(lines: list[bytes]) -> bool:
    return any(line[: len(AUTHORIZATION) + 1].lower() == AUTHORIZATION + b":" for line in lines)


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
