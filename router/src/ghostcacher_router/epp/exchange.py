"""One HTTP request as a gateway tells of it: what is answered to each message, and what its placement learns. No I/O.

    request_headers --(body as a whole)--> request_body    answered at once; the pick goes with the body
                    --(full duplex)------> request_body*   held until the last one; then the pick, and what was held
                    --(no body, or the gateway does not send it)--> the pick at once
    ... request_trailers? ... response_headers, response_body*, response_trailers?     passed on, and read along

Full duplex is what the protocol asks for: the gateway sends pieces of the body without waiting, goes on only with what
it gets back, and waits for the answer to the headers as long as that takes. What is held is bounded: a body that is too
long goes on as it comes, without having been read, and its worker is picked by load.

A placement is told of its end exactly once, however the stream ends: by the end of the answer, or when the gateway
closes or cancels it, since the client left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ghostcacher_router.epp import messages
from ghostcacher_router.epp.held_bodies import PIECE_BYTES_MAX, HeldBody, HeldBytes
from ghostcacher_router.epp.messages import BUFFERED, FULL_DUPLEX, NONE, PREFILLER
from ghostcacher_router.epp.parts import Parts
from ghostcacher_router.epp.picking import EndpointPicking, Picked, Wanted
from ghostcacher_router.http.exchanges.attempts import Attempts
from ghostcacher_router.http.exchanges.own_headers import own_lines
from ghostcacher_router.http.exchanges.priority import prioritised
from ghostcacher_router.http.exchanges.source_hint import with_source
from ghostcacher_router.http.exchanges.taps import tapped
from ghostcacher_router.http.protocol.refusal import Refusal, error_body
from ghostcacher_router.types import LongBody, NoWorker, Outcome, Placement
from ghostcacher_router.upstreams.response_receiver import Sink

HTTP_ERROR = 400
CLIENT_LEFT = 499
"""The status under which a request is counted whose client left."""

BUFFERED_S_MAX = 0.1
"""A gateway that holds the body waits for an answer for 200 ms, unless it is told otherwise, and then goes without."""

_EVENTS = b"text/event-stream"


class BadMessage(Exception):
    """A message of the gateway that cannot come where it came."""


class Exchange:
    """One request of one gateway. On the event loop only.

    over: whether nothing more may be answered: the client gets an answer of the picker's.
    """

    def __init__(
        self, parts: Parts, picking: EndpointPicking, held: HeldBytes, next_id: Callable[[], str], *, timeout_s: float
    ) -> None:
        """next_id: returns a name for a request that has none. timeout_s: of waiting before a worker is picked."""
        self._parts, self._picking, self._held, self._next_id = parts, picking, held, next_id
        self._body = HeldBody(held)
        self._timeout_s = timeout_s
        self.over = False
        self._wanted: Wanted | None = None
        """None before the request's headers have come."""
        self._request_mode = self._response_mode = FULL_DUPLEX
        self._picked: Picked | None = None
        self._placement: Placement | None = None
        """Where the request is; None before it was picked, and when it has ended."""
        self._prefill: Placement | None = None
        self._status: int | None = None
        self._sink: Sink | None = None
        """What takes the answer along; None where nobody looks at it."""
        self._output_later = False
        self._has_begun = False

    def __repr__(self) -> str:
        return f"Exchange({self._wanted and self._wanted.request_id}, {self._placement!r}, status={self._status})"

    async def answers(self, request: Any) -> list[bytes]:
        """Return what is answered to a message. Bounded in time. Raises BadMessage."""
        if request.observability_mode:
            return []  # Nobody listens, so nothing can be picked.
        kind = request.WhichOneof("request")
        if (kind == "request_headers") is not (self._wanted is None):
            expected = "request_headers first (request_header_mode: SEND), and once"
            raise BadMessage(f"expected {expected}, got {kind or 'an empty message'}")
        if kind == "request_headers":
            return await self._request_headers(request)
        if kind == "request_body":
            return await self._request_body(request.request_body)
        if kind == "request_trailers":
            return await self._request_trailers()
        return [self._of_response(kind, request)]

    def closed(self) -> None:
        """The stream is over. Idempotent."""
        self._body.release()
        if self._placement is not None:
            if self._response_mode == NONE and self._status is not None:
                self._answered()  # Of the answer's end the gateway does not tell.
            else:
                self._ended(Outcome.CANCELLED)
        self.over = True

    # The request

    async def _request_headers(self, request: Any) -> list[bytes]:
        message = request.request_headers
        headers = messages.headers_of(message)
        self._request_mode, self._response_mode = messages.body_modes(request)
        own_id = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = own_id if own_id.isascii() and own_id.isprintable() and own_id else self._next_id()
        method, target = (headers.get(name, b"").decode("latin-1") for name in (b":method", b":path"))
        self._wanted = Wanted(request_id, method, target, headers, messages.subset_of(request))
        if message.end_of_stream:
            return await self._pick(messages.request_headers, whole=True)
        if self._request_mode == FULL_DUPLEX:
            return []
        if self._request_mode == BUFFERED:
            return [messages.request_headers()]
        return await self._pick(messages.request_headers, whole=False)

    async def _request_body(self, message: Any) -> list[bytes]:
        body, end = message.body, message.end_of_stream
        if self._request_mode != FULL_DUPLEX:
            if self._picked is not None:
                return [messages.request_body()]
            self._body.add(body)
            return await self._pick(messages.request_body, whole=True)
        if self._picked is not None:
            return [messages.streamed_request(body, end=end)]
        self._body.add(body)
        if end:
            return await self._go_on(whole=True, end=True)
        if self._held.too_many or self._body.size > self._parts.limits.body_bytes_max:
            return await self._go_on(whole=False, end=False)
        return []

    async def _request_trailers(self) -> list[bytes]:
        passed = messages.request_trailers()
        if self._request_mode != FULL_DUPLEX or self._picked is not None:
            return [passed]
        answers = await self._go_on(whole=True, end=False)
        return answers if self.over else [*answers, passed]

    async def _go_on(self, *, whole: bool, end: bool) -> list[bytes]:
        """Pick a worker, and let go of what is held. whole: whether that is all of the body. end: it ends with it."""
        pieces = self._body.pieces()
        answers = await self._pick(messages.request_headers, whole=whole)
        if self.over:
            return answers
        if whole:
            pieces = self._told(pieces)
        answers += [messages.streamed_request(piece, end=False) for piece in pieces[:-1]]
        last = pieces[-1] if pieces else b""
        if last or end:
            answers.append(messages.streamed_request(last, end=end))
        return answers

    def _told(self, pieces: list[bytes]) -> list[bytes]:
        """Return a whole body with what its worker is to be told: its priority, and from whom to pull its prefix."""
        picked, wanted = self._picked, self._wanted
        assert picked is not None, self
        assert wanted is not None, self
        if not pieces:
            return pieces
        came = LongBody(pieces)
        body = prioritised(came, wanted.path, picked.ask.turn)
        source = None if picked.prefill is not None else self._parts.kv_source(picked.placement)
        if source is not None:
            body = with_source(body, wanted.path, source, picked.ask.request_id)
        if body is came:
            return pieces
        whole = body.join() if isinstance(body, LongBody) else body
        return [whole[begin : begin + PIECE_BYTES_MAX] for begin in range(0, len(whole), PIECE_BYTES_MAX)]

    async def _pick(self, answer: Callable[..., bytes], *, whole: bool) -> list[bytes]:
        """Pick a worker, and return the answer that says so, or that there is none. answer: makes the former."""
        parts, wanted = self._parts, self._wanted
        assert wanted is not None, self
        came_at = parts.clock()
        timeout_s = self._timeout_s if self._request_mode == FULL_DUPLEX else min(self._timeout_s, BUFFERED_S_MAX)
        body = self._body.whole() if whole else None
        try:
            why = "long" if self._body.size else "bodyless"
            picked = await self._picking.pick(wanted, body, timeout_s, why_unknown=why)
        except NoWorker as exc:
            return [self._refused(exc)]
        finally:
            self._body.release()
        self._picked, self._placement, self._prefill = picked, picked.placement, picked.prefill
        for placement in (picked.prefill, picked.placement):
            if placement is not None:
                placement.sent()
        parts.metrics.latency_ms.observe((parts.clock() - came_at) * 1e3)
        # A client must not choose which server computes its prompt.
        removed = [PREFILLER] if picked.prefill is None and PREFILLER.encode() in wanted.headers else []
        return [answer(picked.headers, destination=picked.destination, removed=removed)]

    def _refused(self, exc: NoWorker) -> bytes:
        """Return the answer for the client when there is no worker for it."""
        assert self._wanted is not None, self
        self.over = True
        self._parts.metrics.picker.picks.inc("refused")
        self._parts.metrics.answered(self._wanted.path, exc.status)
        headers = [("content-type", b"application/json"), ("x-request-id", self._wanted.request_id.encode())]
        if exc.retry_after_s is not None:
            headers.append(("retry-after", b"%d" % exc.retry_after_s))
        body = error_body(self._wanted.path, Refusal(exc.status, exc.message, code=exc.kind))
        return messages.immediate(exc.status, headers, body, exc.kind)

    # The response

    def _of_response(self, kind: str, request: Any) -> bytes:
        if kind == "response_headers":
            return self._response_headers(request)
        if kind == "response_body":
            return self._response_body(request.response_body)
        self._answered()
        return messages.response_trailers()

    def _response_headers(self, request: Any) -> bytes:
        message = request.response_headers
        headers = messages.headers_of(message)
        text = headers.get(b":status", b"")
        self._status = status = int(text) if text.isdigit() else 0
        if (served := messages.served_by(request)) is not None:
            self._served_by(served)
        placement, wanted, picked = self._placement, self._wanted, self._picked
        if placement is None or picked is None or wanted is None:
            return messages.response_headers()
        self._end_prefill(computed=status < HTTP_ERROR)
        events = headers.get(b"content-type", b"").startswith(_EVENTS)
        if picked.ask.shape.makes_id and status < HTTP_ERROR and wanted.method == "POST":
            self._output_later = events
            self._sink = tapped(lambda _: None, placement, events=events)
            self._sink(b"\r\n\r\n")  # Where a head would end.
        if self._response_mode == NONE:
            self._begins()
        if message.end_of_stream:
            self._answered()
        lines = own_lines(wanted.request_id.encode(), placement).split(b"\r\n")[1:]
        pairs = [line.partition(b": ") for line in lines]
        return messages.response_headers([(name.decode(), value) for name, _, value in pairs])

    def _response_body(self, message: Any) -> bytes:
        body, end = message.body, message.end_of_stream
        if body:
            if not self._output_later:
                self._begins()
            if self._sink is not None:
                self._sink(body)
        if end:
            self._answered()
        if self._response_mode == FULL_DUPLEX:
            return messages.streamed_response(body, end=end)
        return messages.response_body()

    def _served_by(self, served: str) -> None:
        """Note which endpoint has answered: it may be another one than the first of those that were named."""
        placement, picked = self._placement, self._picked
        if placement is None or picked is None:
            return
        moved = self._picking.again_at(picked, served)
        if moved is not None:
            placement.ended(Outcome.REFUSED, None)
            placement.failed(sure=False)
            self._parts.metrics.picker.moved.inc()
            self._placement = moved
            moved.sent()

    def _begins(self) -> None:
        """The answer has begun. An error tells nothing of the prompt."""
        if not self._has_begun and self._placement is not None and (self._status or HTTP_ERROR) < HTTP_ERROR:
            self._has_begun = True
            self._placement.first_byte()

    def _answered(self) -> None:
        """The whole answer has come."""
        placement, status = self._placement, self._status
        if placement is not None:
            self._ended(Outcome.DONE)
            if status is not None:
                Attempts().ended(placement, status)

    def _ended(self, outcome: Outcome) -> None:
        placement, self._placement = self._placement, None
        self._end_prefill(computed=False)
        assert placement is not None, self
        assert self._wanted is not None, self
        placement.ended(outcome, self._status)
        status = self._status if outcome is Outcome.DONE else CLIENT_LEFT
        self._parts.metrics.answered(self._wanted.path, status or CLIENT_LEFT)

    def _end_prefill(self, *, computed: bool) -> None:
        """The prompt is computed elsewhere, or nobody will know."""
        prefill, self._prefill = self._prefill, None
        if prefill is not None:
            if computed:
                prefill.first_byte()
            prefill.ended(Outcome.DONE if computed else Outcome.CANCELLED, 200 if computed else None)
