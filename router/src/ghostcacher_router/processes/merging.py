"""What the admin API of several processes says, as one router says it.

A process answers for itself alone. Fields that count what a process does are added up; what all of them see in Redis,
or probe for themselves, is as the asked one sees it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ghostcacher_connector.core.admin_api import Quantiles
from ghostcacher_connector.core.dashboard_api import FirstTokens, History, HistoryPoint

Json = dict[str, Any]


def merged_workers(own: Json, others: Sequence[Json]) -> Json:
    """Merge answers of /gc/workers, or /gc/pods: requests in flight and refusals are of all processes."""
    for key, workers in own.items():
        theirs = [{worker["id"]: worker for worker in other.get(key, ())} for other in others]
        for worker in workers:
            found = [each[worker["id"]] for each in theirs if worker["id"] in each]
            for field in ("in_flight", "refusals"):
                if field in worker:
                    worker[field] += sum(each.get(field) or 0 for each in found)
            if worker.get("ejected") is None:
                why = next((each["ejected"] for each in found if each.get("ejected")), None)
                if why is not None:
                    worker["ejected"] = why
    return own


def merged_status(own: Json, others: Sequence[Json]) -> Json:
    """Merge answers of /gc/status: workers are ejected that are so in any process."""
    for other in others:
        own["ejected"] = (other.get("ejected") or {}) | own["ejected"]
        own["uptime_s"] = max(own["uptime_s"], other.get("uptime_s") or 0.0)
        own["redis_error"] = own["redis_error"] or other.get("redis_error")
        if own.get("queue") and other.get("queue"):
            own["queue"] = _merged_queue(own["queue"], other["queue"])
    own["processes"] = 1 + len(others)
    return own


def _merged_queue(own: Json, other: Json) -> Json:
    for field in ("requests", "requests_max", "bytes"):
        own[field] += other[field]
    for field in ("by_priority", "tenants"):
        own[field] = _summed((own[field], other[field]))
    own["saturated"] = sorted({*own["saturated"], *other["saturated"]})
    own["retry_after_s"] = max(own["retry_after_s"], other["retry_after_s"])
    return own


def merged_drain(own: Json, others: Sequence[Json]) -> Json:
    """Merge answers to a drain."""
    own["in_flight"] += sum(other.get("in_flight") or 0 for other in others)
    return own


def merged_locks(own: Json, others: Sequence[Json]) -> Json:
    """Merge answers of /gc/locks: what a request of any process holds is ours."""
    found: dict[tuple[str, str], Json] = {}
    for lock in [lock for each in (own, *others) for lock in each.get("locks", ())]:
        known = found.setdefault((lock["key"], lock["worker"]), lock)
        if lock["ours"] and not known["ours"]:
            found[lock["key"], lock["worker"]] = lock
    own["locks"] = sorted(found.values(), key=lambda lock: -lock["age_s"])
    own["total"] = max(len(found), own["total"], *(other.get("total") or 0 for other in others))
    return own


def merged_prefixes(own: Json, others: Sequence[Json]) -> Json:
    """Merge answers of /gc/prefixes: how often each was used, by all processes."""
    found = {prefix["key"]: prefix for prefix in own["prefixes"]}
    for prefix in [prefix for other in others for prefix in other.get("prefixes", ())]:
        known = found.setdefault(prefix["key"], prefix)
        if known is not prefix:
            known["uses"] += prefix["uses"]
            known["last_s"] = min(known["last_s"], prefix["last_s"])
    own["prefixes"] = sorted(found.values(), key=lambda prefix: -prefix["uses"])
    own["seen"] += sum(other.get("seen") or 0 for other in others)
    return own


def merged_explain(own: Json, others: Sequence[Json]) -> Json:
    """Merge answers of /gc/explain: forecasts of the process that knows most of the prompt; the asked one's when equal.

    Without Redis, that is the process which has sent such prompts before. Requests in flight are of all of them, and a
    worker is saturated that is so in any.
    """
    found = max((own, *others), key=_known_tokens)
    for key in ("workers", "prefill"):
        for row in found.get(key, ()):
            theirs = [one for each in (own, *others) for one in each.get(key, ()) if one["worker"] == row["worker"]]
            row["in_flight"] = sum(one["in_flight"] for one in theirs)
            if "saturated" in row:
                row["saturated"] = any(one.get("saturated") for one in theirs)
    return found


def _known_tokens(explained: Json) -> int:
    rows = [row for key in ("workers", "prefill") for row in explained.get(key, ())]
    return sum(row["local_tokens"] + row["pulled_tokens"] for row in rows)


MERGED: Mapping[str, Callable[[Json, Sequence[Json]], Json]] = {
    "/gc/workers": merged_workers,
    "/gc/pods": merged_workers,
    "/gc/status": merged_status,
    "/gc/locks": merged_locks,
    "/gc/prefixes": merged_prefixes,
    "/gc/explain": merged_explain,
}
"""How answers are merged that are read, by path."""


def merged_history(histories: Sequence[History], after: float | None, ended: Sequence[HistoryPoint] = ()) -> History:
    """Return one history of all processes, of the asked one first.

    after: seconds since 1970; None: all. ended: the points of processes that have ended.
    Each samples at its own moments: their points are put into common intervals. One that not all of them can have ended
    yet is left out.
    """
    own = histories[0]
    ended_by = own.now - 2 * own.interval_s
    begin = -math.inf if after is None else after
    points = merged_points((*(history.points for history in histories), ended), own.interval_s, begin)
    first_tokens = FirstTokens(
        forecast_ms=tuple(value for history in histories for value in history.first_tokens.forecast_ms),
        observed_ms=tuple(value for history in histories for value in history.first_tokens.observed_ms),
    )
    points = tuple(point for point in points if point.at <= ended_by)
    return msgspec.structs.replace(own, points=points, first_tokens=first_tokens)


def merged_points(
    by_process: Iterable[Iterable[HistoryPoint]], step_s: float, after: float = -math.inf
) -> tuple[HistoryPoint, ...]:
    """Return the points of all processes that ended after a moment, in intervals of so many seconds."""
    found: dict[float, dict[int, list[HistoryPoint]]] = {}
    for process, points in enumerate(by_process):
        for point in points:
            end = math.ceil(point.at / step_s) * step_s
            if end > after:
                found.setdefault(end, {}).setdefault(process, []).append(point)
    return tuple(_merged_point(end, step_s, list(found[end].values())) for end in sorted(found))


def _merged_point(end: float, step_s: float, by_process: Sequence[Sequence[HistoryPoint]]) -> HistoryPoint:
    points = [point for points in by_process for point in points]
    # Every process sees the same reports of the workers: what these count is not added up.
    seen = max(by_process, key=lambda points: sum(point.hit_blocks for point in points))
    return HistoryPoint(
        end,
        step_s,
        requests=sum(point.requests for point in points),
        failed=sum(point.failed for point in points),
        prompt_tokens=sum(point.prompt_tokens for point in points),
        hit_tokens=sum(point.hit_tokens for point in points),
        saved_ttft_ms=sum(point.saved_ttft_ms for point in points),
        ttft_ms=_merged_quantiles(point.ttft_ms for point in points),
        overhead_ms=_merged_quantiles(point.overhead_ms for point in points),
        forecast_ratio=_merged_quantiles(point.forecast_ratio for point in points),
        in_flight=sum(points[-1].in_flight for points in by_process),
        ready=max(point.ready for point in points),
        hit_blocks=sum(point.hit_blocks for point in seen),
        missed_blocks=_summed(point.missed_blocks for point in seen),
    )


def _merged_quantiles(parts: Iterable[Quantiles]) -> Quantiles:
    """Return about how the values of all parts are spread: means of their quantiles, by how many values they had."""
    some = [part for part in parts if part.count]
    total = sum(part.count for part in some)

    def mean(name: str) -> float | None:
        pairs = [(getattr(part, name), part.count) for part in some if getattr(part, name) is not None]
        return sum(value * count for value, count in pairs) / sum(count for _, count in pairs) if pairs else None

    return Quantiles(total, mean("p50"), mean("p90"), mean("p99"))


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            sums[name] = sums.get(name, 0) + count
    return sums
