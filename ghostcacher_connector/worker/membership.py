"""A worker's membership in the fleet: its connection to the index, and the threads that use it.

Each worker has one, in the process that schedules; what each rank has is in rank.py.
Redis is never on the path of an answer: one that cannot be reached at start is a warning, and everything resumes by
itself when it is there. A malformed URL is an error at start, which names the setting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.addresses import is_loopback_url, port_of_rank
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.index.base import BlockIndex, WorkerRef, ref_of
from ghostcacher_connector.core.open import open_coordination, open_index
from ghostcacher_connector.core.periodic import Periodic
from ghostcacher_connector.core.types import BlockHash, WorkerRecord
from ghostcacher_connector.metrics import ASK_INTERVAL_S, Delta, MetricsPage, Recorder, serve
from ghostcacher_connector.publish.flush_desk import FlushDesk
from ghostcacher_connector.publish.publisher import Publisher, PublisherStats
from ghostcacher_connector.publish.reporter import Reporter
from ghostcacher_connector.pull.cache_groups import ONE_GROUP, CacheGroups
from ghostcacher_connector.pull.forecast import PrefillRate
from ghostcacher_connector.pull.lookups import LookupService
from ghostcacher_connector.worker.live_workers import LiveWorkers, Records, hosts_of
from ghostcacher_connector.worker.owner import has_ended

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 2.0


class Membership:
    """Opens the index, publishes the worker, follows the other workers, and closes it all."""

    def __init__(
        self,
        settings: Settings,
        record: WorkerRecord,
        recorder: Recorder,
        *,
        port_offset: int = 0,
        prefill_rate: Callable[[], PrefillRate] | None = None,
        takes_turns: bool = False,
        groups: CacheGroups = ONE_GROUP,
    ) -> None:
        """Prepare the membership; `start` joins.

        groups: the engine's KV cache groups.
        takes_turns: whether the engine's pulls wait for others of the same prefix, and so have to stand in line.
        port_offset: how far above `metrics_port` this worker's own port is, different for each data-parallel rank.
        prefill_rate: returns the present rate, on the reporter's thread. None: each load's own rate.
        """
        self.record = record
        self._recorder = recorder
        key = (settings.index_key or "").encode()
        self.index: BlockIndex = open_index(settings.redis_url, timeout_s=settings.redis_timeout_s, key=key)
        self.live_workers = LiveWorkers(
            self.index, record.namespace, on_change=self._fleet_changed, lease_ttl_s=settings.lease_ttl_s
        )
        self.lookups = open_lookups(
            settings,
            self.index,
            self._candidates,
            line_up=partial(self._line_up, settings.pull_timeout_s) if takes_turns else None,
            groups=groups,
        )
        self.publisher = Publisher(
            self.index,
            record,
            lease_ttl_s=settings.lease_ttl_s,
            has_ended=has_ended,
        )
        self._coordination = open_coordination(
            settings.redis_url, self.index, timeout_s=settings.redis_timeout_s, key=key
        )
        self.reporter = Reporter(
            self._coordination,
            ref_of(record),
            recorder,
            interval_s=settings.report_interval_ms / 1e3,
            applied=self.publisher.applied,
            prefill_rate=prefill_rate,
            name_taken=lambda: self.publisher.name_taken,
        )
        self.flushes = FlushDesk(self._coordination, record.worker)
        self._counted = self.publisher.stats()
        self._refused_total, self._refused = 0, dict[str, int]()
        self._page = _open_page(settings.metrics_host, settings.metrics_port, port_offset)
        self._page_thread = Periodic("gc-page", self._refresh_page)
        self._self_check = settings.self_check
        self._workers: Records | None = None
        self._name_taken = False
        self._is_warned = False

    def start(self) -> None:
        self.live_workers.start()
        self.publisher.start()
        self.reporter.start()
        if self._page is not None:
            self._page_thread.start()
        logger.info("worker %s joins namespace %s", self.record.worker, self.record.namespace)

    def move(self, record: WorkerRecord) -> None:
        """Join another namespace as another incarnation, in place of the present one. Does not wait for the index.

        To be called once every rank has renewed its incarnation: from then on peers refuse what was published before.
        """
        self.record = record
        self.live_workers.move(record.namespace)
        self.publisher.move(record)
        self.reporter.move(ref_of(record))
        logger.info("worker %s moves to namespace %s", record.worker, record.namespace)

    def leave(self) -> None:
        """Take this worker and its entries out of the fleet; go on following the others. Bounded in time."""
        self.flushes.stop(STOP_TIMEOUT_S)
        self.reporter.stop(STOP_TIMEOUT_S)
        self.publisher.stop(STOP_TIMEOUT_S)

    def stop(self) -> None:
        """Leave the fleet and end all threads. Idempotent; bounded in time."""
        self.leave()
        self.lookups.stop(STOP_TIMEOUT_S)
        self.live_workers.stop(STOP_TIMEOUT_S)
        self._coordination.close()
        self.index.close()
        self._page_thread.stop(STOP_TIMEOUT_S)
        if self._page is not None:
            self._page.close()
            self._page = None

    def record_metrics(self) -> None:
        """Record what has changed since the last call; cheap enough for every step."""
        now, before = self.publisher.stats(), self._counted
        if now != before:
            self._counted = now
            self._record_publisher(now, before)
        if self.index.malformed_entries != self._refused_total:
            self._record_refusals()
        if self.publisher.name_taken != self._name_taken:
            self._name_taken = self.publisher.name_taken
            self._recorder.set("gc_worker_name_taken", float(self._name_taken))
        # Looked at every step: counting is for when one has come or gone, however many they are.
        if (workers := self.live_workers.snapshot) is not self._workers:
            self._workers = workers
            self._recorder.set("gc_peers_live", len(self._candidates()))

    def gauges(self) -> Delta:
        """Return the gauges that change, or have to be seen, without any traffic. Any thread may ask.

        A rank whose self-check fails ends its engine: who is a member has passed it on every rank.
        """
        ranks = self.record.ranks if self._self_check else ()
        return {
            "gc_peers_live": {"": float(len(self._candidates()))},
            "gc_active_cache_entries": {"": float(self.publisher.stats().blocks_held)},
            "gc_worker_name_taken": {"": float(self.publisher.name_taken)},
            "gc_self_check_ok": {str(endpoint.rank): 1.0 for endpoint in ranks},
        }

    def _refresh_page(self) -> float:
        self.export(self.gauges())
        return ASK_INTERVAL_S

    def export(self, delta: Delta) -> None:
        """Add a delta to the metrics page of our own, if there is one."""
        if self._page is not None:
            self._page.apply(delta)

    def _record_refusals(self) -> None:
        self._refused_total, before = self.index.malformed_entries, self._refused
        self._refused = dict(self.index.refusals())
        for what, count in self._refused.items():
            self._recorder.inc("gc_refused_values_total", count - before.get(what, 0), what=what)

    def _record_publisher(self, now: PublisherStats, before: PublisherStats) -> None:
        record = self._recorder
        record.inc("gc_published_entries_total", now.published - before.published)
        record.inc("gc_withdrawn_entries_total", now.withdrawn - before.withdrawn)
        record.inc("gc_dropped_entries_total", now.dropped - before.dropped)
        record.inc("gc_index_resyncs_total", now.resyncs - before.resyncs)
        record.inc("gc_index_errors_total", now.errors - before.errors)
        record.set("gc_active_cache_entries", now.blocks_held)
        if now.published > before.published:
            record.observe("gc_publish_lag_seconds", now.publish_lag_s)

    def _fleet_changed(self, records: Sequence[WorkerRecord]) -> None:
        """Warn once when routers on other machines are likely, and this worker's address leads them to themselves."""
        http, hosts = self.record.http, hosts_of([self.record, *records])
        if http is not None and is_loopback_url(http) and len(hosts) > 1 and not self._is_warned:
            self._is_warned = True
            logger.warning(
                "http_url: expected an address that other machines reach, since workers are on %d machines; got %s, "
                "where a router finds only what is on its own machine",
                len(hosts),
                http,
            )

    def _candidates(self) -> list[WorkerRef]:
        return self.live_workers.candidates(exclude_worker=self.record.worker)

    def _line_up(self, ttl_s: float, block: BlockHash) -> Sequence[str]:
        return self.index.line_up(ref_of(self.record), block, ttl_s=ttl_s)


def open_lookups(
    settings: Settings,
    index: BlockIndex,
    candidates: Callable[[], Sequence[WorkerRef]],
    *,
    line_up: Callable[[BlockHash], Sequence[str]] | None = None,
    groups: CacheGroups = ONE_GROUP,
) -> LookupService:
    """Start the lookups beside an engine's scheduler. line_up, groups: see `LookupService`."""
    return LookupService(index, candidates, locations_for=settings.pull_sources_max, line_up=line_up, groups=groups)


def _open_page(host: str, base: int | None, offset: int) -> MetricsPage | None:
    if base is None:
        return None
    port = port_of_rank(base, offset, "metrics_port")
    try:
        page = serve(port, host)
    except OSError as exc:
        raise ConfigError(
            f"metrics_port, metrics_host: expected a free port of an address of this machine, got {port} at {host}: "
            f"{exc.strerror}"
        ) from exc
    logger.info("metrics at http://%s:%d/metrics", f"[{host}]" if ":" in host else host, page.port)
    return page
