"""One request that the router itself sends to a server, and its answer. A connection of its own, closed with it."""

from __future__ import annotations

import asyncio

from ghostcacher_router.http.protocol.request_head import RequestHead, worker_request
from ghostcacher_router.http.protocol.response_head import ResponseHead
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_router.types import Endpoint
from ghostcacher_router.upstreams.response_receiver import Sink

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
    # Not a kept connection: one that turns out closed would look like a server that is gone.
    connection = await proxy.pools.connect(endpoint)
    pool, answer = connection.pool, _Answer(answer_bytes_max, no_body=head.method == "HEAD")
    try:
        request = worker_request(head, pool.prefix, pool.host_line, own_lines, len(body))
        connection.begin(answer, request, body, proxy.clock())
        status = await answer.status
    except BaseException:
        connection.abort()
        raise
    return status, bytes(answer.body)


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
        self._fail(error)

    def response_bad(self, error: str) -> None:
        self._fail(error)

    def _take(self, data: bytes) -> None:
        self.body += data[: self._bytes_max - len(self.body)]

    def _fail(self, error: str) -> None:
        if not self.status.done():
            self.status.set_exception(OSError(error))
