"""Remembers for a while which workers have left the fleet without being drained before.

A worker that dies loses its lease within seconds, and would then be missing from every list, as if it had never been
there. So it is named for some time, for people. It gets no requests: it is in no other part of the fleet.

A worker that was drained left on purpose. One that is back, under its name or at its address, is no longer gone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from ghostcacher_router.fleet.membership.endpoints import same_server
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.types import Endpoint

Place = tuple[Endpoint, int | None]
"""Where a worker listens, and which of the engines there it is."""

GONE_MAX = 64
"""The most gone workers that are named; of more, those that left last."""


class GoneWorker(NamedTuple):
    """A worker that has left the fleet."""

    name: str
    """The name under which it was known."""
    endpoint: Endpoint
    """Where it listened."""
    data_parallel_rank: int | None
    """Which of the engines there it was; None where there was one."""
    namespace: str | None
    """The namespace of its KV blocks; None for an engine without a connector."""
    incarnation: bytes | None
    """The incarnation of its last run; None for an engine without a connector."""
    left_at: float
    """When its lease ended, in seconds of the fleet's clock."""
    error: str | None
    """The last thing that went wrong with it; None when no probe or connection had failed."""


class GoneWorkers:
    """The workers that left within the last `ttl_s` seconds, at most `GONE_MAX` of them. clock: in seconds."""

    def __init__(self, ttl_s: float, clock: Callable[[], float]) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._gone: dict[str, GoneWorker] = {}

    def __repr__(self) -> str:
        return f"GoneWorkers({sorted(self._gone)})"

    def add(self, worker: Worker) -> None:
        """Remember a worker that has left, unless it was drained before."""
        if worker.draining:
            return
        name, error = worker.name, worker.error
        self._gone.pop(name, None)
        self._gone[name] = GoneWorker(
            name,
            worker.endpoint,
            worker.data_parallel_rank,
            worker.namespace,
            worker.incarnation,
            self._clock(),
            error,
        )
        while len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]

    def forget(self, names: Collection[str], places: Collection[Place]) -> None:
        """Forget those that are back: under one of these names, or at one of these places.

        Without a rank a place is that of all ranks: the server runs in another way now.
        """
        if self._gone:
            taken = {(same_server(endpoint), rank) for endpoint, rank in places}
            servers = {server for server, _ in taken}

            def is_back(gone: GoneWorker) -> bool:
                server, rank = same_server(gone.endpoint), gone.data_parallel_rank
                if rank is None:
                    return server in servers
                return (server, rank) in taken or (server, None) in taken

            self._gone = {name: gone for name, gone in self._gone.items() if name not in names and not is_back(gone)}

    def recent(self) -> list[GoneWorker]:
        """Return those that are to be named now, the one that left last first."""
        oldest = self._clock() - self._ttl_s
        self._gone = {name: gone for name, gone in self._gone.items() if gone.left_at >= oldest}
        return list(reversed(self._gone.values()))
