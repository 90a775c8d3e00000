"""The first step of a request where engines that compute prompts and engines that answer are apart.

    the client's request --as one for one token--> an engine that computes prompts, placed by what it has of the prompt
    the engine's answer: kv_transfer_params, where another engine finds what was computed
    the client's request --with these--> an engine that answers, placed by load

as vLLM's own example of a proxy does. Whatever goes wrong in the first step, there is none: whichever engine answers
computes the prompt, too. That a worker gives no answer is noticed as with any other request (`request_retries.py`): its
connection breaks, its host acknowledges nothing, or its probes show that it hangs. What was handed over is used once,
and soon: the first engine lets go of it when it was read, and nobody can tell what lies there later.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, NamedTuple

import msgspec

from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.http.exchanges.attempts import OWN_FAULTS, TURNS_AWAY, is_error
from ghostcacher_router.http.exchanges.own_request import OwnRequest
from ghostcacher_router.http.exchanges.priority import prioritised
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.protocol.request_head import RequestHead, rank_line
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_router.types import (
    Ask,
    Body,
    Dispatcher,
    Endpoint,
    LongBody,
    NoWorker,
    Outcome,
    Placement,
    RequestShape,
)

logger = logging.getLogger(__name__)

PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})

BODY_BYTES_MAX = 8 << 20
"""A longer body goes to one engine: it would hold up the event loop while it is looked at."""

ANSWER_BYTES_MAX = 4 << 20
"""Of the first engine: it names every block of the prompt, 8 bytes each or so."""

TRIES_MAX = 2
"""Engines that are asked to compute the prompt, before the one that answers does."""

USABLE_S = 10.0
"""By then the request must have gone on. vLLM keeps what was computed for 30 s, unless it is told otherwise, and longer
only once the second engine asks for it."""

HTTP_ERROR = 400

_ONE_TOKEN = (
    b',"max_tokens":1,"max_completion_tokens":null,"min_tokens":0,"stream":false,"stream_options":null,'
    b'"kv_transfer_params":{"do_remote_decode":true}}'
)
"""Put in the place of a body's last brace. Of two fields of one name the last one counts."""


class HandedOver(NamedTuple):
    """What the first step has left for the second one."""

    body: bytes
    """The client's, with what tells the second engine where the first one has it."""
    usable_until: float
    """By the proxy's clock, in s."""


