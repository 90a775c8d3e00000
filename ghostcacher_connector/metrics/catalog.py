"""Every metric that a worker exports: name, kind, unit, labels and what it means. Nothing else may be recorded.

How a value travels: `Recorder` (recorder.py) collects deltas where things happen, the engine carries them to the
process that serves its metrics page, and there `Exporter` (exporter.py) adds them to that page's counters. Gauges that
have to be true while an engine is idle are asked for beside that (live_gauges.py).

A label with a tuple takes these values only, and its series exist from the start, at zero: an alert on a counter that
has never been incremented would otherwise see nothing. A label with None is free and must stay bounded (a rank).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from itertools import product
from typing import NamedTuple

from ghostcacher_connector.core.types import MissReason, SectionType


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """One metric. labels: name -> the values allowed, None when free. buckets: upper bounds, for histograms."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: Mapping[str, tuple[str, ...] | None] = {}
    buckets: tuple[float, ...] = ()

    def key_of(self, labels: Mapping[str, str]) -> str:
        """Return the label values, joined in the order of the metric; assert that they are right."""
        assert labels.keys() == self.labels.keys(), f"{self.name}: expected labels {list(self.labels)}, got {labels}"
        for label, allowed in self.labels.items():
            value = labels[label]
            assert isinstance(value, str), f"{self.name}: label {label}: expected a text, got {value!r}"
            assert SEPARATOR not in value, f"{self.name}: label {label}: got {value!r}"
            assert allowed is None or value in allowed, f"{self.name}: label {label}: expected {allowed}, got {value!r}"
        return SEPARATOR.join(labels[label] for label in self.labels)

    def values_of(self, key: str) -> tuple[str, ...]:
        """Return the label values that `key_of` joined; assert that they are right."""
        values = tuple(key.split(SEPARATOR)) if self.labels or key else ()
        assert len(values) == len(self.labels), f"{self.name}: expected {len(self.labels)} labels, got {key!r}"
        self.key_of(dict(zip(self.labels, values, strict=True)))
        return values

    def known_keys(self) -> list[str]:
        """Return every key of a metric whose labels are all enumerated; none when one is free."""
        allowed = [values for values in self.labels.values() if values is not None]
        if len(allowed) < len(self.labels):
            return []
        return [SEPARATOR.join(values) for values in product(*allowed)]


SEPARATOR = "\x1f"
"""Joins label values; ASCII's own unit separator."""

REASONS = tuple(reason.value for reason in MissReason)
TRANSPORTS = ("local", "nixl", "relay", "memory", "none")
"""local: from the rank's own host slots. memory: the in-memory fake. none: the pull ended before a transport was
chosen."""
OUTCOMES = ("done", "stale", "failed", "cancelled")
"""The values of `transfer.base.PullOutcome`; a test keeps them equal."""
SECTIONS = tuple(section.name.lower() for section in SectionType)
SEAL_RESULTS = ("valid", "stale")
COPY_RESULTS = ("valid", "stale", "refused")
EVICTIONS = ("capacity", "budget", "aged", "ttl", "duplicate", "flushed")
TIER_REFUSALS = ("type", "worth", "full")
"""The values of `core.retention.base.EvictionReason` and `Refusal`; a test keeps them equal."""
STORE_FAULTS = ("missing", "throttled", "refused", "full", "timeout", "unreachable", "other")
"""The values of `objects.stores.base.StoreFault`; a test keeps them equal."""
OBJECT_MISSES = (*STORE_FAULTS, "truncated", "foreign", "damaged", "codec", "quarantined", "paused", "busy", "deadline")
OBJECT_WRITES = ("written", "existed", "queue_full", "quarantined", "changed", "flushed", "failed")
RATIO_BUCKETS = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
PULL_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LOOKUP_BUCKETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
CHECK_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)

HITS = "gc_cache_hits_total"
MISSES = "gc_cache_misses_total"
HIT_RATIO = "gc_cache_hit_ratio"
OBSERVATIONS_DROPPED = "gc_observations_dropped_total"

