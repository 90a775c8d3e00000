"""Works out who belongs to the fleet, from the records in force and the static URLs. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_router.fleet.membership.endpoints import parse_endpoint, same_server
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.types import Endpoint

NAME_CHARS_MAX = 200
"""The longest name of a worker: with the incarnation behind it, it still is a name that the store takes."""


class Member(NamedTuple):
    """A worker that belongs to the fleet."""

    name: str
    """Its own name, or one that is made of its URL."""
    endpoint: Endpoint
    """Where it listens."""
    record: WorkerRecord | None
    """What it says of itself; None when its URL is all that is known."""

    @property
    def data_parallel_rank(self) -> int | None:
        """Return which of the engines at its endpoint it is; None where there is one."""
        return None if self.record is None else self.record.data_parallel_rank

    def is_same(self, worker: Worker) -> bool:
        """Say whether a worker of this name is the same incarnation, at the same place."""
        incarnation = None if self.record is None else self.record.incarnation
        place = (self.endpoint, self.data_parallel_rank)
        return (worker.endpoint, worker.data_parallel_rank) == place and worker.incarnation == incarnation

    def takes_over(self, worker: Worker) -> bool:
        """Say whether this is the record of a server that was known by its URL only until now."""
        known_by_url = worker.record is None and self.record is not None
        return known_by_url and same_server(worker.endpoint) == same_server(self.endpoint)


class Unroutable(NamedTuple):
    """A worker with a lease that cannot be sent requests."""

    record: WorkerRecord
    """What it says of itself."""
    why: str
    """Why it cannot, for people."""


def members_of(
    records: Iterable[WorkerRecord], static: Iterable[Endpoint]
) -> tuple[dict[str, Member], dict[str, Unroutable]]:
    """Return the members by name, and the records that cannot be members, by name.

    Each server is one member, or one for each data-parallel rank behind it. Of several records that cannot all be right
    about one URL, the one that started last counts: the others were left behind by an engine that was killed, or belong
    to ranks that share one server and, being of an older version, do not say which they are.
    """
    members: dict[str, Member] = {}
    unroutable: dict[str, Unroutable] = {}
    servers: dict[Endpoint, dict[int | None, str]] = {}
    for record in sorted(records, key=lambda record: (-record.started_at, record.worker)):
        try:
            endpoint = _endpoint_of(record)
        except ConfigError as exc:
            unroutable[record.worker] = Unroutable(record, str(exc))
            continue
        holders = servers.setdefault(same_server(endpoint), {})
        holder = _holder(holders, record.data_parallel_rank)
        if holder is None:
            holders[record.data_parallel_rank] = record.worker
            members[record.worker] = Member(record.worker, endpoint, record)
        else:
            unroutable[record.worker] = Unroutable(record, f"worker {holder}, which started later, has its http_url")
    for endpoint in static:
        name = endpoint.name
        if name not in members and same_server(endpoint) not in servers:
            servers[same_server(endpoint)] = {None: name}
            members[name] = Member(name, endpoint, None)
    return members, unroutable


def _holder(holders: Mapping[int | None, str], rank: int | None) -> str | None:
    """Return the worker that has a rank of one server already, or all of them; None when it is free.

    holders: workers by rank; under None the one of a server without ranks.
    """
    if rank is None:
        return next(iter(holders.values()), None)
    return holders.get(rank, holders.get(None))


def _endpoint_of(record: WorkerRecord) -> Endpoint:
    """Return where a worker listens; raise ConfigError saying why requests cannot be sent there."""
    if record.http is None:
        raise ConfigError(
            "its address is not known: set http_url (GC_HTTP_URL) on it to the URL at which the router reaches it"
        )
    if not record.worker.isascii() or len(record.worker) > NAME_CHARS_MAX:
        raise ConfigError(f"worker_id: expected up to {NAME_CHARS_MAX} ASCII characters, for headers carry it")
    return parse_endpoint(record.http)
