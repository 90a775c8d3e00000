"""The ghost locks that a router knows of, as people see them."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from ghostcacher_connector.core.dashboard_api import LockReport, Locks
from ghostcacher_router.ghostlock.ghost_lock import GhostLock

LOCKS_SHOWN = 64


def lock_reports(locks: Iterable[GhostLock], now: float) -> Locks:
    """Return those that are held, the oldest first. now: loop clock, s."""
    held = sorted((lock for lock in locks if not lock.released and lock.expires_at > now), key=attrgetter("taken_at"))
    reports = [
        LockReport(
            key=lock.keys[-1].hex() if lock.keys else "",
            worker=lock.worker,
            ours=lock.ours,
            confirmed=lock.confirmed,
            age_s=round(max(0.0, now - lock.taken_at), 3),
            ready_s=round(lock.ready_at - now, 3),
            boundaries=len(lock.digests),
        )
        for lock in held[:LOCKS_SHOWN]
    ]
    return Locks(tuple(reports), len(held))
