"""A request that may go to a hosted provider: decided once it is parsed, before any worker is looked for.

What goes to a provider takes the same path as what goes to a worker (`WorkerExchange`), on connections of its own. It
is sent as the provider's room has written it, never goes on to a worker, and its answer is passed on whatever it says:
429 and 529 carry a time after which clients come back. What no worker takes may go to a provider, too, where settings
and the request allow that.
"""

from __future__ import annotations

from collections.abc import Awaitable

from ghostcacher_router.http.exchanges.later import later
from ghostcacher_router.http.exchanges.worker_exchange import WorkerExchange
from ghostcacher_router.http.protocol.cors import PROVIDER_ID
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.http.protocol.response_head import ResponseHead
from ghostcacher_router.http.proxy_ports import Client, ProviderPlacement, Providers
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_router.types import Body, NoWorker, Outcome, Placement, RequestShape
from ghostcacher_router.upstreams.response_receiver import Sink
from ghostcacher_router.upstreams.worker_connection import WorkerConnection
from ghostcacher_router.upstreams.worker_pools import Pools

FALL_BACK = frozenset({404, 429, 503})
"""What is said where no worker serves a model, where too many requests wait already, and where none is ready."""


class ProviderExchange(WorkerExchange):
    """One request of one client, answered by a worker or by a provider. Loop only."""

    __slots__ = ("_call", "_providers")

    def __init__(
        self,
        proxy: ProxyState,
        client: Client,
        head: RequestHead,
        body: Body,
        received_at: float,
        providers: Providers,
    ) -> None:
        super().__init__(proxy, client, head, body, received_at)
        self._providers = providers
        self._call: ProviderPlacement | None = None
        """The request as a provider gets it; None for one that workers answer."""

    @property
    def _pools(self) -> Pools:
        return super()._pools if self._call is None else self._providers.pools

    def _parsed(self, shape: RequestShape | Awaitable[RequestShape]) -> None:
        if isinstance(shape, RequestShape):
            call = self._providers.call(self._head, shape, self._body)
            if call is not None:
                self._shape = shape
                self._to_provider(call)
                return
        super()._parsed(shape)

    def _to_provider(self, call: ProviderPlacement | Awaitable[ProviderPlacement | None] | None) -> None:
        if self._trace is not None:
            self._trace.deciding(self._proxy.clock())
        if isinstance(call, Awaitable):
            self._task = later(lambda: call, self._to_provider, self._not_placed)
            return
        if call is None:
            super()._give_up()
            return
        self._call = call
        self._body = b""
        self._placed(call)

    def _send(self, connection: WorkerConnection, placement: Placement) -> None:
        call = self._call
        if call is None:
            super()._send(connection, placement)
        else:
            if self._trace is not None:
                self._trace.sent(placement, self._proxy.clock())  # The provider is not told: no trace leaves.
            self._begin(connection, placement, call.head, call.body)

    def response_head(self, head: ResponseHead, length: int | None, *, whole: bool) -> tuple[bytes, Sink]:
        lines, sink = super().response_head(head, length, whole=whole)
        if self._call is not None:
            sink = self._call.tapped(sink, head, plain=self.plain)
            if head.request_id is not None:
                lines = b"%b%b: %b\r\n\r\n" % (lines[:-2], PROVIDER_ID, head.request_id)
            self._call.body = b""  # It is not sent again, and an answer may take minutes.
        return lines, sink

    def _not_placed(self, exc: Exception) -> None:
        no_worker = isinstance(exc, NoWorker) and exc.status in FALL_BACK and not self._attempts.excluded
        call = self._providers.fallback(self._head, self._shape, self._body) if no_worker else None
        if call is None:
            super()._not_placed(exc)
        else:
            self._to_provider(call)

    def _give_up(self) -> None:
        call = self._providers.fallback(self._head, self._shape, self._body)
        if call is None:
            super()._give_up()
        else:
            self._attempts.gave_up()
            self._to_provider(call)

    def _turns_away(self, status: int, placement: Placement) -> bool:
        return self._call is None and super()._turns_away(status, placement)

    def _refused(self, error: str, reason: str) -> None:
        call = self._call
        if call is None:
            super()._refused(error, reason)
            return
        message = f"the provider {call.worker} did not answer: {error}"
        self._refuse(Refusal(502, message, code="bad_gateway", retry_after_s=1), Outcome.REFUSED)

    def _fail(self, status: int, message: str, *, code: str) -> None:
        if self._call is not None:
            message = message.replace("the worker", f"the provider {self._call.worker}", 1)
        super()._fail(status, message, code=code)
