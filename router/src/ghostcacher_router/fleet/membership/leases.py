"""Decides which records are in force, given what Redis says and whether that can be believed.

A worker whose lease has ended leaves the fleet at once: it has stopped, or hangs. But Redis itself can go away, and
come back empty; the workers then need up to a third of a lease to enter themselves again. So:

    Redis does not answer                 every record stays in force, however long it takes
    it answers again                      records that it does not have any more stay for one lease
    it has forgotten everything           the same, also of those that are not among the first to enter themselves again
    all records are gone at once          the same: more likely a flush or a restart of Redis than of every worker
    some records are gone                 they are out

What stays by these rules is *kept*: it gets requests only while it answers probes, as every worker does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ghostcacher_connector.core.types import WorkerRecord


class Leases:
    """The records in force, by worker's name. A name that several namespaces have belongs to the latest start."""

    available: bool
    """Whether Redis answered the last time."""

    def __init__(self, lease_ttl_s: float) -> None:
        self._lease_ttl_s = lease_ttl_s
        self._records: dict[str, WorkerRecord] = {}
        self._kept_until: dict[str, float] = {}
        self.available = False

    def __repr__(self) -> str:
        return f"Leases(records={len(self._records)}, kept={len(self._kept_until)}, available={self.available})"

    @property
    def records(self) -> list[WorkerRecord]:
        """Return the records in force, in order of name."""
        return [self._records[name] for name in sorted(self._records)]

    def kept(self, worker: str) -> bool:
        """Say whether a worker is in force without a lease that Redis knows of."""
        return worker in self._kept_until

    def redis_silent(self) -> None:
        """Redis did not answer."""
        self.available = False

    def lacks(self, records: Sequence[WorkerRecord]) -> bool:
        """Say whether a worker is missing from what Redis says, and would leave the fleet."""
        return not self._records.keys() <= {record.worker for record in records} | self._kept_until.keys()

    def update(self, records: Sequence[WorkerRecord], now: float, *, forgot: bool = False) -> set[str]:
        """Take over what Redis says; return the workers that are kept from now on though it no longer has them.

        forgot: whether Redis is known to have lost everything a moment ago.
        """
        found, kept = _newest(records), self._kept_until
        lost, came_back = self._records.keys() - found.keys(), not self.available
        self.available = True
        fresh = set()
        for name in lost:
            if came_back or ((forgot or not found) and name not in kept):
                fresh |= {name} - kept.keys()
                kept[name] = now + self._lease_ttl_s
        self._kept_until = {name: until for name, until in kept.items() if name in lost and until > now}
        self._records = {name: self._records[name] for name in self._kept_until} | found
        self.check_invariants()
        return fresh

    def check_invariants(self) -> None:
        """Assert that what is kept is in force, and that each record stands under its worker's name."""
        assert self._kept_until.keys() <= self._records.keys(), repr(self)
        assert all(name == record.worker for name, record in self._records.items()), repr(self)


def _newest(records: Iterable[WorkerRecord]) -> dict[str, WorkerRecord]:
    found: dict[str, WorkerRecord] = {}
    for record in records:
        other = found.get(record.worker)
        if other is None or (record.started_at, record.namespace) > (other.started_at, other.namespace):
            found[record.worker] = record
    return found
