"""One request that the router itself sends to a server, and its answer. A connection of its own, closed with it."""

from __future__ import annotations

import asyncio

from ghostcacher_router.http.protocol.request_head import RequestHead, worker_request
from ghostcacher_router.http.protocol.response_head import ResponseHead
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_router.types import Endpoint
from ghostcacher_router.upstreams.response_receiver import Sink
from ghostcacher_router.upstreams.worker_connection import WorkerConnection

BODY_BYTES_MAX = 8 << 10
"""What is kept of each answer; these are short."""


async def ask_server(
    proxy: ProxyState,
    endpoint: Endpoint,
    head: RequestHead,
    own_lines: bytes,
    body: bytes,
    *,
    answer_bytes_max: int = BODY_BYTES_MAX,
) -> tuple[int, bytes]:
    """Return status and body of the answer of one server. Raises OSError when it gives none.

    answer_bytes_max: what is kept of the body.
    """
    return await OwnRequest(proxy, answer_bytes_max=answer_bytes_max).ask(endpoint, head, own_lines, body)


class OwnRequest:
    """One such request, which may be given up while its answer is awaited. connection: None until one is made."""

    __slots__ = ("_answer", "_bytes_max", "_proxy", "connection")

    def __init__(self, proxy: ProxyState, *, answer_bytes_max: int) -> None:
        self._proxy, self._bytes_max = proxy, answer_bytes_max
        self._answer: _Answer | None = None
        self.connection: WorkerConnection | None = None

    def __repr__(self) -> str:
        return f"OwnRequest({self.connection!r})"

    async def ask(self, endpoint: Endpoint, head: RequestHead, own_lines: bytes, body: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer. Raises OSError when there is none. To be called once."""
        # Not a kept connection: one that turns out closed would look like a server that is gone.
        self.connection = connection = await self._proxy.pools.connect(endpoint)
        self._answer = answer = _Answer(self._bytes_max, no_body=head.method == "HEAD")
        pool = connection.pool
        try:
            request = worker_request(head, pool.prefix, pool.host_line, own_lines, len(body))
            connection.begin(answer, request, body, self._proxy.clock())
            status = await answer.status
        except BaseException:
            connection.abort()
            raise
        return status, bytes(answer.body)

    def give_up(self, error: OSError) -> None:
        """Have `ask` raise an error, unless the answer is there, or no connection is yet: making one is bounded."""
        if self._answer is not None:
            self._answer.fail(error)


class _Answer:
    """Gathers the answer of one server: a `ResponseReceiver`. status: of the answer, once it is whole."""

    plain = True
    switching = False

    def __init__(self, bytes_max: int, *, no_body: bool) -> None:
        self._bytes_max, self.no_body = bytes_max, no_body
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.body = bytearray()
        self._status = 0

    def response_head(self, head: ResponseHead, length: int | None, *, whole: bool) -> tuple[bytes, Sink]:  # noqa: ARG002
        self._status = head.status
        return b"", self._take

    def response_first_byte(self) -> None: ...

    def response_begins(self) -> None: ...

    def response_end(self, *, clean: bool) -> None:  # noqa: ARG002
        if not self.status.done():
            self.status.set_result(self._status)

    def response_lost(self, error: str, *, began: bool) -> None:  # noqa: ARG002
        self.fail(OSError(error))

    def response_bad(self, error: str) -> None:
        self.fail(OSError(error))

    def _take(self, data: bytes) -> None:
        self.body += data[: self._bytes_max - len(self.body)]

    def fail(self, error: OSError) -> None:
        if not self.status.done():
            self.status.set_exception(error)
