"""The main path of a request: parsed, placed, sent to a worker, and its answer passed on.

    start -> _parsed -> _place -> _placed -> a kept connection, or _connect -> _send
                          ^                                                     |
                          '--- request_retries.py: this worker gives no answer -|
                                                                                v
                    response_head -> response_first_byte -> response_begins -> response_end

Whatever else ends it is in `request_ends.py`. There is a task only while a long body is parsed, a dispatcher has to
wait, or a connection is made.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable

from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.http.exchanges.attempts import HELD_BYTES_MAX, OWN_FAULTS, HeldAnswer
from ghostcacher_router.http.exchanges.handover import HandedOver, PrefillStep, of_second_step, wanted
from ghostcacher_router.http.exchanges.later import later
from ghostcacher_router.http.exchanges.own_headers import own_lines
from ghostcacher_router.http.exchanges.priority import prioritised
from ghostcacher_router.http.exchanges.repeatable import is_repeatable
from ghostcacher_router.http.exchanges.request_retries import RetriedRequest
from ghostcacher_router.http.exchanges.source_hint import with_source
from ghostcacher_router.http.exchanges.taps import tapped
from ghostcacher_router.http.open_files import short_of_files
from ghostcacher_router.http.protocol.event_stream import EventStream
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.http.protocol.request_head import RANK_HEADER, RequestHead, rank_line, worker_request
from ghostcacher_router.http.protocol.response_head import ResponseHead, client_head
from ghostcacher_router.http.proxy_ports import Client
from ghostcacher_router.http.proxy_state import ProxyState, pulls_from_nobody
from ghostcacher_router.prompt import BadBody, not_from_clients, shape_by_method
from ghostcacher_router.types import Ask, Body, Outcome, Placement, RequestShape
from ghostcacher_router.upstreams.response_receiver import Sink
from ghostcacher_router.upstreams.worker_connection import WorkerConnection
from ghostcacher_router.upstreams.worker_pools import Pools

HTTP_ERROR = 400
NOBODY: frozenset[str] = frozenset()
_OVERLOADED = Refusal(503, "the router has no connection to a worker left", code="router_overloaded", retry_after_s=1)


class WorkerExchange(RetriedRequest):
    """One request of one client, answered by a worker: an `Exchange`, and the `ResponseReceiver`. Loop only.

    Tells the client's connection exactly once that it is over, unless it was cancelled by it.
    """

    __slots__ = (
        "_engine_id",
        "_handed",
        "_keep",
        "_output_later",
        "_received_at",
        "_sent",
        "_shape",
        "_steps",
        "no_body",
        "plain",
    )
    switching = False
    _shape: RequestShape

    def __init__(self, proxy: ProxyState, client: Client, head: RequestHead, body: Body, received_at: float) -> None:
        super().__init__(proxy, client, head, body, received_at)
        self._received_at: float | None = received_at
        """None once the router's own latency has been counted."""
        self._sent = False
        """Whether this placement has been told that the request was sent."""
        self._keep = False
        """Whether the client may send another request behind this answer."""
        self._engine_id = self.request_id
        """The request's id as the worker sees it: with what tells of the prompt's sections behind it."""
        self._handed: HandedOver | None = None
        """What another worker has computed of it, and was not used yet."""
        self._steps = 0
        """First steps of two that are over."""
        self._output_later = False
        """Whether output begins after the first byte, and is looked for."""
        self.no_body = head.method == "HEAD"
        self.plain = not head.http11

    # to the worker

    def start(self) -> None:
        """Parse and place the request; it is sent before this returns, when there is nothing to wait for."""
        head = self._head
        try:
            target = head.target.decode("ascii")
            shape = None if head.method == "POST" else shape_by_method(head.method, target, head.headers)
            self._parsed(shape or self._proxy.parse(target, self._body, head.headers))
        except Exception as exc:
            self._not_placed(exc)

    def _parsed(self, shape: RequestShape | Awaitable[RequestShape]) -> None:
        if isinstance(shape, RequestShape):
            self._shape = shape
            if shape.names_engine is not None and not self._proxy.limits.kv_transfer_from_clients:
                self._not_placed(BadBody(not_from_clients(shape.names_engine), shape.names_engine))
                return
            if shape.prompt is not None and self._proxy.limits.section_hints:
                self._engine_id += shape.prompt.hint.encode()
            proxy, head = self._proxy, self._head
            if (
                shape.prompt is not None
                and head.method == "POST"
                and proxy.dispatcher.hands_over(shape.model)
                and wanted(proxy.limits, head.path, shape, self._body)
            ):
                own, ask = self._own_lines(), self._ask(PdRole.PREFILL)
                self._step = step = PrefillStep(proxy, head, ask, own, self._body)
                self._task = later(step.run, self._handed_over, self._not_placed)
            else:
                self._place()
        else:
            self._task = later(lambda: shape, self._parsed, self._not_placed)

    def _handed_over(self, handed: HandedOver | None) -> None:
        step, self._step = self._step, None
        assert step is not None, self
        for placement, fell_silent in step.failed:
            self._attempts.failed_before(placement, fell_silent=fell_silent)
        self._handed = handed
        self._steps += 1
        self._place()

    def _ask(self, step: PdRole | None) -> Ask:
        head, shape = self._head, of_second_step(self._shape) if step is PdRole.DECODE else self._shape
        excluded = NOBODY if self._tried is None else self._tried.excluded
        engine_id = self._engine_id.decode()
        return Ask(engine_id, head.method, head.path, shape, head.headers, excluded, self._trace, step, self._turn)

    def _place(self) -> None:
        if self._trace is not None:
            self._trace.deciding(self._proxy.clock())
        ask = self._ask(None if self._handed is None else PdRole.DECODE)
        try:
            placement = self._proxy.dispatcher.place_now(ask)
        except Exception as exc:
            self._not_placed(exc)
        else:
            if placement is None:
                self._task = later(lambda: self._proxy.dispatcher.place(ask), self._placed, self._not_placed)
            else:
                self._placed(placement)

    def _placed(self, placement: Placement) -> None:
        self._placement = placement
        if self._trace is not None:
            self._trace.placed(placement, self._proxy.clock())
        self._reason = "refused"
        self._sent = False
        try:
            pool = self._pools[placement.endpoint]
        except OSError as exc:
            self._refused(str(exc), "refused")
            return
        # A kept connection may turn out closed, and then nobody knows whether the worker has seen the request.
        # Nor whether it has read what was handed over, which is read once.
        connection = pool.take() if self._handed is None and is_repeatable(self._head) else None
        if connection is None:
            self._connect(placement)
        else:
            self._reused = True
            self._send(connection, placement)

    def _connect(self, placement: Placement) -> None:
        self._reused = False
        self._task = asyncio.get_running_loop().create_task(self._connect_and_send(placement))

    async def _connect_and_send(self, placement: Placement) -> None:
        try:
            connection = await self._pools.connect(placement.endpoint)
            if short_of_files(len(self._proxy.clients) + self._proxy.open_count, of_worker=True):
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

    @property
    def _pools(self) -> Pools:
        return self._proxy.pools

    def _send(self, connection: WorkerConnection, placement: Placement) -> None:
        pool, head = connection.pool, self._head
        plain = self._handed is None and self._proxy.kv_source is pulls_from_nobody
        body = self._body if plain else self._take_body(placement)
        if self._turn is not None:
            body = prioritised(body, head.path, self._turn)
        own = self._own_lines()
        if placement.data_parallel_rank is not None or RANK_HEADER in head.headers:
            own += rank_line(head, placement.data_parallel_rank)
        if self._trace is not None:
            own += self._trace.sent(placement, self._proxy.clock())
        self._begin(connection, placement, worker_request(head, pool.prefix, pool.host_line, own, len(body)), body)

    def _own_lines(self) -> bytes:
        forwarded_for = self._client.forwarded_for(self._head.headers.get(b"x-forwarded-for"))
        return b"X-Request-Id: %b\r\nX-Forwarded-For: %b\r\n" % (self._engine_id, forwarded_for)

    def _take_body(self, placement: Placement) -> Body:
        """Return what is sent: with what was handed over the first time, if that can still be there."""
        handed, self._handed = self._handed, None
        if handed is None and (source := self._proxy.kv_source(placement)) is not None:
            return with_source(self._body, self._head.path, source, self._engine_id.decode())
        if handed is not None and self._proxy.clock() > handed.usable_until:
            self._proxy.meter.handovers.inc("late")
            return self._body
        return self._body if handed is None else handed.body

    def _begin(self, connection: WorkerConnection, placement: Placement, head: bytes, body: Body) -> None:
        """Write the request. head, body: as they are sent."""
        proxy, received_at = self._proxy, self._received_at
        self._connection = connection
        now = proxy.clock()
        connection.begin(self, head, body, now)
        if not self._sent:
            self._sent = True
            placement.sent()
        if received_at is not None:
            queued_s = 0.0 if self._turn is None else self._turn.queued_s
            proxy.meter.latency_ms.observe((now - received_at - queued_s) * 1e3)
            self._received_at = None

    # to the client

    def response_head(self, head: ResponseHead, length: int | None, *, whole: bool) -> tuple[bytes, Sink]:
        placement, client, status = self._placement, self._client, head.status
        assert placement is not None, self
        self._status = status
        # An answer that is no error turns nobody away.
        turns_away = status >= HTTP_ERROR and self._turns_away(status, placement)
        self._held = bytearray() if turns_away else None
        if turns_away:
            self._held_at = self._proxy.clock()
        elif self._tried is not None:
            self._tried.answered(status)
        if not whole and not turns_away and self._connection is not None and not self._connection.unsent_bytes:
            self._body = b""
            client.release_body()
        chunked = head.chunked and not self.plain
        self._ends = ends = length is not None or chunked or head.no_body or self.no_body
        self._keep = keep = ends and client.may_keep_alive
        own = own_lines(self.request_id, placement)
        if b"origin" in self._head.headers:
            own += self._proxy.allowed_origins.exposing(self._head)
        lines = client_head(head, length, own, http11=not self.plain, keep_alive=keep)
        if turns_away:
            return lines, self._hold
        sink = client.write
        if not whole and head.events and length is None:
            self._events = EventStream(client.write, chunked=chunked)
            sink = self._events.write
        if self._shape.makes_id and status < HTTP_ERROR and self._head.method == "POST":
            self._output_later = head.events
            sink = tapped(sink, placement, events=head.events)
        return lines, sink

    def _turns_away(self, status: int, placement: Placement) -> bool:
        """Say whether the answer is held back, since another worker may have a better one."""
        attempts = self._attempts
        return len(attempts.excluded) < self._proxy.limits.retries_max and attempts.turns_away(
            status, placement, repeatable=is_repeatable(self._head)
        )

    def response_first_byte(self) -> None:
        # An error tells nothing of the prompt: an engine that fails at once must not pass for one that has it.
        status, placement = self._status, self._placement
        if placement is not None and status is not None and status < HTTP_ERROR and not self._output_later:
            placement.first_byte()

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
        if self._trace is None and self._task is None:
            self._over, self._placement = True, None
            placement.ended(Outcome.DONE, status)
        else:
            self._stop(Outcome.DONE)
        if self._tried is not None or status >= HTTP_ERROR:
            self._attempts.ended(placement, status)
        self._count(status, placement.worker, placement)
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
            placement.failed(sure=False)

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

    @property
    def heard_bytes(self) -> int:
        if self._step is not None:
            return self._step.heard_bytes
        return 0 if self._connection is None else self._connection.passed_bytes

    @property
    def passed_bytes(self) -> int:
        # The second of two workers has as much time to be silent as the first one had.
        return self._steps + self.heard_bytes

    def pause(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()
