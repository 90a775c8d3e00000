"""Every metric that the router exports: name, unit, labels and what it means. Nothing else is recorded.

All of it is changed on the event loop only. Labels are bounded: a path is one of `PATHS` or "other", a status is a
number, and the series of a worker go when the worker leaves.

What to call for what has happened, all on `RouterMetrics`:

    answered(path, status)                    a request has ended; 499: the client left
    latency_ms.observe(ms)                    from the last byte of the request's body to the request written
    picked(worker, reason)                    a placement was made
    observed(prompt, hit, saved_ms)           a placement's prompt tokens, those of them forecast cached, TTFT saved
    first_token(observed_ms, forecast_ms)     the first byte of an answer has come
    fallbacks.inc(why) retries.inc(why) ghost_locks.inc(result) lookup_s.observe(s) ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from ghostcacher_connector.core.admin_api import Quantiles, Requests, Stats
from ghostcacher_router.metrics.flow_metrics import FlowMetrics
from ghostcacher_router.metrics.instruments import OTHER, Counter, Gauge, Histogram, Page, Source
from ghostcacher_router.metrics.picker_metrics import PickerMetrics
from ghostcacher_router.metrics.provider_metrics import ProviderMetrics
from ghostcacher_router.types import Reason, WorkerState

PAGE_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""The content type of the metrics page."""

_MODELS = "/v1/models"
"""What the router answers itself, though clients ask for it as they ask engines: not shown among requests either."""
PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/messages",
    _MODELS,
    "/tokenize",
    "/detokenize",
    "/v1/rerank",
    "/v1/score",
    "/v1/audio/transcriptions",
    "/v1/realtime",
    "/generate",
)
"""Paths with series of their own. All others, and so whatever a client makes up, share the series "other"."""

OWN = "own"
"""Requests that the router answers itself, for people, share this one series, and are not counted where requests are
shown."""
_PROBES = frozenset({"/health", "/ready"})
"""Paths that are not counted at all: a 503 of `/ready` says that no worker is ready, and is no request that failed."""

_PATHS = frozenset(PATHS)
_PATH_STATUS = ("path", "status")
_STATUSES = range(100, 600)

LATENCY_MS_BOUNDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 10, 20, 50, 100, 250, 1000, 5000)
"""Fine steps below 1 ms, where the router's own work lies; waiting for a ghost lock or a worker lies above."""
TTFT_MS_BOUNDS = (5, 10, 20, 50, 100, 200, 350, 500, 750, 1000, 1500, 2000, 3000, 5000, 10_000, 30_000, 120_000)
RATIO_BOUNDS = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
"""The same bounds as those of the connector's forecasts, so that both can be compared."""
ERROR_MS_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 30_000)
SECONDS_BOUNDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5)

FIRST_TOKENS_MAX = 256
"""Answers whose forecast and observed TTFT are kept: enough to see a pattern."""

REASONS = tuple(reason.value for reason in Reason)
HANDOVERS = ("handed", "failed", "late")
RETRIES = ("refused", "broke", "unreachable", "hung", "503", "429", "error")
"""refused: no connection could be made. broke: it was closed before a byte of the answer came. unreachable: the host of
the worker did not acknowledge the request. hung: the worker answered no probe any more. Numbers: the status of an
answer of which nothing was passed on. error: the same, with another status of a server's error."""
SHORTAGES = ("connections", "address", "descriptors")
"""connections: `connections_max`. address: `connections_per_address_max`. descriptors: files that may be open."""
TURNED_AWAY = ("dropped", "refused")
LOCK_RESULTS = ("granted", "followed", "waited", "timed_out", "taken_over", "lost", "unavailable")
PROBE_RESULTS = ("ok", "failed")
FALLBACKS = ("prompt", "load", "index")
"""prompt: the request has none, or one that is not understood. load: no worker has reported its load lately. index: it
cannot be asked where the prompt's blocks are."""
STORED_RESULTS = ("held", "gone", "unknown")
"""held: sent to the worker that holds it. gone: that worker has left the fleet. unknown: no router knows the id. The
last two go to any worker, which answers that there is no such object."""
LOOKUP_RESULTS = ("ok", "kept", "failed")
"""kept: it failed, and the last good addresses stay in use."""

