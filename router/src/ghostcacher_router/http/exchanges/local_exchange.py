"""A request that the router answers itself: one task, bounded in time, cancelled when the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ghostcacher_router.http.protocol.local_response import LocalRequest, LocalResponse
from ghostcacher_router.http.protocol.refusal import ROUTER_STOPS, Refusal
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.http.proxy_ports import Client
from ghostcacher_router.http.proxy_state import CLIENT_LEFT, ProxyState
from ghostcacher_router.types import Body, Endpoint

logger = logging.getLogger(__name__)

Handler = Callable[[LocalRequest], Awaitable[LocalResponse]]
"""Returns the response, within a bounded time; never raises for what a client sent."""


class LocalExchange:
    """A request that `LocalEndpoints` matched, while it is answered; an `Exchange`."""

    __slots__ = ("_body", "_client", "_handle", "_head", "_proxy", "_task", "request_id")
    heard_bytes = 0
    """Nothing moves before the response is whole, which `worker_silence_s` bounds."""
    passed_bytes = 0
    waits_for_turn = False

    def __init__(
        self, proxy: ProxyState, client: Client, head: RequestHead, body: Body, handle: Handler | None = None
    ) -> None:
        """Make one. handle: answers the request; None: `LocalEndpoints` do."""
        self._handle = proxy.local.handle if handle is None else handle
        self._proxy = proxy
        self._client = client
        self._head = head
        self._body = body if isinstance(body, bytes) else body.join()
        self._task: asyncio.Task[None] | None = None
        self.request_id = head.request_id or proxy.next_request_id()

    def __repr__(self) -> str:
        return f"LocalExchange({self._head.method} {self._head.path})"

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._answer())

    def cancel(self) -> None:
        self._stop()
        self._proxy.answered(self._client.peer, self._head, CLIENT_LEFT, self.request_id)

    def expire(self) -> None:
        self._stop()
        self._client.exchange_refused(Refusal(504, "the router did not answer in time", code="timeout"))

    def is_at(self, worker: str, endpoint: Endpoint) -> bool:  # noqa: ARG002
        return False

    def check(self, now: float) -> None:
        """Nothing to see: it waits for no worker."""

    def worker_hangs(self) -> None: ...

    def router_stops(self) -> None:
        self._stop()
        self._client.exchange_refused(ROUTER_STOPS)

    def pause(self) -> None:
        """Nothing to hold back: the response is written at once."""

    def resume(self) -> None: ...

    async def _answer(self) -> None:
        head, client = self._head, self._client
        request = LocalRequest(head.method, head.path, head.query, head.headers, self._body, client.peer)
        try:
            response = (await self._handle(request)).with_headers(self._proxy.allowed_origins.headers(head))
            keep = client.may_keep_alive
            data = response.encode(self.request_id, keep_alive=keep, no_body=head.method == "HEAD")
        except Exception:
            logger.exception("%s: unexpected error", self)
            self._stop()
            client.exchange_refused(Refusal(500, "the router failed", code="internal_error"))
            return
        self._stop()
        self._proxy.answered(client.peer, head, response.status, self.request_id)
        client.write(data)
        client.exchange_done(keep)

    def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
