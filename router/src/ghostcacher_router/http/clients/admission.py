"""Which clients may be connected, and who goes when there are too many.

    address       `connections_per_address_max` of one address are there
    descriptors   the process may open only a few more files
    connections   `connections_max` clients are there

In each case the connection goes that has waited longest for a next request (of that address, if that is what has too
many), whether or not a request was ever sent on it: its client opens another one when it needs it. So who holds
thousands of connections without using them keeps nobody out. When none waits, one goes whose body comes too slowly, by
all that has come of it. When all are at work, the new client is refused with 503.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Protocol

from ghostcacher_router.http.open_files import short_of_files
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.proxy_ports import Connection, Meter
from ghostcacher_router.http.rare_lines import RareLines

logger = logging.getLogger(__name__)

LINGERING_MAX = 64
"""Refused clients whose connections stay open until they have read why. Beyond, a reset may overtake the refusal."""
SENDING_LOOKED_AT = 16
"""Of the clients that send a body, those that began first: it is these that are slow."""

_ADVICE = {
    "address": "connections_per_address_max=%d connections of one address are there, last of %s",
    "descriptors": "nearly all files that the process may open are open: raise the limit (ulimit -Hn), or lower "
    "connections_max=%d; last client: %s",
    "connections": "connections_max=%d clients are connected; last client: %s",
}


class Admitted(Connection, Protocol):
    """A client's connection. peer: its address; None when it is not known."""

    __slots__ = ()
    peer: str | None

    @property
    def trickles(self) -> bool:
        """Whether the body that it sends has come too slowly so far."""

    def drop(self) -> None:
        """Close at once: no request is whole."""


class Admission:
    """Admits clients, and drops those that only wait. Loop only.

    worker_sockets: says how many connections to workers are open. clients: all open connections. Those that are refused
    are among them until they are closed, and count for no limit but that of files.
    """

    def __init__(self, limits: Limits, meter: Meter, worker_sockets: Callable[[], int]) -> None:
        self.clients: set[Admitted] = set()
        self._limits = limits
        self._meter = meter
        self._worker_sockets = worker_sockets
        self._refused: set[Admitted] = set()
        self._waiting: dict[Admitted, None] = {}
        self._sending: dict[Admitted, None] = {}
        self._waiting_of: dict[str, dict[Admitted, None]] = {}
        self._count_of: Counter[str] = Counter()
        self._events: Counter[tuple[str, str]] = Counter()
        self._lines = RareLines()
        self._last_peer: str | None = None

    def __repr__(self) -> str:
        return f"Admission(clients={len(self.clients)}, waiting={len(self._waiting)}, refused={len(self._refused)})"

    @property
    def may_linger(self) -> bool:
        """Whether a client that was just refused may stay until it has read that."""
        return len(self._refused) <= LINGERING_MAX

    def admit(self, client: Admitted) -> bool:
        """Take in a new connection, for which another may be dropped; False when there is no room for it."""
        self.clients.add(client)
        self._count(client, 1)
        reason = self._shortage(client)
        if reason is not None:
            dropped = self._dispensable(client.peer if reason == "address" else None)
            self._note(reason, "refused" if dropped is None else "dropped", client)
            if dropped is None:
                self._count(client, -1)
                self._refused.add(client)
                return False
            self.forget(dropped)
            dropped.drop()
        self.waits(client)
        return True

    def waits(self, client: Admitted) -> None:
        """A client has no request under way, from now on."""
        self._waiting[client] = None
        if self._limits.connections_per_address_max is not None and client.peer is not None:
            self._waiting_of.setdefault(client.peer, {})[client] = None

    def sends(self, client: Admitted) -> None:
        """A client sends the body of a request, from now on."""
        self.busy(client)
        self._sending[client] = None

    def busy(self, client: Admitted) -> None:
        """A request of this client is under way, or its connection is closing."""
        self._sending.pop(client, None)
        if client not in self._waiting:
            return
        del self._waiting[client]
        if client.peer in self._waiting_of:
            del self._waiting_of[client.peer][client]
            if not self._waiting_of[client.peer]:
                del self._waiting_of[client.peer]

    def forget(self, client: Admitted) -> None:
        """A connection is closed. Idempotent."""
        if client not in self.clients:
            return
        self.clients.discard(client)
        self.busy(client)
        if client in self._refused:
            self._refused.discard(client)
        else:
            self._count(client, -1)

    def tick(self, now: float) -> None:
        """Log what has become short, once in a while for each kind of shortage."""
        for reason in {reason for reason, _ in self._events}:
            if not self._lines.due(reason, now):
                continue
            dropped, refused = (self._events.pop((reason, what), 0) for what in ("dropped", "refused"))
            of_address = reason == "address"
            limit = self._limits.connections_per_address_max if of_address else self._limits.connections_max
            logger.warning(
                f"{_ADVICE[reason]}. Since the last such line %d idle or slow ones were closed for new ones, "
                "and %d new ones were refused",
                limit,
                self._last_peer,
                dropped,
                refused,
            )

    def _dispensable(self, peer: str | None) -> Admitted | None:
        """Return the connection that may go first; None when all are at work. peer: only one of this address."""
        waiting = self._waiting if peer is None else self._waiting_of.get(peer, {})
        sending = (client for client in islice(self._sending, SENDING_LOOKED_AT) if peer is None or client.peer == peer)
        return next(iter(waiting), None) or next((client for client in sending if client.trickles), None)

    def _shortage(self, client: Admitted) -> str | None:
        """Return what there is too little of, now that this client has come."""
        limits = self._limits
        per_address = limits.connections_per_address_max
        if per_address is not None and client.peer is not None and self._count_of[client.peer] > per_address:
            return "address"
        if short_of_files(len(self.clients) + self._worker_sockets()):
            return "descriptors"
        return "connections" if len(self.clients) - len(self._refused) > limits.connections_max else None

    def _note(self, reason: str, what: str, client: Admitted) -> None:
        self._events[reason, what] += 1
        self._last_peer = client.peer
        self._meter.turned_away.inc(reason, what)

    def _count(self, client: Admitted, change: int) -> None:
        if self._limits.connections_per_address_max is None or client.peer is None:
            return
        self._count_of[client.peer] += change
        if not self._count_of[client.peer]:
            del self._count_of[client.peer]
