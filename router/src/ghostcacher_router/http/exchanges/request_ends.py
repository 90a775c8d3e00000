"""A request that workers are to answer, and how it ends other than with a worker's whole answer.

    the client leaves                                  everything that is under way is let go of
    it cannot be parsed or placed, or nobody takes it  the client gets an error (`_refuse`)
    the answer breaks off once it has begun            the connection ends so that nothing looks whole (`_fail`)
    the router stops                                   one or the other

In each case it ends once (`_stop`), and is counted once.
"""

from __future__ import annotations

import asyncio
import logging

from ghostcacher_router.http.exchanges.attempts import Attempts
from ghostcacher_router.http.protocol.event_stream import EventStream
from ghostcacher_router.http.protocol.refusal import ROUTER_STOPS, Refusal
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.http.proxy_ports import Client
from ghostcacher_router.http.proxy_state import CLIENT_LEFT, ProxyState
from ghostcacher_router.http.request_trace import RequestTrace, without_traceparent
from ghostcacher_router.types import Body, Outcome, Placement, Turn
from ghostcacher_router.upstreams.worker_connection import WorkerConnection

logger = logging.getLogger(__name__)


class EndingRequest:
    """What a request holds, and its ends. Loop only.

    request_id: the client's own, or one that the router made.
    """

    __slots__ = (
        "_began_at",
        "_body",
        "_client",
        "_connection",
        "_ends",
        "_events",
        "_head",
        "_held",
        "_held_at",
        "_over",
        "_placement",
        "_proxy",
        "_responding",
        "_status",
        "_task",
        "_trace",
        "_tried",
        "_turn",
        "request_id",
    )

    def __init__(self, proxy: ProxyState, client: Client, head: RequestHead, body: Body, received_at: float) -> None:
        """received_at: when its last byte was read; loop clock, s."""
        self._proxy = proxy
        self._client = client
        self._head = head
        self._body = body
        self._began_at = received_at
        self._tried: Attempts | None = None
        """What has failed so far; None while nothing has."""
        self._task: asyncio.Task[None] | None = None
        """Parses, places or connects; None while none of these has to be waited for."""
        self._placement: Placement | None = None
        """Where it is, or is on its way to."""
        self._connection: WorkerConnection | None = None
        """On which it was sent."""
        self._status: int | None = None
        """Of the head of the answer; None while none has come."""
        self._held: bytearray | None = None
        """What has come of an answer that is held back, since another worker may have a better one."""
        self._held_at = 0.0
        """When its head came; loop clock, s."""
        self._responding = False
        """Whether the client has got a part of the answer."""
        self._ends = False
        """Whether the framing of the answer says where it ends; else only the end of the connection does."""
        self._events: EventStream | None = None
        """Follows the answer if it is a stream of events, so that it can be ended with an error."""
        self._over = False
        self._turn = Turn(received_at, len(body)) if proxy.limits.takes_turns else None
        """Its turn, where there is flow control."""
        self.request_id = head.request_id or proxy.next_request_id()
        self._trace: RequestTrace | None = None
        if proxy.tracer is not None:
            self._trace = RequestTrace(proxy.tracer, head, self.request_id, received_at)
            self._head = without_traceparent(head)

    def __repr__(self) -> str:
        what = f"{self._head.method} {self._head.path}"
        return f"{type(self).__name__}({what}, worker={self._worker}, status={self._status})"

    @property
    def _attempts(self) -> Attempts:
        if self._tried is None:
            self._tried = Attempts()
        return self._tried

    @property
    def _worker(self) -> str | None:
        return None if self._placement is None else self._placement.worker

    @property
    def waits_for_turn(self) -> bool:
        return self._turn is not None and self._turn.waits

    def cancel(self) -> None:
        """The client left: whatever is under way ends at once, so that the engine stops computing."""
        if not self._over:
            worker, placement = self._worker, self._placement
            self._stop(Outcome.CANCELLED)
            self._count(CLIENT_LEFT, worker, placement)

    def expire(self) -> None:
        """The worker has been silent for too long."""
        if not self._over:
            self._fail(504, "the worker did not answer in time", code="worker_timeout")

    def router_stops(self) -> None:
        """The router ends before the answer does, for which no worker is to blame."""
        if not self._over:
            self._end(ROUTER_STOPS, Outcome.CANCELLED)

    def _refuse(self, refusal: Refusal, outcome: Outcome = Outcome.FAILED) -> None:
        """End the request with an error; no response of a worker has begun."""
        self._stop(outcome)
        if self._trace is not None:
            self._trace.ended(refusal.status, self._proxy.clock(), error=refusal.message)
        self._client.exchange_refused(refusal)

    def _fail_unexpectedly(self, what: str) -> None:
        logger.exception("%s: unexpected error: %r", what, self)
        self._fail(500, "the router failed", code="internal_error")

    def _fail(self, status: int, message: str, *, code: str) -> None:
        """End the request with an error of its worker."""
        self._end(Refusal(status, message, code=code), Outcome.FAILED)

    def _end(self, refusal: Refusal, outcome: Outcome) -> None:
        """End the request with an error, however much of its response has been passed on.

        A response that has begun gets no end that looks like one; a stream of events gets one that tells of the error.
        """
        if not self._responding:
            self._status = None
            self._refuse(refusal, outcome)
            return
        worker, placement = self._worker, self._placement
        self._stop(outcome)
        assert self._status is not None, self
        self._count(self._status, worker, placement)
        last = b"" if self._events is None else self._events.ending(self._head.path, refusal)
        self._client.cut(last, reset=not self._ends)

    def _count(self, status: int, worker: str | None, placement: Placement | None) -> None:
        if self._trace is not None:
            self._trace.ended(status, self._proxy.clock())
        proxy = self._proxy
        if not proxy.access_log:
            proxy.meter.answered(self._head.path, status)
            return
        proxy.answered(
            self._client.peer,
            self._head,
            status,
            self.request_id,
            worker=worker,
            placement=placement,
            began_at=self._began_at,
            queued_s=None if self._turn is None else self._turn.queued_s,
        )

    def _stop(self, outcome: Outcome) -> None:
        """Let go of everything. Nothing may come after it."""
        assert not self._over, self
        self._over = True
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        placement, self._placement = self._placement, None
        if placement is not None:
            self._left(placement, outcome, self._status)

    def _left(self, placement: Placement, outcome: Outcome, status: int | None) -> None:
        """Note that an attempt at a worker is over."""
        placement.ended(outcome, status)
        if self._trace is not None:
            self._trace.left(placement, outcome, status, self._proxy.clock())
