"""Warms a prefix before its traffic comes: a request for one token, placed as any other.

The worker computes the prompt, pulls it, or loads it from a tier, whichever it takes to be fastest, and has it in its
engine's cache then. What it answers is thrown away. There are `AT_ONCE_MAX` such requests at a time, so that warming
does not hold up the traffic that is there already.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.http.exchanges.own_request import ask_server
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.http.protocol.request_head import RequestHead, rank_line
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_router.types import Ask, NoWorker, Outcome, Placement

AT_ONCE_MAX = 4
WAITING_MAX = 64
"""More that wait for their turn are refused at once."""
HTTP_ERROR = 400
_ONE_TOKEN = {"max_tokens": 1, "stream": False}
_NOT_SENT = frozenset({"n", "stream_options", "max_completion_tokens", "best_of", "min_tokens"})
"""Fields that would ask for more than one token, or contradict that."""


class Warmed(NamedTuple):
    """What came of warming a prefix."""

    worker: str
    """Where it is now."""
    seconds: float
    """How long that took, from the placement to the answer."""
    prompt_tokens: int | None
    """As the engine counts them; None when it does not say."""
    cached_tokens: int | None
    """Those of them that needed no computing."""


class Warmer:
    """Warms prefixes for one proxy. On the event loop only."""

    def __init__(self, proxy: ProxyState) -> None:
        self._proxy = proxy
        self._turns = asyncio.Semaphore(AT_ONCE_MAX)
        self._waiting = 0

    def __repr__(self) -> str:
        return f"Warmer(waiting={self._waiting})"

    async def warm(self, path: str, body: dict[str, Any], exclude: frozenset[str]) -> Warmed:
        """Have one worker hold the prompt of a request. exclude: the workers that it is not to be.

        Raises BadBody, NoWorker, and Refusal when too many wait, or the worker refuses or fails.
        """
        if self._waiting >= WAITING_MAX:
            raise Refusal(429, f"expected at most {WAITING_MAX} prefixes that wait to be warmed", retry_after_s=5)
        self._waiting += 1
        try:
            async with self._turns:
                return await self._warm(path, body, exclude)
        finally:
            self._waiting -= 1

    async def _warm(self, path: str, body: dict[str, Any], exclude: frozenset[str]) -> Warmed:
        proxy = self._proxy
        sent = {name: value for name, value in body.items() if name not in _NOT_SENT} | _ONE_TOKEN
        data = json.dumps(sent).encode()
        shape = proxy.parse(path, data, {})
        shape = await shape if not isinstance(shape, tuple) else shape
        if shape.prompt is None:
            raise Refusal(400, "expected messages or a prompt that an engine computes, got none that is understood")
        request_id = proxy.next_request_id().decode() + (shape.prompt.hint if proxy.limits.section_hints else "")
        # Where prompts are computed apart, there they are wanted.
        step = PdRole.PREFILL if proxy.dispatcher.hands_over(shape.model) else None
        ask = Ask(request_id, "POST", path, shape, {}, exclude, step=step)
        began_at = proxy.clock()
        placement = proxy.dispatcher.place_now(ask) or await proxy.dispatcher.place(ask)
        status, answer = await self._send(placement, path, request_id, data)
        if status >= HTTP_ERROR:
            said = answer[:256].decode(errors="replace")
            raise Refusal(502, f"worker {placement.worker} answered {status}: {said}", code="worker_refused")
        return Warmed(placement.worker, round(proxy.clock() - began_at, 3), *_tokens_in(answer))

    async def _send(self, placement: Placement, path: str, request_id: str, data: bytes) -> tuple[int, bytes]:
        lines = b"Content-Type: application/json\r\n"
        head = RequestHead("POST", path.encode(), path, "", True, True, {}, lines, False, None, False)
        own = b"X-Request-Id: %b\r\n%b" % (request_id.encode(), rank_line(head, placement.data_parallel_rank))
        outcome, status = Outcome.CANCELLED, None
        placement.sent()
        try:
            status, answer = await ask_server(self._proxy, placement.endpoint, head, own, data)
            outcome = Outcome.DONE
            if status < HTTP_ERROR:
                placement.first_byte()
        except OSError as exc:
            outcome = Outcome.BROKE
            raise NoWorker(502, f"worker {placement.worker}: {exc}", kind="bad_gateway") from exc
        finally:
            placement.ended(outcome, status)
        return status, answer


def _tokens_in(answer: bytes) -> tuple[int | None, int | None]:
    """Return the tokens of the prompt, and the cached ones, that the usage in an answer tells."""
    try:
        usage = json.loads(answer)["usage"]
        details = usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens", usage.get("cache_read_input_tokens"))
        prompt = usage.get("prompt_tokens")
        if "input_tokens" in usage:
            # Anthropic's API leaves out of it what came from a cache or went into a provider's.
            prompt = usage["input_tokens"] + (cached or 0) + (usage.get("cache_creation_input_tokens") or 0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, None
    return (prompt if type(prompt) is int else None), (cached if type(cached) is int else None)
