"""How fast workers read each other's caches, as their own timed reads say (core/index/link_report.py).

Workers time their links once a minute. So what was read of a worker is kept for a while, and at most `READERS_MAX`
workers are looked at for one answer: a page of 24 times 64 links is as much as people can read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from ghostcacher_connector.core.dashboard_api import Link, Links
from ghostcacher_connector.core.errors import IndexUnavailable, ProtocolError
from ghostcacher_connector.core.index.base import BlockIndex, WorkerRef
from ghostcacher_connector.core.index.link_report import LinkReport, links_report, unpack
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.ports import Offload

READERS_MAX = 24
LINKS_MAX = 64
KEPT_S = 20.0
RANK = 0
"""Ranks pull from their counterparts: one stands for all."""


class _Kept(NamedTuple):
    """What was read of one worker."""

    at: float
    reports: Mapping[str, LinkReport]
    """By the name of the peer."""


class LinkReports:
    """Reports the links of one router's workers. On the event loop only; the index is asked in threads."""

    def __init__(
        self,
        index: BlockIndex | None,
        workers: Mapping[str, Worker],
        offload: Offload,
        clock: Callable[[], float],
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """index: None without Redis, where nothing is known."""
        self._index, self._workers, self._offload = index, workers, offload
        self._clock, self._wall_clock = clock, wall_clock
        self._kept: dict[WorkerRef, _Kept] = {}

    async def report(self, worker: str | None) -> Links:
        """Return the links of one worker, or of all. Raises Refusal for a worker that is not there."""
        if worker is not None and worker not in self._workers:
            raise Refusal(404, f"worker {worker[:200]!r}: no such worker", code="worker_not_found")
        names = sorted(self._workers) if worker is None else [worker]
        refs = [ref for name in names if (ref := self._workers[name].ref) is not None][:READERS_MAX]
        present = {one.ref for one in self._workers.values()}
        self._kept = {ref: kept for ref, kept in self._kept.items() if ref in present}
        now = self._clock()
        old = [ref for ref in refs if ref not in self._kept or now - self._kept[ref].at > KEPT_S]
        await self._read(old, now)
        links = [link for ref in refs if ref in self._kept for link in self._links(ref, self._kept[ref])]
        return Links(tuple(links), len(refs))

    async def _read(self, refs: Iterable[WorkerRef], now: float) -> None:
        """Read what these workers report; while the index is away what was read before stays."""
        index, wanted = self._index, list(refs)
        if index is None or not wanted:
            return

        def call() -> list[dict[str, bytes]]:
            return [index.reports(ref.namespace, ref.worker, links_report(RANK)) for ref in wanted]

        try:
            found = await self._offload(call)
        except IndexUnavailable:
            return
        self._kept |= {ref: _Kept(now, dict(_decoded(fields))) for ref, fields in zip(wanted, found, strict=True)}

    def _links(self, ref: WorkerRef, kept: _Kept) -> Iterator[Link]:
        now = self._wall_clock()
        for owner, report in sorted(kept.reports.items())[:LINKS_MAX]:
            yield Link(
                reader=ref.worker,
                owner=owner,
                ok=report.ok,
                transport=report.transport,
                bytes_per_s=report.bytes_per_s,
                rtt_us=report.rtt_us,
                error=report.error,
                age_s=round(max(0.0, now - report.at), 1),
            )


def _decoded(fields: Mapping[str, bytes]) -> Iterator[tuple[str, LinkReport]]:
    """Yield the reports that are what they should be, by the name of the peer."""
    for field, packed in fields.items():
        try:
            yield field.partition(":")[2], unpack(packed, LinkReport)
        except ProtocolError:
            continue