Instrument = TypeVar("Instrument", Counter, Histogram)


class RouterMetrics:
    """The metrics of one router, on a registry of their own."""

    def __init__(self) -> None:
        self._page = Page()
        self.registry = CollectorRegistry()
        self._make_requests()
        self._make_routing()
        self._make_fleet()
        self.providers = ProviderMetrics(self._put)
        self.picker = PickerMetrics(self._put)
        self.flow = FlowMetrics(self._put, self._put)
        self.registry.register(self._page)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def __repr__(self) -> str:
        return f"RouterMetrics(requests={self.requests.total:.0f})"

    def _make_requests(self) -> None:
        self.first_tokens: deque[tuple[float, float]] = deque(maxlen=FIRST_TOKENS_MAX)
        """Forecast and observed TTFT of the last answers, in ms, for the dashboard."""
        self.requests = self._put(
            Counter("gc_router_requests_total", "Requests, by path and status (499: the client left).", _PATH_STATUS)
        )
        self.latency_ms = self._put(
            Histogram(
                "gc_request_latency_ms",
                "What the router adds: from a request's last byte read to the request written to a worker, without its "
                "wait for a turn, in ms.",
                LATENCY_MS_BOUNDS,
            )
        )
        self.ttft_ms = self._put(
            Histogram(
                "gc_router_ttft_ms",
                "Of streams: from the request written to the first byte of the answer's body, in ms.",
                TTFT_MS_BOUNDS,
            )
        )
        self.turned_away = self._put(
            Counter(
                "gc_router_clients_turned_away_total",
                "Clients' connections for which there was no room, by what was short and by what was done: idle ones "
                "dropped, new ones refused.",
                ["short", "done"],
                known=[SHORTAGES, TURNED_AWAY],
            )
        )
        self.retries = self._put(
            Counter(
                "gc_router_retries_total",
                "Requests sent to another worker, nothing having been sent to the client, by what had failed.",
                ["reason"],
                known=[RETRIES],
            )
        )

        self.handovers = self._put(
            Counter(
                "gc_router_handovers_total",
                "Prompts that one worker was to compute for another: handed over, failed, or handed over too late.",
                ["result"],
                known=[HANDOVERS],
            )
        )

    def _make_routing(self) -> None:
        self._picks = self._put(
            Counter("gc_router_picks_total", "Placements, by why that worker.", ["reason"], known=[REASONS])
        )
        self._worker_picks = self._put(
            Counter("gc_router_worker_picks_total", "Placements, by worker and why.", ["worker", "reason"])
        )
        self.fallbacks = self._put(
            Counter(
                "gc_router_fallbacks_total",
                "Placements without an exact forecast, by what was missing.",
                ["reason"],
                known=[FALLBACKS],
            )
        )
        self.forecast_ratio = self._put(
            Histogram("gc_forecast_ratio", "Observed over forecast TTFT: 1 is a right forecast.", RATIO_BOUNDS)
        )
        self.forecast_error_ms = self._put(
            Histogram(
                "gc_forecast_error_ms",
                "How far the observed TTFT was from its forecast, either way, in ms.",
                ERROR_MS_BOUNDS,
            )
        )
        self.hit_tokens = self._put(
            Counter(
                "gc_router_hit_tokens_total",
                "Those of gc_router_prompt_tokens_total that were forecast to be in the worker's reach.",
            )
        )
        self.prompt_tokens = self._put(
            Counter("gc_router_prompt_tokens_total", "Prompt tokens of requests that were answered.")
        )
        self.saved_ttft_ms = self._put(
            Counter(
                "gc_router_saved_ttft_ms_total",
                "Forecast TTFT saved: of the picked worker without any cached prefix, less the forecast, in ms.",
            )
        )
        self.ghost_locks = self._put(
            Counter("gc_ghost_locks_total", "Ghost locks asked for, by how it ended.", ["result"], known=[LOCK_RESULTS])
        )
        self.stored = self._put(
            Counter(
                "gc_router_stored_total",
                "Requests that need a stored answer, file or batch, by whether its worker was known.",
                ["result"],
                known=[STORED_RESULTS],
            )
        )
        self.lookup_s = self._put(
            Histogram("gc_router_lookup_seconds", "Time of one round trip to the index, in s.", SECONDS_BOUNDS)
        )
        self._page.put(Gauge("gc_cache_hit_ratio", "Hit tokens over prompt tokens since the start.", None, self._ratio))

    def _make_fleet(self) -> None:
        self.refusals = self._put(
            Counter(
                "gc_router_refusals_total",
                "Requests that got no connection to a worker, or no whole answer.",
                ["worker"],
            )
        )
        self.ejections = self._put(
            Counter(
                "gc_router_ejections_total",
                "Ejections of a worker whose probes are fine, by what its last failed request met: refused, broke, or "
                "the status of its answer.",
                ["worker", "reason"],
            )
        )
        self.downs = self._put(
            Counter(
                "gc_router_worker_downs_total",
                "Times that a worker became DOWN: its probes failed, or connections to it could not be made.",
                ["worker"],
            )
        )
        self.bad_items = self._put(
            Counter(
                "gc_router_bad_items_total", "Items read from the store that could not be taken, and were left out."
            )
        )
        self.probes = self._put(
            Counter("gc_router_probes_total", "Health probes, by result.", ["result"], known=[PROBE_RESULTS])
        )
        self.dns_lookups = self._put(
            Counter(
                "gc_router_dns_lookups_total",
                "Look-ups of workers' names, by result (kept: failed, the last good addresses stay in use).",
                ["result"],
                known=[LOOKUP_RESULTS],
            )
        )

    def answered(self, path: str, status: int) -> None:
        """Count a request that has ended. path: as the client sent it."""
        values, labels = self.requests.values, (path, status)
        if labels in values:
            values[labels] += 1.0  # What most have: a path that is a label.
            return
        if path in _PROBES:
            return
        own = path == "/metrics" or path.startswith("/gc/")
        known = path if path in _PATHS else OWN if own else _MODELS if path.startswith(_MODELS + "/") else OTHER
        self.requests.add(1.0, known, status if status in _STATUSES else OTHER)

    def picked(self, worker: str, reason: Reason) -> None:
        """Count a placement at a worker."""
        value = reason.value
        self._picks.values[(value,)] += 1.0
        self._worker_picks.add(1.0, worker, value)

    def observed(self, prompt_tokens: int, hit_tokens: int, saved_ms: float) -> None:
        """Count an answered prompt's tokens, those of them that need no computing, and the time that this saves."""
        self.prompt_tokens.values[()] += prompt_tokens
        self.hit_tokens.values[()] += hit_tokens
        if saved_ms > 0.0:
            self.saved_ttft_ms.values[()] += saved_ms

    def first_token(self, observed_ms: float, forecast_ms: float | None) -> None:
        """Record the time to the first byte of an answer, and how far off its forecast was."""
        self.ttft_ms.observe(observed_ms)
        if forecast_ms is not None:
            self.first_tokens.append((forecast_ms, observed_ms))
            self.forecast_error_ms.observe(abs(observed_ms - forecast_ms))
            if forecast_ms > 0.0:
                self.forecast_ratio.observe(observed_ms / forecast_ms)

    def gauge(self, name: str, text: str, source: Source, *, label: str | None = None) -> None:
        """Export the numbers that `source` returns at each scrape, by the value of `label`, or by "" without one."""
        self._page.put(Gauge(name, text, label, source))

    def watch_fleet(
        self,
        states: Callable[[], Mapping[WorkerState, int]],
        available: Callable[[], bool | None],
        refused: Callable[[], Mapping[str, int]],
        split: Callable[[], int],
    ) -> None:
        """Export what the fleet knows of its workers and of Redis.

        states: how many workers are in each state. available: whether Redis answers; None for a router without one.
        refused: how many values in it were not believed, by kind and reason. split: models whose workers cannot share.
        """
        self.gauge(
            "gc_router_workers",
            "Workers, by state.",
            lambda: {state.value: count for state, count in states().items()},
            label="state",
        )
        self.gauge(
            "gc_router_redis_available",
            "1 while Redis answers; absent of a router without one.",
            lambda: {} if (answers := available()) is None else {"": float(answers)},
        )
        self.gauge(
            "gc_router_split_models",
            "Models whose ready workers share in several groups, since their fingerprints differ.",
            lambda: {"": float(split())},
        )
        self.gauge(
            "gc_router_refused_values",
            'Values in Redis not believed since the start, by kind and reason, such as "load: not authentic".',
            refused,
            label="what",
        )

    def forget_worker(self, worker: str) -> None:
        """Drop the series of a worker that is gone."""
        self._worker_picks.forget("worker", worker)
        self.refusals.forget("worker", worker)
        self.ejections.forget("worker", worker)
        self.downs.forget("worker", worker)

    def hit_ratio(self) -> float:
        """Return hit tokens over prompt tokens since the start; 0 before the first."""
        return self.hit_tokens.total / self.prompt_tokens.total if self.prompt_tokens.total else 0.0

    @property
    def instruments(self) -> Mapping[str, Counter | Histogram | Gauge]:
        """All of them, by name."""
        return self._page.instruments

    def page(self) -> bytes:
        """Return the metrics page in the text format of `PAGE_TYPE`."""
        return generate_latest(self.registry)

    def stats(self) -> Stats:
        """Return the counters that people ask for first. Quantiles are since the start, within buckets."""
        by_status = self.requests_by_status()
        return Stats(
            requests=Requests(sum(by_status.values()), by_status),
            picks=self._picks.by("reason"),
            picks_by_worker=self._worker_picks.by("worker"),
            fallbacks=self.fallbacks.by("reason"),
            retries=self.retries.by("reason"),
            ghost_locks=self.ghost_locks.by("result"),
            prompt_tokens=self.prompt_tokens.total,
            hit_tokens=self.hit_tokens.total,
            hit_ratio=self.hit_ratio(),
            saved_ttft_ms=self.saved_ttft_ms.total,
            overhead_ms=quantiles_of(self.latency_ms, self.latency_ms.counts),
            ttft_ms=quantiles_of(self.ttft_ms, self.ttft_ms.counts),
            forecast_ratio=quantiles_of(self.forecast_ratio, self.forecast_ratio.counts),
        )

    def requests_by_status(self) -> dict[str, float]:
        """Return the requests that were for a worker, by status."""
        sums: dict[str, float] = {}
        for (path, status), count in self.requests.values.items():
            if path not in (OWN, _MODELS):
                sums[str(status)] = sums.get(str(status), 0.0) + count
        return sums

    def _ratio(self) -> Mapping[str, float]:
        return {"": self.hit_ratio()}

    def _put(self, instrument: Instrument) -> Instrument:
        self._page.put(instrument)
        return instrument


def quantiles_of(histogram: Histogram, counts: Sequence[int]) -> Quantiles:
    """Return how a part of a histogram's values is spread. counts: how many of them fell in each bucket."""
    p50, p90, p99 = (histogram.quantile_of(counts, q) for q in (0.5, 0.9, 0.99))
    return Quantiles(sum(counts), p50, p90, p99)
