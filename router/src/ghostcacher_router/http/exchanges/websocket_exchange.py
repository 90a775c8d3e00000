"""A request to switch to WebSocket, such as of /v1/realtime, and what follows when the worker does so.

Until then it is a request as any other: placed, tried elsewhere, answered with an error. Only a worker's 101 switches,
and only to WebSocket. From then on bytes are passed on in both directions as they come, neither side is read from while
the other does not keep up, and the end of either connection ends the other one. Neither is used for HTTP again.
"""

from __future__ import annotations

from ghostcacher_router.http.exchanges.worker_exchange import WorkerExchange
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.http.protocol.response_head import SWITCHING
from ghostcacher_router.http.proxy_ports import Client
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_router.types import Body


class WebSocketExchange(WorkerExchange):
    """One request to switch to WebSocket, and the conversation: in flight until that ends. Loop only."""

    __slots__ = ("_client_bytes",)
    switching = True

    def __init__(self, proxy: ProxyState, client: Client, head: RequestHead, body: Body, received_at: float) -> None:
        super().__init__(proxy, client, head, body, received_at)
        self._client_bytes = 0

    @property
    def passed_bytes(self) -> int:
        return self._client_bytes + self.heard_bytes

    def response_first_byte(self) -> None:
        # What a conversation begins with was not computed for a prompt: it is no time to first token.
        if self._status != SWITCHING:
            super().response_first_byte()

    def response_begins(self) -> None:
        super().response_begins()
        if self._status == SWITCHING and self._connection is not None:
            self._connection.blocked = self._client.hold
            self._client.switch(self._take)

    def _take(self, data: bytes) -> None:
        """Pass on what the client has sent."""
        if self._connection is not None:
            self._client_bytes += len(data)
            self._connection.write(data)
