"""One request's life at the workers: parsed, placed, sent, answered; or placed again while nothing came back.

    start -> parse -> place -> connect or take a kept connection -> send -> response_head .. response_end
                       ^                                       |                     |
                       '-- refused, broke or hangs before any byte (at_worker.py) <--|
                       '-- 503 or 429, which is held (attempts.py) <-----------------'

There is a task only while a dispatcher has to wait or a connection is made. A connection that was kept and turns out
closed, or to lead nowhere, proves nothing: the same worker gets one more try, on a new connection.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable

from ghostcacher_router.http.at_worker import AtWorker
from ghostcacher_router.http.attempts import HELD_BYTES_MAX, OWN_FAULTS, TURNS_AWAY, Attempts, HeldAnswer
from ghostcacher_router.http.later import later
from ghostcacher_router.http.looks import looked_into
from ghostcacher_router.http.open_files import short_of_files
from ghostcacher_router.http.own_headers import own_lines
from ghostcacher_router.http.protocol.event_stream import EventStream
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.http.protocol.request_head import RequestHead, rank_line, worker_request
from ghostcacher_router.http.protocol.response_head import ResponseHead, client_head
from ghostcacher_router.http.proxy_ports import Client
from ghostcacher_router.http.proxy_state import CLIENT_LEFT, ProxyState
from ghostcacher_router.http.repeatable import is_repeatable
from ghostcacher_router.prompt import BadBody, shape_by_method
from ghostcacher_router.types import Ask, Body, NoWorker, Outcome, Placement, RequestShape
from ghostcacher_router.upstreams.response_receiver import Sink
from ghostcacher_router.upstreams.worker_connection import WorkerConnection

logger = logging.getLogger(__name__)

HTTP_ERROR = 400
_OVERLOADED = Refusal(503, "the router has no connection to a worker left", code="router_overloaded", retry_after_s=1)


class WorkerExchange(AtWorker):
    """One request of one client, answered by a worker: an `Exchange`, and the `ResponseReceiver`. Loop only.

    Tells the client's connection exactly once that it is over, unless it was cancelled by it.
    """

    __slots__ = (
        "_attempts",
        "_began_at",
        "_body",
        "_client",
        "_ends",
        "_events",
        "_keep",
        "_output_later",
        "_over",
        "_received_at",
        "_responding",
        "_sent",
        "_shape",
        "_task",
        "no_body",
        "plain",
        "request_id",
    )
    switching = False
    _shape: RequestShape

    def __init__(self, proxy: ProxyState, client: Client, head: RequestHead, body: Body, received_at: float) -> None:
        self._proxy = proxy
        self._client = client
        self._head = head
        self._body = body
        self._began_at = received_at
        self._received_at: float | None = received_at
        self._connection: WorkerConnection | None = None
        self._placement: Placement | None = None
        self._task: asyncio.Task[None] | None = None
        self._attempts = Attempts()
        self._held: bytearray | None = None
        self._events: EventStream | None = None
        self._ends = False
        self._status: int | None = None
        self._responding = False
        self._reused = False
        self._reason = "refused"
        self._sent = False
        self._keep = False
        self._output_later = False
        self._over = False
        self.no_body = head.method == "HEAD"
        self.plain = not head.http11
        self.request_id = head.request_id or proxy.next_request_id()

    def __repr__(self) -> str:
        return f"WorkerExchange({self._head.method} {self._head.path}, worker={self._worker}, status={self._status})"

    @property
    def heard_bytes(self) -> int:
        return 0 if self._connection is None else self._connection.passed_bytes

    passed_bytes = heard_bytes

    @property
    def _worker(self) -> str | None:
        return None if self._placement is None else self._placement.worker

    # the client's side

    def start(self) -> None:
        """Parse and place the request; it is sent before this returns, when there is nothing to wait for."""
        head = self._head
        try:
            target = head.target.decode("ascii")
            shape = shape_by_method(head.method, target, head.headers)
            self._begin(shape or self._proxy.parse(target, self._body, head.headers))
        except Exception as exc:
            self._end_for(exc)

    def cancel(self) -> None:
        """The client left: whatever is under way ends at once, so that the engine stops computing."""
        if not self._over:
            worker = self._worker
            self._stop(Outcome.CANCELLED)
            self._count(CLIENT_LEFT, worker)

    def expire(self) -> None:
        """The worker has been silent for too long."""
        if not self._over:
            self._fail(504, "the worker did not answer in time", code="worker_timeout")

    def pause(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    # placing and sending

    def _begin(self, shape: RequestShape | Awaitable[RequestShape]) -> None:
        if isinstance(shape, RequestShape):
            self._shape = shape
            self._place()
        else:
            self._task = later(lambda: shape, self._begin, self._end_for)

    def _place(self) -> None:
        head = self._head
        ask = Ask(self.request_id.decode(), head.method, head.path, self._shape, head.headers, self._attempts.excluded)
        try:
            placement = self._proxy.dispatcher.place_now(ask)
        except Exception as exc:
            self._end_for(exc)
        else:
            if placement is None:
                self._task = later(lambda: self._proxy.dispatcher.place(ask), self._use, self._end_for)
            else:
                self._use(placement)

    def _use(self, placement: Placement) -> None:
        self._placement = placement
        self._reason = "refused"
        self._sent = False
        try:
            pool = self._proxy.pools[placement.endpoint]
        except OSError as exc:
            self._refused(str(exc), "refused")
            return
        # A kept connection may turn out closed, and then nobody knows whether the worker has seen the request.
        connection = pool.take() if is_repeatable(self._head) else None
        if connection is None:
            self._connect(placement)
        else:
            self._reused = True
            self._send(connection, placement)

    def _connect(self, placement: Placement) -> None:
        self._reused = False
        self._task = asyncio.get_running_loop().create_task(self._send_later(placement))

    async def _send_later(self, placement: Placement) -> None:
        try:
            connection = await self._proxy.pools.connect(placement.endpoint)
            if short_of_files(len(self._proxy.clients) + self._proxy.pools.open_count, of_worker=True):
                connection.abort()
                raise OSError(errno.EMFILE, "nearly all files that the process may open are open")
        except OSError as exc:
            if exc.errno in OWN_FAULTS:
                self._proxy.cannot_connect(exc)
                self._refuse(_OVERLOADED)
            else:
                self._refused(str(exc), self._reason)
        except Exception:
            self._fail_unexpectedly("connecting to a worker")
        else:
            self._send(connection, placement)

    def _send(self, connection: WorkerConnection, placement: Placement) -> None:
        proxy, pool = self._proxy, connection.pool
        head, body = self._head, self._body
        forwarded_for = self._client.forwarded_for(head.headers.get(b"x-forwarded-for"))
        own = b"X-Request-Id: %b\r\nX-Forwarded-For: %b\r\n" % (self.request_id, forwarded_for)
        own += rank_line(head, placement.data_parallel_rank)
        self._connection = connection
        now = proxy.clock()
        connection.begin(self, worker_request(head, pool.prefix, pool.host_line, own, len(body)), body, now)
        if not self._sent:
            self._sent = True
            placement.sent()
        if self._received_at is not None:
            proxy.meter.latency_ms.observe((now - self._received_at) * 1e3)
            self._received_at = None

    # the worker's side

    def response_head(self, head: ResponseHead, length: int | None, *, whole: bool) -> tuple[bytes, Sink]:
        placement, client = self._placement, self._client
        assert placement is not None, self
        self._status = head.status
        turns_away = head.status in TURNS_AWAY and len(self._attempts.excluded) < self._proxy.limits.retries_max
        self._held = bytearray() if turns_away else None
        if not turns_away:
            self._attempts.answered(head.status)
        if not turns_away and not whole and self._connection is not None and not self._connection.unsent_bytes:
            self._body = b""
            client.release_body()
        chunked = head.chunked and not self.plain
        self._ends = ends = length is not None or chunked or head.no_body or self.no_body
        self._keep = keep = ends and client.may_keep_alive
        own = own_lines(self.request_id, placement)
        lines = client_head(head, length, own, http11=not self.plain, keep_alive=keep)
        if turns_away:
            return lines, self._hold
        sink = client.write
        if head.events and length is None and not whole:
            self._events = EventStream(client.write, chunked=chunked)
            sink = self._events.write
        if self._shape.makes_id and head.status < HTTP_ERROR and self._head.method == "POST":
            self._output_later = head.events
            sink = looked_into(sink, placement, events=head.events)
        return lines, sink

    def response_first_byte(self) -> None:
        # An error tells nothing of the prompt: an engine that fails at once must not pass for one that has it.
        answered = self._status is not None and self._status < HTTP_ERROR and not self._output_later
        if self._placement is not None and answered:
            self._placement.first_byte()

    def response_begins(self) -> None:
        self._responding = self._held is None

    def response_end(self, *, clean: bool) -> None:
        self._connection = None
        placement, status = self._placement, self._status
        assert placement is not None, self
        assert status is not None, self
        keep = self._keep and clean
        if self._held is not None:
            self._turned_away(HeldAnswer(status, bytes(self._held), keep, placement.worker))
            return
        self._stop(Outcome.DONE)
        self._attempts.ended(placement, status)
        self._count(status, placement.worker)
        self._client.exchange_done(keep)

    def response_lost(self, error: str, *, began: bool) -> None:
        self._connection = None
        if self._held is not None:
            self._turned_away(None)
        elif began:
            self._broken_off(f"the worker broke off its answer: {error}")
        else:
            self._unanswered(error, "broke")

    def response_bad(self, error: str) -> None:
        self._connection = None
        self._broken_off(f"the worker's answer cannot be passed on: {error}")

    def _broken_off(self, message: str) -> None:
        placement = self._placement
        self._fail(502, message, code="bad_gateway")
        if placement is not None:
            placement.failed()

    def _hold(self, data: bytes) -> None:
        """Keep what turns the request away, until another worker has been tried; pass it on when it is too much."""
        held = self._held
        if held is None:
            self._client.write(data)
            return
        held += data
        if len(held) > HELD_BYTES_MAX:
            self._held, self._responding = None, True
            self._client.write(bytes(held))

    # ends

    def _refused(self, error: str, reason: str) -> None:
        """A worker took nothing: tell the dispatcher, and ask for another."""
        placement, broke = self._placement, reason == "broke"
        assert placement is not None, self
        self._placement = None
        placement.ended(Outcome.BROKE if broke else Outcome.REFUSED, None)
        self._attempts.add(placement, fell_silent=broke or reason == "hung")
        logger.info("request %s: worker %s: %s", self.request_id.decode(), placement.worker, error)
        poison = self._attempts.poison()
        if poison is not None:
            logger.warning("request %s: %s", self.request_id.decode(), poison.message)
            self._refuse(poison)
        else:
            self._try_another(reason)

    def _turned_away(self, answer: HeldAnswer | None) -> None:
        """A worker takes no request now; the client has got nothing of that answer. answer: None: it broke off."""
        placement, status = self._placement, self._status
        assert placement is not None, self
        self._placement = self._held = self._status = None
        placement.ended(Outcome.FAILED if answer is None else Outcome.DONE, status)
        self._attempts.add(placement, answer=answer)
        self._try_another(str(status))

    def _try_another(self, reason: str) -> None:
        if len(self._attempts.excluded) > self._proxy.limits.retries_max:
            self._give_up()
        else:
            self._proxy.meter.retries.inc(reason)
            self._place()

    def _give_up(self) -> None:
        """Nobody is left to be tried: the client gets the last answer that turned the request away, or an error."""
        attempts = self._attempts
        attempts.gave_up()
        answer = attempts.answer
        if answer is None:
            self._refuse(attempts.refusal())
            return
        self._stop(Outcome.FAILED)
        self._count(answer.status, answer.worker)
        self._client.write(answer.data)
        self._client.exchange_done(answer.keep)

    def _end_for(self, exc: Exception) -> None:
        """End a request that could not be placed."""
        if isinstance(exc, BadBody):
            self._refuse(Refusal(400, exc.message, param=exc.param))
        elif not isinstance(exc, NoWorker):
            self._fail_unexpectedly("reading or placing a request")
        elif self._attempts.excluded:
            self._give_up()
        else:
            self._refuse(Refusal(exc.status, exc.message, code=exc.kind, retry_after_s=exc.retry_after_s))

    def _refuse(self, refusal: Refusal) -> None:
        """End the request with an error; no response of a worker has begun."""
        self._stop(Outcome.FAILED)
        self._client.exchange_refused(refusal)

    def _fail_unexpectedly(self, what: str) -> None:
        logger.exception("%s: unexpected error: %r", what, self)
        self._fail(500, "the router failed", code="internal_error")

    def _fail(self, status: int, message: str, *, code: str) -> None:
        """End the request with an error, however much of its response has been passed on.

        A response that has begun gets no end that looks like one; a stream of events gets one that tells of the error.
        """
        refusal = Refusal(status, message, code=code)
        if not self._responding:
            self._status = None
            self._refuse(refusal)
            return
        worker = self._worker
        self._stop(Outcome.FAILED)
        assert self._status is not None, self
        self._count(self._status, worker)
        last = b"" if self._events is None else self._events.ending(self._head.path, refusal)
        self._client.cut(last, reset=not self._ends)

    def _count(self, status: int, worker: str | None) -> None:
        peer, began_at = self._client.peer, self._began_at
        self._proxy.answered(peer, self._head, status, self.request_id, worker=worker, began_at=began_at)

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
            placement.ended(outcome, self._status)
