"""The first step of a request where engines that compute prompts and engines that answer are apart.

    the client's request --as one for one token--> an engine that computes prompts, placed by what it has of the prompt
    the engine's answer: kv_transfer_params, where another engine finds what was computed
    the client's request --with these--> an engine that answers, placed by load

as vLLM's own example of a proxy does. Whatever goes wrong in the first step, there is none: whichever engine answers
computes the prompt, too. What was handed over is used once, and soon: the first engine lets go of it when it was read,
and nobody can tell what lies there later.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, NamedTuple

import msgspec

from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.http.exchanges.own_request import ask_server
from ghostcacher_router.http.protocol.request_head import RequestHead, rank_line
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_router.types import Ask, Body, LongBody, NoWorker, Outcome, Placement, RequestShape

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
_SERVER_ERROR = 500
_TOO_MANY = 429

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


class _Fields(msgspec.Struct):
    """What makes a request one for a single engine."""

    n: Any = None
    best_of: Any = None
    use_beam_search: Any = None
    echo: Any = None
    prompt_logprobs: Any = None
    kv_transfer_params: Any = None
    prompt: Any = None


def wanted(proxy: ProxyState, head: RequestHead, shape: RequestShape, body: Body) -> bool:
    """Say whether a request is to be computed by one engine and answered by another."""
    limits = proxy.limits
    if head.method != "POST" or head.path not in PATHS or shape.prompt is None or shape.needs_id is not None:
        return False
    size = shape.prompt.tokens or shape.prompt.size // limits.bytes_per_token
    return (
        size >= limits.prefill_tokens_min
        and len(body) <= BODY_BYTES_MAX
        and proxy.dispatcher.hands_over(shape.model)
        and fits(_joined(body))
    )


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


async def hand_over(proxy: ProxyState, head: RequestHead, ask: Ask, own_lines: bytes, body: Body) -> HandedOver | None:
    """Have an engine compute the prompt of a request; return the second step, None when that is to compute it.

    ask: the request as it is placed for this step. own_lines: the router's headers. Takes `prefill_s` at most.
    """
    data = _joined(body).rstrip()
    result, handed = "failed", None
    try:
        async with asyncio.timeout(proxy.limits.prefill_s):
            params = await _computed(proxy, head, ask, own_lines, data[:-1] + _ONE_TOKEN)
        if params is not None:
            result, more = "handed", b',"kv_transfer_params":%b}' % json.dumps(params).encode()
            handed = HandedOver(data[:-1] + more, proxy.clock() + USABLE_S)
    except (OSError, NoWorker, TimeoutError) as exc:
        logger.info("request %s: nothing is handed over: %s", ask.request_id, exc)
    proxy.meter.handovers.inc(result)
    return handed


def _joined(body: Body) -> bytes:
    return body.join() if isinstance(body, LongBody) else body


async def _computed(
    proxy: ProxyState, head: RequestHead, ask: Ask, own_lines: bytes, body: bytes
) -> dict[str, Any] | None:
    """Return where the prompt lies computed; None when an engine does not say so. Raises OSError and NoWorker."""
    for left in reversed(range(TRIES_MAX)):
        placement = proxy.dispatcher.place_now(ask) or await proxy.dispatcher.place(ask)
        try:
            status, answer = await _send(proxy, placement, head, own_lines, body)
        except OSError:
            if not left:
                raise
        else:
            if status < HTTP_ERROR:
                return _params_in(answer)
            if not left or not (status >= _SERVER_ERROR or status == _TOO_MANY):
                return None  # what is wrong with the request the client is told by the other engine
        ask = ask._replace(exclude=ask.exclude | {placement.worker})
    return None


async def _send(
    proxy: ProxyState, placement: Placement, head: RequestHead, own_lines: bytes, body: bytes
) -> tuple[int, bytes]:
    """Send the first step; return status and body of the answer. Raises OSError when there is none."""
    own = own_lines + rank_line(head, placement.data_parallel_rank)
    outcome, status = Outcome.CANCELLED, None
    placement.sent()
    try:
        status, answer = await ask_server(proxy, placement.endpoint, head, own, body, answer_bytes_max=ANSWER_BYTES_MAX)
        outcome = Outcome.DONE
        if status < HTTP_ERROR:
            placement.first_byte()
    except OSError:
        outcome = Outcome.BROKE
        raise
    finally:
        placement.ended(outcome, status)
    return status, answer


def _params_in(answer: bytes) -> dict[str, Any] | None:
    """Return the `kv_transfer_params` of an answer; None where it has none that another engine could use."""
    try:
        params = json.loads(answer)["kv_transfer_params"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return params if isinstance(params, dict) and params.get("do_remote_prefill") else None


def step_of(role: PdRole, shape: RequestShape) -> RequestShape:
    """Return what routing needs to know of a step: the second one goes by load, not by its prompt or its session."""
    return shape if role is PdRole.PREFILL else shape._replace(prompt=None, session=None)