_ALL = (
    Metric(HITS, Kind.COUNTER, "blocks", "Blocks that were taken from a peer's cache instead of being computed."),
    Metric(
        MISSES,
        Kind.COUNTER,
        "blocks",
        "Full blocks that were computed though the fleet might have held them, by the reason why.",
        {"reason": REASONS},
    ),
    Metric(HIT_RATIO, Kind.GAUGE, "ratio", "Hits over hits and misses since the start; 0 before the first of either."),
    Metric("gc_tokens_cached_total", Kind.COUNTER, "tokens", "Prompt tokens that were pulled and so not computed."),
    Metric(
        "gc_saved_ttft_ms_total",
        Kind.COUNTER,
        "milliseconds",
        "Time to first token saved: forecast time to compute what was pulled, less the time that the pulls took.",
    ),
    Metric(
        "gc_rdma_transfers_total",
        Kind.COUNTER,
        "transfers",
        "One-sided transfers by each rank, by transport and outcome.",
        {"transport": TRANSPORTS, "outcome": OUTCOMES},
    ),
    Metric(
        "gc_weight_changes_total",
        Kind.COUNTER,
        "changes",
        "How often this worker's weights were found changed, after which it shares under another namespace.",
    ),
    Metric(
        "gc_weight_check_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Time for which the engine waited while its weights were read, after a call that may have changed them.",
        buckets=CHECK_BUCKETS,
    ),
    Metric(
        "gc_bad_retentions_total",
        Kind.COUNTER,
        "requests",
        "Requests whose gc_retain_s was no number of seconds from 0, and so said nothing (vLLM).",
    ),
    Metric("gc_active_cache_entries", Kind.GAUGE, "blocks", "Blocks of this worker that the index offers to peers."),
    Metric(
        "gc_pulls_total",
        Kind.COUNTER,
        "pulls",
        "Pulls for requests, by outcome and by the reason of what was not valid (none: all of it was).",
        {"outcome": OUTCOMES, "reason": ("none", *REASONS)},
    ),
    Metric(
        "gc_pull_turns_total",
        Kind.COUNTER,
        "requests",
        "Requests whose pull waited, since more workers pulled the same than held it (vLLM).",
    ),
    Metric(
        "gc_joined_pulls_total",
        Kind.COUNTER,
        "requests",
        "Requests that waited for another request's pull of the same blocks instead of pulling them, too (vLLM).",
    ),
    Metric(
        "gc_pulled_bytes_total",
        Kind.COUNTER,
        "bytes",
        "Bytes that pulls moved, valid or not.",
        {"transport": TRANSPORTS},
    ),
    Metric("gc_pulled_tokens_total", Kind.COUNTER, "tokens", "Tokens whose blocks pulls moved, valid or not."),
    Metric(
        "gc_pull_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Time of a pull, from its start to a checked seal.",
        {"transport": TRANSPORTS},
        PULL_BUCKETS,
    ),
    Metric(
        "gc_lookup_seconds", Kind.HISTOGRAM, "seconds", "Time of a lookup beside the scheduler.", {}, LOOKUP_BUCKETS
    ),
    Metric(
        "gc_lookup_wait_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Time that an engine's scheduler waited for a lookup, before it goes on and asks again later (SGLang).",
        {},
        LOOKUP_BUCKETS,
    ),
    Metric(
        "gc_pull_forecast_ratio",
        Kind.HISTOGRAM,
        "ratio",
        "Observed over forecast time of pulls: 1 is a right forecast.",
        {},
        RATIO_BUCKETS,
    ),
    Metric(
        "gc_prefill_forecast_ratio",
        Kind.HISTOGRAM,
        "ratio",
        "Observed over forecast time of prefills: 1 is a right forecast.",
        {},
        RATIO_BUCKETS,
    ),
    Metric(
        "gc_publish_lag_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Age of the oldest change in a batch when the index had applied it.",
        {},
        LAG_BUCKETS,
    ),
    Metric("gc_published_entries_total", Kind.COUNTER, "entries", "Entries that were put in the index."),
    Metric("gc_withdrawn_entries_total", Kind.COUNTER, "entries", "Entries that were taken out of the index."),
    Metric("gc_dropped_entries_total", Kind.COUNTER, "entries", "Entries that were never sent: the queue was full."),
    Metric("gc_index_resyncs_total", Kind.COUNTER, "resyncs", "Times that the index had lost entries of this worker."),
    Metric("gc_index_errors_total", Kind.COUNTER, "errors", "Exchanges with the index that failed."),
    Metric("gc_prompt_reports_total", Kind.COUNTER, "prompts", "Prompts whose hashes were published for routers."),
    Metric(
        "gc_prompt_reports_dropped_total",
        Kind.COUNTER,
        "reports",
        "Reports of prompts that were never sent to routers: the queue was full.",
    ),
    Metric("gc_report_errors_total", Kind.COUNTER, "errors", "Reports to routers that Redis did not take."),
    Metric(
        "gc_worker_name_taken",
        Kind.GAUGE,
        "boolean",
        "1 while another live engine has this worker's name, and this one serves without sharing.",
    ),
    Metric(
        "gc_refused_values_total",
        Kind.COUNTER,
        "values",
        'Values in Redis that were not believed, by kind and reason, such as "record: not authentic".',
        {"what": None},
    ),
    Metric("gc_peers_live", Kind.GAUGE, "workers", "Other workers of the same namespace with a live lease."),
    Metric(
        "gc_quarantined_reads",
        Kind.GAUGE,
        "reads",
        "READs that were given up, or failed in part, and may still land; what they write to is held back.",
        {"rank": None},
    ),
    Metric(
        "gc_stuck_reads_total",
        Kind.COUNTER,
        "reads",
        "READs that were not over at their deadline.",
        {"rank": None},
    ),
    Metric(
        "gc_self_check_ok",
        Kind.GAUGE,
        "bool",
        "1 when the self-check's pull gave the right bytes, else 0.",
        {"rank": None},
    ),
    Metric(
        "gc_seal_checks_total",
        Kind.COUNTER,
        "blocks",
        "Blocks whose seal was checked after their data was read, by result.",
        {"result": SEAL_RESULTS},
    ),
    Metric("gc_object_hits_total", Kind.COUNTER, "blocks", "Blocks that were read from the object tier and are right."),
    Metric(
        "gc_object_misses_total",
        Kind.COUNTER,
        "blocks",
        "Blocks that the object tier was thought to have and that could not be used, by the reason why.",
        {"reason": OBJECT_MISSES},
    ),
    Metric(
        "gc_object_writes_total",
        Kind.COUNTER,
        "objects",
        "Objects that were to be written, by what became of them; existed: another worker had written the same one.",
        {"outcome": OBJECT_WRITES},
    ),
    Metric("gc_object_written_bytes_total", Kind.COUNTER, "bytes", "Bytes written to the object tier, as stored."),
    Metric("gc_object_read_bytes_total", Kind.COUNTER, "bytes", "Bytes read from the object tier, as stored."),
    Metric(
        "gc_object_errors_total",
        Kind.COUNTER,
        "errors",
        "Requests to the object store that failed, by operation and reason.",
        {"operation": ("read", "write", "list", "delete"), "reason": STORE_FAULTS},
    ),
    Metric(
        "gc_object_quarantined_total",
        Kind.COUNTER,
        "objects",
        "Objects that were found truncated, foreign or damaged, and segments of notes, and were put aside.",
        {"reason": ("truncated", "foreign", "damaged", "notes")},
    ),
    Metric(
        "gc_object_deleted_total",
        Kind.COUNTER,
        "objects",
        "Objects that this worker deleted: unused for too long, too much in all, or flushed.",
        {"reason": ("expired", "budget", "flushed")},
    ),
    Metric(
        "gc_object_store_bytes",
        Kind.GAUGE,
        "bytes",
        "Size of all objects of the fleet, when this worker last enforced the bounds.",
    ),
    Metric("gc_object_known_bytes", Kind.GAUGE, "bytes", "Size of the objects that this rank knows.", {"rank": None}),
    Metric("gc_object_known_objects", Kind.GAUGE, "objects", "Objects that this rank knows.", {"rank": None}),
    Metric(
        "gc_object_known_blocks", Kind.GAUGE, "blocks", "Blocks in the objects that this rank knows.", {"rank": None}
    ),
    Metric("gc_object_queue_bytes", Kind.GAUGE, "bytes", "KV that waits to be written as objects.", {"rank": None}),
    Metric(
        "gc_object_bytes_per_second",
        Kind.GAUGE,
        "bytes per second",
        "Rate of one request to the object store, as measured lately; 0 before the first one.",
        {"rank": None, "way": None},
    ),
    Metric(
        "gc_tier_blocks",
        Kind.GAUGE,
        "blocks",
        "Blocks in a tier below the engine's cache, those on their way there included, by their type.",
        {"tier": ("host",), "type": SECTIONS},
    ),
    Metric(
        "gc_tier_loaded_blocks_total",
        Kind.COUNTER,
        "blocks",
        "Blocks that requests have taken from a tier of their own worker (vLLM).",
        {"tier": ("host",)},
    ),
    Metric(
        "gc_tier_evicted_blocks_total",
        Kind.COUNTER,
        "blocks",
        "Blocks that a tier has given up, by their type and the reason why.",
        {"tier": ("host",), "type": SECTIONS, "reason": EVICTIONS},
    ),
    Metric(
        "gc_tier_refused_blocks_total",
        Kind.COUNTER,
        "blocks",
        "Blocks that a tier did not take in, by their type and the reason why; of the type user it takes none.",
        {"tier": ("host",), "type": SECTIONS, "reason": TIER_REFUSALS},
    ),
    Metric(
        "gc_tier_retained_bytes",
        Kind.GAUGE,
        "bytes",
        "Blocks of a tier that requests want kept, and that quotas let be, on each rank.",
        {"tier": ("host",)},
    ),
    Metric(
        "gc_tier_needed_blocks",
        Kind.GAUGE,
        "blocks",
        "Blocks of tools and system texts that a tier keeps so that the fleet has enough copies (replicas_min).",
        {"tier": ("host",)},
    ),
    Metric(
        "gc_tier_quota_refused_bytes_total",
        Kind.COUNTER,
        "bytes",
        "Blocks that requests wanted kept in a tier and quotas did not let be, on each rank; counted at every request.",
        {"tier": ("host",)},
    ),
    Metric(
        "gc_tier_copied_blocks_total",
        Kind.COUNTER,
        "blocks",
        "Blocks that each rank was told to copy to host memory: valid, stale (the engine reused the slot first), or "
        "refused (never copied: too many waited).",
        {"result": COPY_RESULTS},
    ),
    Metric("gc_tier_copied_bytes_total", Kind.COUNTER, "bytes", "Bytes copied to host memory, valid or not."),
    Metric("gc_tier_copy_seconds_total", Kind.COUNTER, "seconds", "Time that copies to host memory took, all ranks'."),
    Metric(
        "gc_tier_copy_queue",
        Kind.GAUGE,
        "copies",
        "Copies to host memory that wait or run.",
        {"rank": None},
    ),
    Metric(
        OBSERVATIONS_DROPPED,
        Kind.COUNTER,
        "observations",
        "Histogram observations left out, since too many came between two scrapes of the engine's statistics.",
    ),
)

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}


def metric_of(name: str, kind: Kind) -> Metric:
    """Return a metric of this list; assert that there is one of that name and kind."""
    metric = METRICS.get(name)
    assert metric is not None, f"unknown metric {name}: add it to catalog.py"
    assert metric.kind is kind, f"{name} is a {metric.kind.value}, not a {kind.value}"
    return metric
