"""A client's connection as time passes: what does not come in time, or no longer moves, is given up.

HEAD      a head that has begun is refused when it is late; a client that sends nothing is closed
BODY      refused when less than `body_rate_min` has come of it since it was last looked at
BUSY      given up when the client reads no more, or nothing comes of the answer
LINGER    closed, whether or not the client has read the refusal
RESET     reset once all has arrived
"""

from __future__ import annotations

from ghostcacher_router.http.clients.client_ends import EndingConnection
from ghostcacher_router.http.clients.client_state import LATE_BODY, LATE_HEAD, State
from ghostcacher_router.http.clients.peer_state import peer_has_closed, reset_connection
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_router.types import Endpoint


class TimedConnection(EndingConnection):
    """A client's connection, whose `expired` is called when its deadline has passed. Loop only."""

    __slots__ = ("_heard_at", "_heard_bytes", "_moved_bytes", "_seen_bytes", "_write_paused")

    def __init__(self, proxy: ProxyState) -> None:
        super().__init__(proxy)
        self._seen_bytes = 0
        """Of the request's body, when it was last looked at."""
        self._moved_bytes = 0
        """`passed_bytes` of the exchange when it was last looked at."""
        self._heard_bytes = 0
        """`heard_bytes` of the exchange when it was last looked at."""
        self._heard_at = 0.0
        """When they were last seen to have grown; loop clock, s."""
        self._write_paused = False
        """Whether the client does not keep up with what is written."""

    @property
    def trickles(self) -> bool:
        limits, took_s = self._proxy.limits, self._proxy.clock() - self._moved_at
        return took_s > limits.body_grace_s and self._reader.received_bytes < took_s * limits.body_rate_min

    def expired(self, now: float) -> None:
        state = self._state
        if state is State.HEAD:
            if self._reader.pending:
                self._refuse(LATE_HEAD)
            else:
                self._close()
        elif state is State.BODY:
            limits, received_bytes = self._proxy.limits, self._reader.received_bytes
            if received_bytes - self._seen_bytes < limits.client_body_s * limits.body_rate_min:
                self._refuse(LATE_BODY)
            else:
                # What came fast earns no time to be silent.
                self._seen_bytes = received_bytes
                self.deadline = now + limits.client_body_s
        elif state is State.BUSY:
            self._check_progress(now)
        elif state is State.RESET:
            self._reset_once_arrived(now)
        elif state is State.CLOSED:
            reset_connection(self.transport)
        else:
            self.transport.abort()

    def _check_progress(self, now: float) -> None:
        """Give up a response that nobody reads, or of which nothing comes."""
        exchange, limits = self._exchange, self._proxy.limits
        if exchange is not None and exchange.heard_bytes != self._heard_bytes:
            self._heard_bytes, self._heard_at = exchange.heard_bytes, now
        if self._read_paused and peer_has_closed(self.transport):
            self.abort()
        elif self._write_paused or exchange is None:
            if now - self._moved_at > limits.client_stall_s:
                self.abort()
        else:
            if exchange.passed_bytes != self._moved_bytes or exchange.waits_for_turn:
                self._moved_bytes, self._moved_at = exchange.passed_bytes, now
            if now - self._moved_at > limits.worker_silence_s:
                exchange.expire()
            else:
                exchange.check(now)

    def is_at(self, worker: str, endpoint: Endpoint) -> bool:
        return self._exchange is not None and self._exchange.is_at(worker, endpoint)

    def moved_after(self, when: float) -> bool:
        heard_bytes = 0 if self._exchange is None else self._exchange.heard_bytes
        return heard_bytes > 0 and (heard_bytes != self._heard_bytes or self._heard_at > when)

    def worker_hangs(self, worker: str, endpoint: Endpoint) -> None:
        # Nothing can come while the client does not read. Should it read again, the worker's next probe has it end.
        if self._exchange is not None and self._exchange.is_at(worker, endpoint) and not self._write_paused:
            self._exchange.worker_hangs()
