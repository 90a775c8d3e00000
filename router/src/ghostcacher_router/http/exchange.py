"""One request's life at the workers: parsed, placed, sent, answered; or placed again while nothing came back.

    start -> parse -> place -> connect or take a kept connection -> send -> answer_head .. answer_end
                       ^                                       |
                       '-- refused, or broke before any byte <-'

Without a connection kept and with a dispatcher that must wait there is a task; else there is none. A connection
that was kept and turns out closed proves nothing: the same worker gets one more try, on a new connection.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from ghostcacher_router.http.errors import Refusal
from ghostcacher_router.http.protocol.head import RequestHead, worker_request
from ghostcacher_router.http.protocol.responses import AnswerHead, without_chunked
from ghostcacher_router.prompt.bodies import BadBody
from ghostcacher_router.types import Ask, NoWorker, Outcome, Placement, RequestShape
from ghostcacher_router.upstreams.connection import WorkerConnection

if TYPE_CHECKING:
    from ghostcacher_router.http.client_connection import ClientConnection
    from ghostcacher_router.http.proxy import Front

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499
"""As nginx calls it. Never sent."""
_NO_CONTENT = 204
HTTP_ERROR = 400
WORKER_NAMES_MAX = 8192
OWN_FAULTS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})
"""What the router lacks itself when it cannot connect: it says nothing of the worker."""


class Exchange:
    """One request of one client. Loop only; a `Receiver` of the worker's answer.

    Tells the client's connection exactly once that it is over, unless it was cancelled by it.
    """

    __slots__ = (
        "_answering",
        "_began_at",
        "_body",
        "_client",
        "_connection",
        "_excluded",
        "_front",
        "_head",
        "_keep",
        "_over",
        "_placement",
        "_received_at",
        "_reused",
        "_sent",
        "_shape",
        "_status",
        "_task",
        "no_body",
        "plain",
        "request_id",
    )
    _shape: RequestShape

    def __init__(
        self, front: Front, client: ClientConnection, head: RequestHead, body: bytes, received_at: float
    ) -> None:
        self._front = front
        self._client = client
        self._head = head
        self._body = body
        self._began_at = received_at
        self._received_at: float | None = received_at
        self._connection: WorkerConnection | None = None
        self._placement: Placement | None = None
        self._task: asyncio.Task[None] | None = None
        self._excluded: frozenset[str] = frozenset()
        self._status: int | None = None
        self._answering = False
        self._reused = False
        self._sent = False
        self._keep = False
        self._over = False
        self.no_body = head.method == "HEAD"
        self.plain = not head.http11
        self.request_id = head.request_id or front.next_request_id()

    def __repr__(self) -> str:
        return f"Exchange({self._head.method} {self._head.path}, worker={self._worker}, status={self._status})"

    @property
    def passed_bytes(self) -> int:
        """A number that grows while the worker sends."""
        return 0 if self._connection is None else self._connection.passed_bytes

    # the client's side

    def start(self) -> None:
        """Parse and place the request; it is sent before this returns, when there is nothing to wait for."""
        head = self._head
        try:
            self._shape = self._front.parse(head.path, self._body, head.headers)
        except BadBody as exc:
            self._refuse(Refusal(400, exc.message, param=exc.param))
        except Exception:
            self._bug("parsing a body")
        else:
            self._place()

    def cancel(self) -> None:
        """The client left: whatever is under way ends at once, so that the engine stops computing."""
        if not self._over:
            worker = self._worker
            self._stop(Outcome.CANCELLED)
            self._answered(CLIENT_LEFT, worker)

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

    def _place(self) -> None:
        head = self._head
        ask = Ask(self.request_id.decode(), head.method, head.path, self._shape, head.headers, self._excluded)
        try:
            placement = self._front.dispatcher.place_now(ask)
        except NoWorker as exc:
            self._no_worker(exc)
        except Exception:
            self._bug("placing a request")
        else:
            if placement is None:
                self._task = asyncio.get_running_loop().create_task(self._place_later(ask))
            else:
                self._use(placement)

    async def _place_later(self, ask: Ask) -> None:
        try:
            placement = await self._front.dispatcher.place(ask)
        except NoWorker as exc:
            self._no_worker(exc)
        except Exception:
            self._bug("placing a request")
        else:
            self._use(placement)

    def _use(self, placement: Placement) -> None:
        self._placement = placement
        self._sent = False
        try:
            connection = self._front.pools[placement.endpoint].take()
        except OSError as exc:
            self._refused("refused", str(exc))
            return
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
            connection = await self._front.pools.connect(placement.endpoint)
        except OSError as exc:
            if exc.errno in OWN_FAULTS:
                logger.warning("request %s: the router cannot connect: %s", self.request_id.decode(), exc)
                self._refuse(_OVERLOADED)
            else:
                self._refused("refused", str(exc))
        except Exception:
            self._bug("connecting to a worker")
        else:
            self._send(connection, placement)

    def _send(self, connection: WorkerConnection, placement: Placement) -> None:
        front, client = self._front, self._client
        pool = connection.pool
        head, body = self._head, self._body
        tail = b"X-Request-Id: %b\r\nX-Forwarded-For: %b\r\n" % (
            self.request_id,
            client.forwarded_for(head.headers.get(b"x-forwarded-for")),
        )
        self._connection = connection
        connection.begin(self, worker_request(head, pool.prefix, pool.host_line, tail, len(body)), body)
        if not self._sent:
            self._sent = True
            placement.sent()
        if self._received_at is not None:
            front.meter.latency_ms.observe((front.clock() - self._received_at) * 1e3)
            self._received_at = None

    # the worker's side

    def answer_head(
        self, head: AnswerHead, length: int | None, *, whole: bool
    ) -> tuple[bytes, Callable[[bytes], None]]:
        placement, client = self._placement, self._client
        assert placement is not None, self
        self._status = head.status
        if not whole and self._connection is not None and not self._connection.unsent_bytes:
            self._body = b""
            client.release_body()
        lines, tail = head.lines, b""
        plain, forecast = self.plain, placement.forecast
        if head.chunked:
            if plain:
                lines = without_chunked(lines)
        elif length is not None and head.status != _NO_CONTENT:
            tail = b"\r\ncontent-length: %d" % length
        if forecast is not None:
            tail += b"\r\nx-gc-forecast-ms: %.1f\r\nx-gc-cached-tokens: %d" % (
                forecast.total_ms,
                forecast.cached_tokens,
            )
        ends = length is not None or (head.chunked and not plain) or head.no_body or self.no_body
        self._keep = keep = ends and client.may_keep_alive
        if not keep:
            tail += b"\r\nconnection: close"
        elif plain:
            tail += b"\r\nconnection: keep-alive"
        worker = _printable(placement.worker)
        first = b"%b\r\nx-request-id: %b\r\nx-gc-worker: %b%b\r\n\r\n" % (lines, self.request_id, worker, tail)
        return first, client.write

    def answer_first_byte(self) -> None:
        # An error tells nothing of the prompt: an engine that fails at once must not pass for one that has it.
        if self._placement is not None and self._status is not None and self._status < HTTP_ERROR:
            self._placement.first_byte()

    def answer_passed_on(self) -> None:
        self._answering = True

    def answer_end(self, *, clean: bool) -> None:
        self._connection = None
        worker = self._worker
        self._stop(Outcome.DONE)
        assert self._status is not None, self
        self._answered(self._status, worker)
        self._client.exchange_done(self._keep and clean)

    def answer_lost(self, error: str, *, began: bool) -> None:
        self._connection = None
        if began:
            self._fail(502, f"the worker broke off its answer: {error}", code="bad_gateway")
        elif self._reused and self._placement is not None:
            self._connect(self._placement)
        else:
            self._refused("broke", error)

    def answer_bad(self, error: str) -> None:
        self._connection = None
        self._fail(502, f"the worker's answer cannot be passed on: {error}", code="bad_gateway")

    # ends

    def _refused(self, reason: str, error: str) -> None:
        """A worker took nothing: tell the dispatcher, and ask for another."""
        placement = self._placement
        assert placement is not None, self
        self._placement = None
        placement.ended(Outcome.REFUSED, None)
        self._excluded |= {placement.worker}
        logger.info("request %s: worker %s: %s", self.request_id.decode(), placement.worker, error)
        if len(self._excluded) > self._front.limits.retries_max:
            self._refuse(_no_answer(len(self._excluded)))
            return
        self._front.meter.retries.inc(reason)
        self._place()

    def _no_worker(self, exc: NoWorker) -> None:
        if self._excluded:
            self._refuse(_no_answer(len(self._excluded)))
        else:
            self._refuse(Refusal(exc.status, exc.message, code=exc.kind, retry_after_s=exc.retry_after_s))

    def _bug(self, what: str) -> None:
        logger.exception("%s failed in an unforeseen way: %r", what, self)
        self._fail(500, "the router failed", code="internal_error")

    def _fail(self, status: int, message: str, *, code: str) -> None:
        """End the request; where its answer has begun, without an end that looks like one."""
        worker = self._worker
        if not self._answering:
            self._status = None
        self._stop(Outcome.FAILED)
        if self._answering:
            assert self._status is not None, self
            self._answered(self._status, worker)
            self._client.abort()
        else:
            self._client.exchange_refused(Refusal(status, message, code=code))

    def _answered(self, status: int, worker: str | None) -> None:
        front, head = self._front, self._head
        front.meter.answered(head.path, status)
        if front.access_log:
            took_s = front.clock() - self._began_at
            front.log_access(self._client.peer, head, status, self.request_id, worker=worker, took_s=took_s)

    @property
    def _worker(self) -> str | None:
        return None if self._placement is None else self._placement.worker

    def _refuse(self, refusal: Refusal) -> None:
        self._stop(Outcome.FAILED)
        self._client.exchange_refused(refusal)

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


_OVERLOADED = Refusal(503, "the router has no connection to a worker left", code="router_overloaded", retry_after_s=1)


def _no_answer(tried: int) -> Refusal:
    return Refusal(502, f"no worker took the request; tried {tried}", code="bad_gateway", retry_after_s=1)


@lru_cache(WORKER_NAMES_MAX)
def _printable(worker: str) -> bytes:
    """Return a worker's name as a header's value: names come from Redis."""
    return bytes(byte if 0x21 <= byte <= 0x7E else 0x3F for byte in worker.encode())  # noqa: PLR2004
