"""What the dashboard shows, row by row: each panel with its queries. generate.py makes Grafana's JSON of it.

In queries `$job` stands for the jobs that are looked at, and `RATE` for the window of a rate. A query of something that
is counted only once it has happened ends in `or vector(0)`, so that a fleet in which it never has shows 0.
"""

from __future__ import annotations

from typing import NamedTuple

RATE = "$__rate_interval"
JOB = 'job=~"$job"'


class Query(NamedTuple):
    """One line or number of a panel, or one for each value of a label."""

    expression: str
    """PromQL."""
    legend: str
    """How its series are called; `{{label}}` is the value of one."""


class Panel(NamedTuple):
    """One panel."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    """Grafana's name of the unit."""
    text: str = ""
    """What it says, for people; shown when the pointer is over its title."""
    number: bool = False
    """Whether it is one number instead of a curve."""


class Row(NamedTuple):
    """One row of panels under a title."""

    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, by: str = "", matchers: str = "") -> str:
    """Return the rate of a counter, summed over all that is not named in `by`."""
    return f"{_sum(by)} (rate({metric}{_where(matchers)}[{RATE}]))"


def total(metric: str, by: str = "", matchers: str = "") -> str:
    """Return a gauge, summed over all that is not named in `by`."""
    return f"{_sum(by)} ({metric}{_where(matchers)})"


def quantiles(histogram: str, *shares: float, by: str = "") -> tuple[Query, ...]:
    """Return a query for each quantile of a histogram. by: a label of which each value has its own."""
    labels = f"{by}, le" if by else "le"
    name = f"{{{{{by}}}}} " if by else ""
    buckets = f"sum by ({labels}) (rate({histogram}_bucket{_where('')}[{RATE}]))"
    return tuple(
        Query(f"histogram_quantile({share:g}, {buckets})", f"{name}p{100 * share:g}".strip()) for share in shares
    )


def of_each(label: str, metric: str) -> tuple[Query, ...]:
    """Return a query for the rate of a counter by one label."""
    return (Query(rate(metric, label), f"{{{{{label}}}}}"),)


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


def _where(matchers: str) -> str:
    return f"{{{JOB}{',' if matchers else ''}{matchers}}}"


HIT_RATIO = f"{rate('gc_router_hit_tokens_total')} / {rate('gc_router_prompt_tokens_total')}"
STALE = 'result="stale"'
STALE_SHARE = f"{rate('gc_seal_checks_total', matchers=STALE)} / {rate('gc_seal_checks_total')}"
READY = 'state="ready"'

OVERVIEW = Row(
    "Overview",
    (
        Panel(
            "Hit ratio",
            (Query(HIT_RATIO, "tokens"),),
            "percentunit",
            "Share of prompt tokens that did not have to be computed, as forecast for the worker that was picked.",
            number=True,
        ),
        Panel(
            "Workers ready",
            (Query(f"max(gc_router_workers{_where(READY)})", "ready"),),
            text="As the router sees them that sees the most.",
            number=True,
        ),
        Panel(
            "Redis",
            (Query(f"min(gc_router_redis_available{_where('')}) or vector(1)", "answers"),),
            text="1: it answers every router that uses one.",
            number=True,
        ),
        Panel(
            "First tokens saved",
            (Query(f"{rate('gc_router_saved_ttft_ms_total')} / 1000", "seconds saved each second"),),
            "s",
            "Forecast time to first token without any cached prefix, less the forecast with it, each second.",
            number=True,
        ),
        Panel(
            "Time to first token",
            quantiles("gc_router_ttft_ms", 0.5, 0.9, 0.99),
            "ms",
            "Of streams: from the request written to a worker to the first byte of the answer's body.",
        ),
        Panel("Requests by status", of_each("status", "gc_router_requests_total"), "reqps"),
        Panel(
            "Observed over forecast",
            quantiles("gc_forecast_ratio", 0.1, 0.5, 0.9),
            text="Time to first token; 1 is a right forecast.",
        ),
    ),
)

ROUTER = Row(
    "Router",
    (
        Panel(
            "What the router adds",
            quantiles("gc_request_latency_ms", 0.5, 0.9, 0.99),
            "ms",
            "From a request's last byte read to the request written to a worker, waits for ghost locks included.",
        ),
        Panel("Placements by reason", of_each("reason", "gc_router_picks_total"), "reqps"),
        Panel("Placements by worker", of_each("worker", "gc_router_worker_picks_total"), "reqps"),
        Panel("Requests in flight by worker", (Query(total("gc_router_in_flight", "worker"), "{{worker}}"),)),
        Panel(
            "Placements without an exact forecast, by what was missing",
            of_each("reason", "gc_router_fallbacks_total"),
            "reqps",
        ),
        Panel("Ghost locks by result", of_each("result", "gc_ghost_locks_total"), "reqps"),
        Panel("Requests tried at another worker", of_each("reason", "gc_router_retries_total"), "reqps"),
        Panel(
            "Workers by state",
            (Query(f"max by (state) (gc_router_workers{_where('')})", "{{state}}"),),
        ),
        Panel(
            "Workers that fail",
            (
                Query(f"{rate('gc_router_worker_downs_total')} or vector(0)", "down"),
                Query(f"{rate('gc_router_ejections_total')} or vector(0)", "ejected"),
            ),
            text="Down: probes or connections fail. Ejected: requests fail though probes are fine.",
        ),
        Panel("Look-ups in the index", quantiles("gc_router_lookup_seconds", 0.5, 0.99), "s"),
        Panel("Connections of clients", (Query(total("gc_router_clients", "instance"), "{{instance}}"),)),
        Panel(
            "Requests that wait for their turn",
            (Query(f"{total('gc_router_queue_requests', 'instance')} or vector(0)", "{{instance}}"),),
            text="With flow control: no worker has room for them.",
        ),
        Panel(
            "Requests that got their turn after a wait",
            (Query(rate("gc_router_queue_wait_ms_count"), "a second"),),
            "reqps",
        ),
        Panel("Requests that got no turn, by reason", of_each("reason", "gc_router_queue_refusals_total"), "reqps"),
    ),
)

