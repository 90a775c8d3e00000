"""Answers for a router in several processes, in whichever of them a client happens to ask.

    read, and merged                  /metrics, /gc/status, stats, workers (pods), history, locks, prefixes, explain
    done by all                       drains; flushes, where no Redis tells the others
    the same everywhere, or of one    all else: the asked process answers

Each answers the request first, and so decides whether it may be asked; only then it asks the others, in bounded time.
With the header `x-gc-process: own` it answers for itself alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qs

import msgspec

from ghostcacher_connector.core.dashboard_api import History, HistoryPoint
from ghostcacher_router.http.protocol.local_response import LocalRequest, LocalResponse
from ghostcacher_router.http.proxy_ports import LocalEndpoints
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.metrics.merging import counts_of, merged_page
from ghostcacher_router.processes.ended_counts import Ended, metrics_of_all
from ghostcacher_router.processes.ended_history import recent
from ghostcacher_router.processes.merging import MERGED, merged_drain, merged_history
from ghostcacher_router.processes.seat import Seat
from ghostcacher_router.processes.siblings import COUNTS, PAGE, Answer, Question, Siblings

logger = logging.getLogger(__name__)

ALONE = b"x-gc-process"
OK = 200


class Fared(Protocol):
    """How one process has fared."""

    def history(self, after: float | None) -> History:
        """Return how it did after a time, in seconds since 1970; None: in all that is kept."""

    def sample(self) -> None:
        """Add what has happened since the last interval ended."""


class WholeRouter:
    """The `LocalEndpoints` of one process, for all of them. On the event loop only."""

    def __init__(
        self,
        local: LocalEndpoints,
        metrics: RouterMetrics,
        fared: Fared,
        seat: Seat,
        siblings: Siblings,
        *,
        workers: Callable[[], Iterable[str]],
        shared: bool,
    ) -> None:
        """local, metrics, fared: of this process alone. workers: returns their names. shared: whether flushes reach the
        others through Redis.
        """
        self._local, self._metrics, self._fared, self._seat, self._siblings = local, metrics, fared, seat, siblings
        self._workers, self._shared = workers, shared
        self.ended = Ended()
        """What the processes had counted that have ended, or have counted their last."""
        self.ended_points: Sequence[HistoryPoint] = ()
        """How these had fared."""

    def __repr__(self) -> str:
        return f"WholeRouter({self._seat.name}, {self._local!r})"

    def match(self, method: str, path: str) -> bool:
        """As one process."""
        return self._local.match(method, path)

    async def handle(self, request: LocalRequest) -> LocalResponse:
        """Answer for all processes. Bounded in time; never raises for what a client sent."""
        own = await self._local.handle(request)
        if own.status != OK or ALONE in request.headers or request.method == "HEAD":
            return own
        try:
            return await self._of_all(request, own)
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
            logger.exception("the answers of all processes to %s cannot be merged", request.path)
            return own

    async def answer(self, question: Question) -> Answer:
        """Answer another process, for this one alone."""
        if question.what == PAGE:
            return Answer(body=self._metrics.page())
        if question.what == COUNTS:
            return Answer(counts=self.own_counts())
        response = await self._local.handle(question.request)
        return Answer(response.status, response.body)

    def own_counts(self) -> dict[str, Any]:
        """Return what this process has counted."""
        return counts_of(self._metrics)

    def own_points(self, after: float | None, *, last: bool) -> Sequence[HistoryPoint]:
        """Return how this process has fared after a time, in seconds since 1970. last: up to now."""
        if last:
            self._fared.sample()
        return self._fared.history(after).points

    def _not_ended(self, answers: Mapping[str, Answer]) -> list[Answer]:
        """Return the answers but of those that are in `ended` by now, though they answer still."""
        return [answer for name, answer in answers.items() if name not in self.ended.names]

    async def _of_all(self, request: LocalRequest, own: LocalResponse) -> LocalResponse:
        path, reads = request.path, request.method == "GET"
        if reads and path == "/metrics":
            answers = await self._siblings.ask(Question(PAGE))
            pages = {self._seat.name: own.body} | {name: answer.body for name, answer in answers.items()}
            return own._replace(body=merged_page(pages))
        if reads and path == "/gc/stats":
            answers = await self._siblings.ask(Question(COUNTS))
            counts = [self.own_counts(), *(answer.counts for answer in self._not_ended(answers))]
            whole = metrics_of_all(counts, self.ended.counts, self._workers())
            return own._replace(body=msgspec.json.encode(whole.stats()))
        if reads and path == "/gc/history":
            return await self._history(request, own)
        if (merge := MERGED.get(path)) is not None:
            merged = merge(msgspec.json.decode(own.body), await self._ask(request))
            if path == "/gc/status":
                merged["router"] = self._seat.router
            return own._replace(body=msgspec.json.encode(merged))
        if path.endswith("/drain") and not reads:
            merged = merged_drain(msgspec.json.decode(own.body), await self._ask(request))
            return own._replace(body=msgspec.json.encode(merged))
        if path == "/gc/flush" and not self._shared:
            await self._ask(request)
        return own

    async def _history(self, request: LocalRequest, own: LocalResponse) -> LocalResponse:
        given = parse_qs(request.query).get("after")
        after = None if given is None else float(given[0])
        answer = msgspec.json.Decoder(History).decode
        mine = answer(own.body)
        if after is not None:
            # An interval that ends after it may have begun before.
            request = request._replace(query=f"after={after - 3 * mine.interval_s}")
            mine = answer((await self._local.handle(request)).body)
        answers = await self._siblings.ask(Question.of(request))
        others = [answer(each.body) for each in self._not_ended(answers) if each.status == OK]
        merged = merged_history([mine, *others], after, recent(self.ended_points, mine.now))
        return own._replace(body=msgspec.json.encode(msgspec.structs.replace(merged, router=self._seat.router)))

    async def _ask(self, request: LocalRequest) -> list[dict[str, object]]:
        answers = await self._siblings.ask(Question.of(request))
        return [msgspec.json.decode(answer.body) for answer in answers.values() if answer.status == OK]