class _NoAnswer(OSError):
    """A worker gave none. reason: a label of retries."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Fields(msgspec.Struct):
    """What makes a request one for a single engine."""

    n: Any = None
    best_of: Any = None
    use_beam_search: Any = None
    echo: Any = None
    prompt_logprobs: Any = None
    kv_transfer_params: Any = None
    prompt: Any = None


def steps_of(
    limits: Limits, dispatcher: Dispatcher, path: str, shape: RequestShape, body: Body
) -> list[tuple[PdRole | None, RequestShape]]:
    """Return each step of a POST to a path, and what routing goes by there: one, or two where two engines carry it out.

    The second one goes by load, not by its prompt or its session.
    """
    if dispatcher.hands_over(shape.model) and wanted(limits, path, shape, body):
        return [(PdRole.PREFILL, shape), (PdRole.DECODE, of_second_step(shape))]
    return [(None, shape)]


def of_second_step(shape: RequestShape) -> RequestShape:
    """Return what routing needs to know of a request whose prompt another engine has computed."""
    return shape._replace(prompt=None, session=None)


def wanted(limits: Limits, path: str, shape: RequestShape, body: Body) -> bool:
    """Say whether a POST to a path is to be computed by one engine and answered by another, where there are such."""
    if path not in PATHS or shape.prompt is None or shape.needs_id is not None:
        return False
    size = shape.prompt.tokens or shape.prompt.size // limits.bytes_per_token
    return size >= limits.prefill_tokens_min and len(body) <= BODY_BYTES_MAX and fits(_joined(body))


def fits(body: bytes) -> bool:
    """Say whether a request has one prompt and one answer, and leaves to the engines how they hand it over."""
    try:
        fields = msgspec.json.decode(body, type=_Fields)
    except msgspec.MsgspecError:
        return False
    single = all(value in (None, 1) for value in (fields.n, fields.best_of))
    plain = not (fields.use_beam_search or fields.echo)
    several = isinstance(fields.prompt, list) and not all(type(token) is int for token in fields.prompt)
    return single and plain and not several and fields.prompt_logprobs is None and fields.kv_transfer_params is None


def _joined(body: Body) -> bytes:
    return body.join() if isinstance(body, LongBody) else body


class PrefillStep:
    """The first step of one request, and what may be seen while it is under way: as of an `Exchange`. Loop only.

    failed: the workers that failed at it, and whether each fell silent.
    """

    __slots__ = ("_ask", "_body", "_bound", "_head", "_own_lines", "_placement", "_proxy", "_request", "failed")

    def __init__(self, proxy: ProxyState, head: RequestHead, ask: Ask, own_lines: bytes, body: Body) -> None:
        """ask: the request as it is placed for this step. own_lines: the router's headers."""
        self._proxy, self._head, self._ask, self._own_lines = proxy, head, ask, own_lines
        self._body = _joined(body).rstrip()[:-1]
        """Without its last brace."""
        self._placement: Placement | None = None
        """Where it is, or is on its way to."""
        self._request: OwnRequest | None = None
        self._bound: asyncio.Timeout | None = None
        self.failed: list[tuple[Placement, bool]] = []

    def __repr__(self) -> str:
        at = None if self._placement is None else self._placement.worker
        return f"PrefillStep({self._ask.request_id}, worker={at})"

    async def run(self) -> HandedOver | None:
        """Have an engine compute the prompt; return the second step, None when that is to compute it.

        Takes `prefill_s` at most, and no longer than a worker may be silent, beside what it waits for its turn.
        """
        result, handed, limits = "failed", None, self._proxy.limits
        try:
            async with asyncio.timeout(min(limits.prefill_s, limits.worker_silence_s)) as self._bound:
                params = await self._computed()
            if params is not None:
                result, more = "handed", b',"kv_transfer_params":%b}' % json.dumps(params).encode()
                handed = HandedOver(self._body + more, self._proxy.clock() + USABLE_S)
        except (OSError, NoWorker) as exc:
            logger.info("request %s: nothing is handed over: %s", self._ask.request_id, exc)
        self._proxy.meter.handovers.inc(result)
        return handed

    # what may be seen while it waits

    @property
    def heard_bytes(self) -> int:
        connection = None if self._request is None else self._request.connection
        return 0 if connection is None else connection.passed_bytes

    def is_at(self, worker: str, endpoint: Endpoint) -> bool:
        placement = self._placement
        return placement is not None and placement.worker == worker and placement.endpoint == endpoint

    def check(self, now: float) -> None:
        """See whether the request has arrived at the worker's host, which must not take longer than connecting."""
        request = self._request
        if request is None or request.connection is None:
            return
        silent_s = request.connection.unacknowledged_s(now, self._proxy.limits.connect_s)
        if silent_s is not None:
            request.connection.pool.close_idle()
            request.give_up(_NoAnswer("unreachable", f"its host has acknowledged nothing for {silent_s:.1f} s"))

    def worker_hangs(self) -> None:
        """Have another worker compute the prompt. Connecting is bounded, and goes on."""
        if self._request is not None:
            self._request.give_up(_NoAnswer("hung", "it answers nobody any more"))

    # the workers that are asked

    async def _computed(self) -> dict[str, Any] | None:
        """Return where the prompt lies computed; None when an engine does not say so. Raises OSError and NoWorker."""
        for left in reversed(range(TRIES_MAX)):
            placement = self._proxy.dispatcher.place_now(self._ask) or await self._place()
            try:
                status, answer = await self._send(placement)
            except _NoAnswer as exc:
                reason = exc.reason
                self.failed.append((placement, reason in ("broke", "hung")))
                if not left:
                    raise
            else:
                if status < HTTP_ERROR:
                    return _params_in(answer)
                if not (is_error(status) or status in TURNS_AWAY):
                    return None  # what is wrong with the request the client is told by the other engine
                reason = str(status) if status in TURNS_AWAY else "error"
                self.failed.append((placement, False))
                if not left:
                    return None
            self._proxy.meter.retries.inc(reason)
            self._ask = self._ask._replace(exclude=self._ask.exclude | {placement.worker})
        return None

    async def _place(self) -> Placement:
        """Return a placement, after its turn has come, which takes nothing of the time for this step."""
        bound, turn, loop = self._bound, self._ask.turn, asyncio.get_running_loop()
        ends_at = None if bound is None else bound.when()
        if bound is None or turn is None or ends_at is None:
            return await self._proxy.dispatcher.place(self._ask)
        queued_s = turn.queued_s
        bound.reschedule(None)  # It is bounded by itself.
        placement = await self._proxy.dispatcher.place(self._ask)
        bound.reschedule(max(loop.time(), ends_at + turn.queued_s - queued_s))
        return placement

    async def _send(self, placement: Placement) -> tuple[int, bytes]:
        """Send the request to a worker; return status and body of the answer.

        Raises _NoAnswer where there is none, and OSError for what the router lacks itself.
        """
        head, own = self._head, self._own_lines + rank_line(self._head, placement.data_parallel_rank)
        self._placement = placement
        self._request = request = OwnRequest(self._proxy, answer_bytes_max=ANSWER_BYTES_MAX)
        outcome, status = Outcome.CANCELLED, None
        body = _joined(prioritised(self._body + _ONE_TOKEN, head.path, self._ask.turn))
        placement.sent()
        try:
            status, answer = await request.ask(placement.endpoint, head, own, body)
            outcome = Outcome.DONE
            if status < HTTP_ERROR:
                placement.first_byte()
        except _NoAnswer:
            outcome = Outcome.REFUSED
            raise
        except OSError as exc:
            if exc.errno in OWN_FAULTS:
                self._proxy.cannot_connect(exc)
                raise
            outcome, reason = (Outcome.REFUSED, "refused") if request.connection is None else (Outcome.BROKE, "broke")
            raise _NoAnswer(reason, str(exc)) from exc
        except asyncio.CancelledError:
            # One that has had the time of another one before it had less than it was promised.
            if self._bound is not None and self._bound.expired() and not self.failed:
                outcome = Outcome.FAILED
                self.failed.append((placement, False))
            raise
        finally:
            self._placement = self._request = None
            placement.ended(outcome, status)
        return status, answer


def _params_in(answer: bytes) -> dict[str, Any] | None:
    """Return the `kv_transfer_params` of an answer; None where it has none that another engine could use."""
    try:
        params = json.loads(answer)["kv_transfer_params"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return params if isinstance(params, dict) and params.get("do_remote_prefill") else None
