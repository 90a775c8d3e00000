"""A request that is at a worker, and what is done when nothing comes back from there.

    the connection breaks           at a kept connection: once more, on a new one; else to another worker
    the host acknowledges nothing   the same
    the worker hangs                to another worker; a response that has begun ends

What a worker was sent it may have carried out, so it goes to another one only where that makes no difference to the
client (`repeatable.py`).
"""

from __future__ import annotations

from ghostcacher_router.http.attempts import HeldAnswer
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_router.http.repeatable import is_repeatable
from ghostcacher_router.types import Endpoint, Placement
from ghostcacher_router.upstreams.worker_connection import WorkerConnection


class AtWorker:
    """The side of a `WorkerExchange` that waits. Loop only."""

    __slots__ = ("_connection", "_head", "_held", "_placement", "_proxy", "_reason", "_reused", "_status")
    _proxy: ProxyState
    _head: RequestHead
    _placement: Placement | None
    """Where it is, or is on its way to."""
    _connection: WorkerConnection | None
    """On which it was sent."""
    _reused: bool
    """Whether that connection was kept from an earlier request."""
    _reason: str
    """Why it goes to another worker if no new connection can be made: a label of retries."""
    _status: int | None
    """Of the head of the answer; None while none has come."""
    _held: bytearray | None
    """What has come of an answer that is held back, since another worker may have a better one."""

    def is_at(self, worker: str, endpoint: Endpoint) -> bool:
        placement = self._placement
        return placement is not None and placement.worker == worker and placement.endpoint == endpoint

    def check(self, now: float) -> None:
        """See whether the request has arrived at the worker's host, which must not take longer than connecting."""
        connection = self._connection
        if connection is None or self._status is not None:
            return
        silent_s = connection.unacknowledged_s(now, self._proxy.limits.connect_s)
        if silent_s is not None:
            connection.pool.close_idle()
            self._let_go_of(connection)
            self._unanswered(f"its host has acknowledged nothing for {silent_s:.1f} s", "unreachable")

    def worker_hangs(self) -> None:
        """Have another worker answer, or end the response. Connecting is bounded, and goes on."""
        connection = self._connection
        if self._status is not None and self._held is None:
            self._fail(504, "the worker no longer answers", code="worker_timeout")
        elif connection is not None:
            self._let_go_of(connection)
            self._reused = False  # A new connection to it would lead no further.
            if self._held is None:
                self._unanswered("it answers nobody any more", "hung")
            else:
                self._turned_away(None)

    def _let_go_of(self, connection: WorkerConnection) -> None:
        self._connection = None
        connection.abort()

    def _unanswered(self, error: str, reason: str) -> None:
        """The request was sent, and nothing came back. reason: a label of retries."""
        if self._reused and self._placement is not None:
            self._reason = reason
            self._connect(self._placement)
        elif is_repeatable(self._head):
            self._refused(error, reason)
        else:
            why = f"{error}; it may have carried out the request, so no other was asked"
            self._fail(502, f"the worker did not answer: {why}", code="bad_gateway")

    def _connect(self, placement: Placement) -> None:
        """Send the request on a new connection."""
        raise NotImplementedError

    def _refused(self, error: str, reason: str) -> None:
        """Ask another worker."""
        raise NotImplementedError

    def _turned_away(self, answer: HeldAnswer | None) -> None:
        """Ask another worker, and pass on none of what is held. answer: None: it is not whole."""
        raise NotImplementedError

    def _fail(self, status: int, message: str, *, code: str) -> None:
        """End the request with an error, however much of its response has been passed on."""
        raise NotImplementedError