ENGINES = Row(
    "Engines",
    (
        Panel(
            "Blocks taken from peers, and misses by reason",
            (
                Query(rate("gc_cache_hits_total"), "hits"),
                Query(rate("gc_cache_misses_total", "reason"), "miss: {{reason}}"),
            ),
            text="Full blocks beyond what the engine had itself.",
        ),
        Panel("Prompt tokens pulled instead of computed", of_each("instance", "gc_tokens_cached_total")),
        Panel(
            "Time to first token saved",
            of_each("instance", "gc_saved_ttft_ms_total"),
            "ms",
            "Forecast time to compute what was pulled, less the time that the pulls took: for each second.",
        ),
        Panel("Peers", (Query(total("gc_peers_live", "instance"), "{{instance}}"),)),
        Panel("Blocks in the index", (Query(total("gc_active_cache_entries", "instance"), "{{instance}}"),)),
        Panel(
            "Entries published and withdrawn",
            (
                Query(rate("gc_published_entries_total"), "published"),
                Query(rate("gc_withdrawn_entries_total"), "withdrawn"),
                Query(rate("gc_dropped_entries_total"), "dropped"),
            ),
        ),
        Panel("Time until an entry is in the index", quantiles("gc_publish_lag_seconds", 0.5, 0.99), "s"),
        Panel("Look-ups beside the scheduler", quantiles("gc_lookup_seconds", 0.5, 0.99), "s"),
        Panel(
            "Prefills: observed over forecast",
            quantiles("gc_prefill_forecast_ratio", 0.1, 0.5, 0.9),
            text="1 is a right forecast.",
        ),
    ),
)

TRANSFERS = Row(
    "Transfers",
    (
        Panel("Bytes pulled, by transport", of_each("transport", "gc_pulled_bytes_total"), "Bps"),
        Panel("Time of a pull, by transport", quantiles("gc_pull_seconds", 0.5, 0.99, by="transport"), "s"),
        Panel(
            "Pulls by outcome",
            (Query(rate("gc_pulls_total", "outcome, reason"), "{{outcome}}: {{reason}}"),),
            "ops",
        ),
        Panel(
            "Transfers of ranks, by transport and outcome",
            (Query(rate("gc_rdma_transfers_total", "transport, outcome"), "{{transport}}: {{outcome}}"),),
            "ops",
        ),
        Panel(
            "Blocks that were overwritten while they were read",
            (Query(STALE_SHARE, "stale"),),
            "percentunit",
            "They are thrown away and computed.",
        ),
        Panel(
            "Pulls: observed over forecast",
            quantiles("gc_pull_forecast_ratio", 0.1, 0.5, 0.9),
            text="1 is a right forecast.",
        ),
        Panel(
            "READs that were given up and may still land",
            (Query(f"{total('gc_quarantined_reads')} or vector(0)", "quarantined"),),
        ),
    ),
)

TIERS = Row(
    "Tiers",
    (
        Panel("Blocks in host memory, by type", (Query(total("gc_tier_blocks", "type"), "{{type}}"),)),
        Panel("Blocks loaded from host memory", of_each("instance", "gc_tier_loaded_blocks_total")),
        Panel("Blocks given up, by reason", of_each("reason", "gc_tier_evicted_blocks_total")),
        Panel("Blocks not taken in, by reason", of_each("reason", "gc_tier_refused_blocks_total")),
        Panel("Copies to host memory, by result", of_each("result", "gc_tier_copied_blocks_total")),
        Panel("Bytes copied to host memory", of_each("instance", "gc_tier_copied_bytes_total"), "Bps"),
        Panel(
            "Retained on request",
            (Query(f"{total('gc_tier_retained_bytes', 'instance')} or vector(0)", "{{instance}}"),),
            "bytes",
        ),
        Panel(
            "Blocks from objects, and why not",
            (
                Query(rate("gc_object_hits_total"), "hits"),
                Query(rate("gc_object_misses_total", "reason"), "miss: {{reason}}"),
            ),
        ),
        Panel("Objects written, by outcome", of_each("outcome", "gc_object_writes_total"), "ops"),
        Panel(
            "Bytes to and from the object store",
            (
                Query(rate("gc_object_written_bytes_total"), "written"),
                Query(rate("gc_object_read_bytes_total"), "read"),
            ),
            "Bps",
        ),
        Panel(
            "Objects known, by size",
            (Query(f"max(gc_object_known_bytes{_where('')}) or vector(0)", "known"),),
            "bytes",
        ),
        Panel(
            "Failed requests to the object store",
            (Query(rate("gc_object_errors_total", "operation, reason"), "{{operation}}: {{reason}}"),),
            "ops",
        ),
    ),
)

ROWS = (OVERVIEW, ROUTER, ENGINES, TRANSFERS, TIERS)
