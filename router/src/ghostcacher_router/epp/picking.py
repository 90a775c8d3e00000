"""Picks a worker for a request of a gateway, and others that may stand in for it.

Whatever is missing costs time and no answer: without Redis, without a prompt that can be read, or when what it waits
for does not come, a worker is picked by load. Only when no worker can take the request is there none.

Where some workers compute prompts and others answer, the request goes to one that answers, and a header names one that
computes, as llm-d's picker does: the sidecar of the former asks the latter.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import NamedTuple

from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.epp.candidates import Candidates, is_in, nobody
from ghostcacher_router.epp.messages import PREFILLER
from ghostcacher_router.epp.parts import Parts
from ghostcacher_router.http.protocol.request_head import RANK_HEADER
from ghostcacher_router.prompt import BadBody, not_from_clients, shape_by_method
from ghostcacher_router.types import Ask, Body, NoWorker, Outcome, Placement, RequestShape, Turn

UNREAD = RequestShape(model=None, stream=False, prompt=None, session=None)
PREFILL_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
"""What the sidecar of a worker that answers hands to another one."""
PLACED_AGAIN_MAX = 4
"""Placements of one request, of which all but the last were at a worker that came too late to be left out."""
STAND_INS_MAX = 32
"""Workers of which those that may stand in are the least loaded: of a larger fleet so many at random."""
HTTP_NOT_FOUND = 404


class Wanted(NamedTuple):
    """A request for which a worker is wanted."""

    request_id: str
    method: str
    target: str
    """Path and query."""
    headers: dict[bytes, bytes]
    """By lower-case name."""
    subset: frozenset[str] | None
    """The endpoints that the gateway may use, as `ip:port` or `ip`; None: all of the pool."""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class Picked(NamedTuple):
    """Where a request goes."""

    ask: Ask
    placement: Placement
    destination: str
    """`ip:port` of the worker, and of others that may stand in for it, separated by commas."""
    headers: list[tuple[str, bytes]]
    """What the request is to bring with it."""
    prefill: Placement | None
    """At the worker that computes the prompt; None where the same one does."""


class EndpointPicking:
    """Picks workers for gateways. On the event loop only."""

    def __init__(self, parts: Parts, *, fallbacks_max: int, members: Callable[[], Collection[str] | None]) -> None:
        """fallbacks_max: endpoints behind the one that is picked. members: `ip:port` of the pool; None: all workers."""
        self._parts, self._fallbacks_max = parts, fallbacks_max
        self._candidates = Candidates(parts, members)

    def __repr__(self) -> str:
        return f"EndpointPicking({self._parts.fleet!r})"

    async def pick(
        self, wanted: Wanted, body: Body | None, timeout_s: float, *, why_unknown: str = "bodyless"
    ) -> Picked:
        """Return where a request goes. Raises NoWorker.

        body: None when it is not known. timeout_s: after so long it is picked by load. why_unknown: for the metrics.
        """
        await self._candidates.resolve_names()
        exclude = self._candidates.excluded(wanted.subset)
        deadline = asyncio.get_running_loop().time() + timeout_s
        if body is None:
            how, shape = why_unknown, UNREAD
        else:
            how, shape = await self._shape(wanted, body, deadline)
            if shape.names_engine is not None and not self._parts.limits.kv_transfer_from_clients:
                raise NoWorker(400, not_from_clients(shape.names_engine), kind="invalid_value")
        engine_id = wanted.request_id
        if shape.prompt is not None and self._parts.limits.section_hints:
            engine_id += shape.prompt.hint
        turn = Turn(self._parts.clock(), 0 if body is None else len(body)) if self._parts.limits.takes_turns else None
        ask = Ask(engine_id, wanted.method, wanted.path, shape, wanted.headers, exclude, turn=turn)
        prefill = await self._place_prefill(ask, deadline)
        if prefill is not None and not self._candidates.may_go_to(prefill.worker, wanted.subset):
            prefill.ended(Outcome.CANCELLED, None)
            prefill = None
        try:
            if prefill is not None:
                step = shape._replace(prompt=None, session=None)
                ask = ask._replace(shape=step, step=PdRole.DECODE)
            late, placement = await self._place_within(ask, wanted.subset, deadline)
        except BaseException:
            if prefill is not None:
                prefill.ended(Outcome.CANCELLED, None)
            raise
        self._parts.metrics.picker.picks.inc("late" if late else how)
        return self._picked(ask, placement, prefill, wanted.subset)

    def again_at(self, picked: Picked, served: str) -> Placement | None:
        """Place a request at the worker that the gateway sent it to, if it is another than the first; None: it is not.

        served: its `ip:port`.
        """
        first, *others = picked.destination.split(",")
        if served == first or served not in others:
            return None
        exclude = frozenset(
            name
            for name, worker in self._parts.fleet.workers.items()
            if self._candidates.address(worker.endpoint) != served
        )
        with suppress(NoWorker):
            # It is there already, so that it waits for no turn.
            return self._parts.dispatcher.place_now(picked.ask._replace(exclude=exclude, turn=None))
        return None

    def _picked(
        self, ask: Ask, placement: Placement, prefill: Placement | None, subset: frozenset[str] | None
    ) -> Picked:
        headers = [("x-request-id", ask.request_id.encode())]
        if placement.data_parallel_rank is not None:
            headers.append((RANK_HEADER.decode(), b"%d" % placement.data_parallel_rank))
        if prefill is not None:
            self._parts.metrics.picker.prefills.inc()
            headers.append((PREFILLER, (self._candidates.address(prefill.endpoint) or "").encode()))
        first = self._candidates.address(placement.endpoint)
        assert first is not None, placement
        destination = ",".join([first, *self._fallbacks(ask, placement, first, subset)])
        return Picked(ask, placement, destination, headers, prefill)

    def _fallbacks(self, ask: Ask, placement: Placement, first: str, subset: frozenset[str] | None) -> list[str]:
        """Return the endpoints that may stand in for the first one, the least loaded first.

        There is none for an engine among several at one endpoint: the header that names it would mean another one.
        """
        if placement.data_parallel_rank is not None or not self._fallbacks_max:
            return []
        others = self._candidates.stand_ins(ask.shape.model)
        if subset is not None:
            others = [(name, address) for name, address in others if is_in(address, subset)]
        if len(others) > STAND_INS_MAX:
            others = random.sample(others, STAND_INS_MAX)
        in_flight = self._parts.in_flight
        least = heapq.nsmallest(self._fallbacks_max + 1, others, key=lambda other: in_flight(other[0]))
        found = dict.fromkeys(address for _, address in least)
        return [address for address in found if address != first][: self._fallbacks_max]

    async def _shape(self, wanted: Wanted, body: Body, deadline: float) -> tuple[str, RequestShape]:
        """Return what is known of a request, and how: of one that no engine could serve, an engine tells the client."""
        shape = shape_by_method(wanted.method, wanted.target, wanted.headers)
        if shape is not None:
            return "prompt", shape
        try:
            found = self._parts.parse(wanted.target, body, wanted.headers)
            if not isinstance(found, RequestShape):
                async with asyncio.timeout_at(deadline):
                    found = await found
        except (BadBody, TimeoutError):
            return "unread", UNREAD
        return "prompt", found

    async def _place_within(self, ask: Ask, subset: frozenset[str] | None, deadline: float) -> tuple[bool, Placement]:
        """Return the same as `_place`, of a worker that the gateway may use. Raises NoWorker.

        Who was no candidate when the wait began may be one at its end: a worker that came meanwhile, or one that is
        drained and holds what the request needs.
        """
        for _ in range(PLACED_AGAIN_MAX):
            late, placement = await self._place(ask, deadline)
            if self._candidates.may_go_to(placement.worker, subset):
                return late, placement
            placement.ended(Outcome.CANCELLED, None)
            ask = ask._replace(exclude=ask.exclude | {placement.worker})
        raise nobody()

    async def _place(self, ask: Ask, deadline: float) -> tuple[bool, Placement]:
        """Return whether what it waited for came too late, and a placement. Raises NoWorker."""
        dispatcher = self._parts.dispatcher
        try:
            placement = dispatcher.place_now(ask)
            if placement is None:
                async with asyncio.timeout_at(deadline):
                    placement = await dispatcher.place(ask)
        except TimeoutError:
            shape = ask.shape._replace(prompt=None, session=None, needs_id=None)
            plain = ask._replace(shape=shape, turn=None)
            return True, dispatcher.place_now(plain) or await dispatcher.place(plain)
        except NoWorker as exc:
            if exc.status != HTTP_NOT_FOUND or ask.shape.model is None:
                raise
            # Any worker of the pool tells the client that it has no such model.
            return await self._place(ask._replace(shape=ask.shape._replace(model=None)), deadline)
        return False, placement

    async def _place_prefill(self, ask: Ask, deadline: float) -> Placement | None:
        """Place the computing of a prompt; None where the worker that answers computes it, too."""
        prompt, limits = ask.shape.prompt, self._parts.limits
        if prompt is None or ask.path not in PREFILL_PATHS or ask.shape.needs_id is not None:
            return None
        if (prompt.tokens or prompt.size // limits.bytes_per_token) < limits.prefill_tokens_min:
            return None
        if not self._parts.dispatcher.hands_over(ask.shape.model):
            return None
        with suppress(NoWorker):
            late, placement = await self._place(ask._replace(step=PdRole.PREFILL), deadline)
            if not late and placement.data_parallel_rank is None:
                return placement
            placement.ended(Outcome.CANCELLED, None)
        return None
