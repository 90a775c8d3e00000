"""Enters a worker under its name, and deals with another live engine that has the same one.

Two engines that were given one name would displace each other: peers and routers would see one of them, and the
other's blocks would never be found. So the one that comes second is refused for as long as the first renews its lease.
It serves without sharing, asks again, and says so: in its log, in a metric, and by a report which `ghostcacher doctor`
reads.

An earlier life of the same process, and a process that has ended, are no obstacle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from ghostcacher_connector.core.index.base import BlockIndex, NameHolder, ref_of
from ghostcacher_connector.core.types import OwnerProcess, WorkerRecord

logger = logging.getLogger(__name__)

RETRY_S = 1.0
"""How long after a refusal it is tried again. A name is free when the other engine leaves, or its lease has ended."""

REFUSED_REPORT = "refused"
"""Report under a worker's name: which engines were refused that name lately."""
REPORT_TTL_S = 10.0
"""The least time for which the report stays; it is made anew with each refusal."""


class RefusedEngine(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that wants a name which another one has."""

    where: str
    """Its HTTP address, process and machine, for people."""


class WorkerName:
    """A worker's hold on its name. The publisher's thread alone calls `take` and `seen`; any thread may ask `taken`."""

    def __init__(
        self, index: BlockIndex, record: WorkerRecord, *, lease_ttl_s: float, has_ended: Callable[[OwnerProcess], bool]
    ) -> None:
        """has_ended: returns whether the process is known to have ended; False when in doubt."""
        self._index = index
        self._record = record
        self._lease_ttl_s = lease_ttl_s
        self._has_ended = has_ended
        self._holder: NameHolder | None = None

    def __repr__(self) -> str:
        return f"WorkerName({self._record.worker}, taken={self.taken})"

    @property
    def taken(self) -> bool:
        """Whether another live engine had the name when that was looked at last."""
        return self._holder is not None

    def take(self) -> bool:
        """Enter the worker; return whether it has its name now. Raises IndexUnavailable."""
        holder = self._join(None)
        owner = holder.record.owner if holder is not None and holder.record is not None else None
        if owner is not None and self._has_ended(owner):
            logger.info("worker %s: replacing process %d, which has ended", self._record.worker, owner.pid)
            holder = self._join(owner.token)
        self.seen(holder)
        return holder is None

    def seen(self, holder: NameHolder | None) -> None:
        """Take note of who has the name; None: this worker. Raises IndexUnavailable."""
        before, self._holder = self._holder, holder
        if holder is None:
            if before is not None:
                logger.info("worker %s: its name is free again, sharing", self._record.worker)
            return
        if before is None or before.incarnation != holder.incarnation:
            logger.error(
                "worker_id: expected a name that no other engine has, got %s, which another live engine has (%s); this "
                "one (%s) serves without sharing until the other leaves or its lease of %g s ends",
                self._record.worker,
                "its record cannot be verified" if holder.record is None else where(holder.record),
                where(self._record),
                self._lease_ttl_s,
            )
        refused = msgspec.json.encode(RefusedEngine(where=where(self._record)))
        ttl_s = max(REPORT_TTL_S, self._lease_ttl_s)
        self._index.put_report(ref_of(self._record), REFUSED_REPORT, {"engine": refused}, ttl_s=ttl_s)

    def _join(self, replaces: str | None) -> NameHolder | None:
        return self._index.join(self._record, lease_ttl_s=self._lease_ttl_s, replaces=replaces)


def where(record: WorkerRecord) -> str:
    """Say where an engine is, for people: its address, process and machine, as far as they are known."""
    owner = record.owner
    parts = [record.http] if record.http is not None else []
    parts += [f"process {owner.pid} on {owner.machine}"] if owner is not None else []
    return ", ".join(parts) or "at an address that it does not say"
