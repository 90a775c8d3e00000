"""What our router says of itself, between two readings of its metrics: its own latency, and why it picked."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.harness import Metrics
from benchmarks.harness.client import parse_metrics
from benchmarks.proxy.running import Server, ask

LATENCY = "gc_request_latency_ms"
PICKS = "gc_router_picks_total"


class Insight(NamedTuple):
    """p50_ms, p99_ms: upper bounds, of the histogram's bucket. picks: share of placements, by reason."""

    p50_ms: float
    p99_ms: float
    picks: dict[str, float]

    def __str__(self) -> str:
        reasons = ", ".join(f"{100 * share:.1f} % {reason}" for reason, share in self.picks.items())
        return f"its own latency p50 <= {self.p50_ms:g} ms, p99 <= {self.p99_ms:g} ms; picks: {reasons or 'none'}"


def read_metrics(server: Server) -> Metrics:
    return parse_metrics(ask(server.port, "GET", "/metrics")[1].decode())


def insight(before: Metrics, after: Metrics) -> Insight:
    """Return what happened between two readings."""
    picks = {
        reason: count - before.by(PICKS, "reason").get(reason, 0.0)
        for reason, count in after.by(PICKS, "reason").items()
    }
    total = sum(picks.values()) or 1.0
    shares = {reason: count / total for reason, count in sorted(picks.items(), key=lambda pick: -pick[1]) if count}
    return Insight(bucket_of(before, after, 0.5), bucket_of(before, after, 0.99), shares)


def bucket_of(before: Metrics, after: Metrics, part: float) -> float:
    """Return the upper bound of the histogram's bucket in which a quantile lies; infinity beyond the last."""
    was = before.by(f"{LATENCY}_bucket", "le")
    counts = sorted(
        (float(bound), count - was.get(bound, 0.0)) for bound, count in after.by(f"{LATENCY}_bucket", "le").items()
    )
    wanted = part * counts[-1][1] if counts else 0.0
    return next((bound for bound, count in counts if count >= wanted), float("inf"))
