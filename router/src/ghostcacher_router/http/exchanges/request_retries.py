"""A request to which one worker gives no answer: it is sent once more, or to another worker, or ends.

    the connection breaks                  at a kept connection: once more, on a new one; else to another worker
    the host acknowledges nothing          the same
    no connection can be made              to another worker
    the worker hangs                       to another worker; a response that has begun ends
    the worker turns it away (503, 429)    to another worker; the client gets the last such answer if nobody answers
    it fails where others have failed      the same, once
    nobody is left to be tried             it ends

While another worker computes its prompt, that step goes on by the same rules (`handover.py`), and never ends it.

What a worker was sent it may have carried out, so it goes to another one only where that makes no difference to the
client (`repeatable.py`). A connection that was kept and turns out closed, or to lead nowhere, proves nothing of the
worker.
"""

from __future__ import annotations

import logging

from ghostcacher_router.http.exchanges.attempts import TURNS_AWAY, HeldAnswer
from ghostcacher_router.http.exchanges.handover import PrefillStep
from ghostcacher_router.http.exchanges.repeatable import is_repeatable
from ghostcacher_router.http.exchanges.request_ends import EndingRequest
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.http.proxy_ports import Client
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_router.prompt import BadBody
from ghostcacher_router.types import Body, Endpoint, NoWorker, Outcome, Placement
from ghostcacher_router.upstreams.worker_connection import WorkerConnection

logger = logging.getLogger(__name__)


class RetriedRequest(EndingRequest):
    """A request that may be tried at several workers. Loop only."""

    __slots__ = ("_reason", "_reused", "_step")

    def __init__(self, proxy: ProxyState, client: Client, head: RequestHead, body: Body, received_at: float) -> None:
        super().__init__(proxy, client, head, body, received_at)
        self._reused = False
        """Whether its connection was kept from an earlier request."""
        self._reason = "refused"
        """Why it goes to another worker if no new connection can be made: a label of retries."""
        self._step: PrefillStep | None = None
        """The first of two steps, while it is under way."""

    # what may be seen while it waits

    def is_at(self, worker: str, endpoint: Endpoint) -> bool:
        if self._step is not None:
            return self._step.is_at(worker, endpoint)
        placement = self._placement
        return placement is not None and placement.worker == worker and placement.endpoint == endpoint

    def check(self, now: float) -> None:
        """See whether the request has arrived at the worker's host, which must not take longer than connecting.

        Nor is an answer waited for that is held back.
        """
        if self._step is not None:
            self._step.check(now)
            return
        connection, limits = self._connection, self._proxy.limits
        if connection is not None and self._held is not None:
            if now - self._held_at > limits.turned_away_s:
                self._let_go_of(connection)
                self._turned_away(None)
            return
        if connection is None or self._status is not None:
            return
        silent_s = connection.unacknowledged_s(now, limits.connect_s)
        if silent_s is not None:
            connection.pool.close_idle()
            self._let_go_of(connection)
            self._unanswered(f"its host has acknowledged nothing for {silent_s:.1f} s", "unreachable")

    def worker_hangs(self) -> None:
        """Have another worker answer, or end the response. Connecting is bounded, and goes on."""
        if self._step is not None:
            self._step.worker_hangs()
            return
        connection = self._connection
        if self._status is not None and self._held is None:
            self._fail(504, "the worker no longer answers", code="worker_timeout")
        elif connection is not None:
            self._let_go_of(connection)
            self._reused = False  # A new connection to it would lead no further.
            if self._held is None:
                self._unanswered("it answers nobody any more", "hung")
            else:
                self._turned_away(None)

    def expire(self) -> None:
        """The worker has been silent for too long; the first of two steps ends by itself, with time for the second."""
        if self._step is None:
            super().expire()

    def _let_go_of(self, connection: WorkerConnection) -> None:
        self._connection = None
        connection.abort()

    # what is done then

    def _unanswered(self, error: str, reason: str) -> None:
        """The request was sent, and nothing came back. reason: a label of retries."""
        if self._reused and self._placement is not None:
            self._reason = reason
            self._connect(self._placement)
        elif is_repeatable(self._head):
            self._refused(error, reason)
        else:
            why = f"{error}; it may have carried out the request, so no other was asked"
            self._fail(502, f"the worker did not answer: {why}", code="bad_gateway")

    def _refused(self, error: str, reason: str) -> None:
        """A worker took nothing: tell the dispatcher, and ask for another."""
        placement, broke = self._placement, reason == "broke"
        assert placement is not None, self
        self._placement = None
        self._left(placement, Outcome.BROKE if broke else Outcome.REFUSED, None)
        self._attempts.add(placement, fell_silent=broke or reason == "hung")
        logger.info("request %s: worker %s: %s", self.request_id.decode(), placement.worker, error)
        poison = self._attempts.poison()
        if poison is not None:
            logger.warning("request %s: %s", self.request_id.decode(), poison.message)
            self._refuse(poison)
        else:
            self._try_another(reason)

    def _turned_away(self, answer: HeldAnswer | None) -> None:
        """A worker takes no request now, or fails; the client has got nothing of that answer.

        answer: None: it broke off.
        """
        placement, status = self._placement, self._status
        assert placement is not None, self
        self._placement = self._held = self._status = None
        self._left(placement, Outcome.FAILED if answer is None else Outcome.DONE, status)
        self._attempts.add(placement, status=status, answer=answer)
        self._try_another(str(status) if status in TURNS_AWAY else "error")

    def _try_another(self, reason: str) -> None:
        if len(self._attempts.excluded) > self._proxy.limits.retries_max or self._attempts.spent:
            self._give_up()
        else:
            self._proxy.meter.retries.inc(reason)
            self._place()

    def _not_placed(self, exc: Exception) -> None:
        """End a request that cannot be parsed or placed."""
        if isinstance(exc, BadBody):
            self._refuse(Refusal(400, exc.message, param=exc.param))
        elif not isinstance(exc, NoWorker):
            self._fail_unexpectedly("reading or placing a request")
        elif self._attempts.excluded:
            self._give_up()
        else:
            self._refuse(Refusal(exc.status, exc.message, code=exc.kind, retry_after_s=exc.retry_after_s))

    def _give_up(self) -> None:
        """Nobody is left to be tried: the client gets the last answer that turned the request away, or an error."""
        attempts = self._attempts
        attempts.gave_up()
        answer = attempts.answer
        if answer is None:
            self._refuse(attempts.refusal())
            return
        self._stop(Outcome.FAILED)
        self._count(answer.status, answer.worker, None)
        self._client.write(answer.data)
        self._client.exchange_done(answer.keep)

    # the main path, which `WorkerExchange` is

    def _place(self) -> None:
        """Have a worker chosen that was not tried yet, and send the request there."""
        raise NotImplementedError

    def _connect(self, placement: Placement) -> None:
        """Send the request on a new connection."""
        raise NotImplementedError
