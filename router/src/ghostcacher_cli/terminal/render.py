"""A fleet as lines of text. Pure: snapshots in, lines out."""

from __future__ import annotations

from ghostcacher_cli.terminal.fleet import Snapshot
from ghostcacher_cli.terminal.text import NOTHING, bar, count, duration, fit, milliseconds, percent, printable, table
from ghostcacher_connector.core.admin_api import GONE, Quantiles, Queue, Worker

BAR_CHARS = 10
STALE_S = 5.0
"""A load that is older is marked: the worker, or Redis, is silent."""
HEADERS = ("worker", "state", "run", "wait", "KV use", "prefill tok/s", "in flight", "share")


def fleet_lines(now: Snapshot, before: Snapshot | None = None) -> list[str]:
    """Return the router's line, the line of what it does, a table of its workers, and what is wrong with them.

    before: an earlier look, for rates.
    """
    queue = [] if now.status.queue is None else [queue_line(now.status.queue)]
    lines = [router_line(now), work_line(now, before), *queue, ""]
    if now.workers:
        total = sum(now.stats.picks_by_worker.values())
        rows = [_row(worker, now.stats.picks_by_worker.get(worker.id, 0.0), total) for worker in now.workers]
        lines += table(HEADERS, rows, left=2).splitlines()
    tiers = [line for worker in now.workers if worker.load is not None for line in _tier_lines(worker)]
    lines += ["", *tiers] if tiers else []
    problems = [problem for worker in now.workers if (problem := _problem(worker)) is not None]
    why_not_ready, redis_error = now.status.why_not_ready, now.status.redis_error
    if redis_error and redis_error not in (why_not_ready or ""):
        problems.insert(0, redis_error)
    if why_not_ready:
        problems.insert(0, why_not_ready)
    return [printable(line) for line in (*lines, *([""] if problems else []), *problems)]


def router_line(now: Snapshot) -> str:
    """Return who this is: version, age, processes, Redis, replicas, models."""
    status = now.status
    parts = [f"ghostcacher {status.version}", f"up {duration(status.uptime_s)}"]
    if status.processes > 1:
        parts.append(f"{status.processes} processes")
    answers = "redis refuses" if status.redis_error else "redis answers"
    parts.append(answers if status.redis_available else "no redis")
    if status.replicas is not None and status.replicas > 1:
        parts.append(f"{status.replicas} routers")
    parts.append(", ".join(status.models) or "no model")
    return "  |  ".join(parts)


def work_line(now: Snapshot, before: Snapshot | None = None) -> str:
    """Return what the router does: requests, hit ratio, saved time, its own overhead. Rates need a look before."""
    stats = now.stats
    parts = [f"{count(request_rate(now, before))} requests/s", f"{count(stats.requests.total)} in all"]
    hit_ratio = stats.hit_tokens / stats.prompt_tokens if stats.prompt_tokens else None
    parts.append(f"hit ratio {percent(hit_ratio)}")
    parts.append(f"saved TTFT {duration(stats.saved_ttft_ms / 1e3)}")
    parts.append(f"overhead p50 {_ms(stats.overhead_ms.p50)}")
    parts.append(f"TTFT {_quantiles(stats.ttft_ms)}")
    return "  |  ".join(parts)


def queue_line(queue: Queue) -> str:
    """Return what waits in the router for its turn, the first to go first."""
    parts = [f"{count(queue.requests)} of {count(queue.requests_max)} requests wait for their turn"]
    if queue.requests:
        parts.append("by priority: " + ", ".join(f"{name}: {count(of)}" for name, of in queue.by_priority.items()))
    if queue.saturated:
        parts.append(f"saturated: {', '.join(queue.saturated)}")
    return "  |  ".join(parts)


def request_rate(now: Snapshot, before: Snapshot | None) -> float | None:
    """Return requests/s between two looks; None without a first one, or when the router was restarted meanwhile."""
    if before is None or now.at <= before.at or now.status.uptime_s < before.status.uptime_s:
        return None
    return max(0.0, now.stats.requests.total - before.stats.requests.total) / (now.at - before.at)


def framed(lines: list[str], *, width: int, height: int, footer: str) -> list[str]:
    """Return lines that fit a screen: cut at its width, and at its height with a word on what is missing."""
    room = max(1, height - 1)
    shown = lines if len(lines) <= room else [*lines[: room - 1], f"... {len(lines) - room + 1} more lines"]
    return [fit(line, width) for line in (*shown, footer)][:height]


def _problem(worker: Worker) -> str | None:
    """Return what is wrong with a worker; None when nothing is."""
    if worker.ejected is not None:
        return f"{worker.id}: {worker.ejected}"
    why = worker.why or worker.error
    if worker.state == "ready" or why is None:
        return None
    return f"{worker.id}: {f'gone for {duration(worker.state_s)}: ' if worker.state == GONE else ''}{why}"


def _tier_lines(worker: Worker) -> list[str]:
    """Return a line for each tier below a worker's engine cache."""
    lines = []
    for tier in worker.load.tiers if worker.load is not None else ():
        used = tier.blocks / tier.blocks_max if tier.blocks_max else 0.0
        types = ", ".join(f"{name} {count(blocks)}" for name, blocks in tier.blocks_by_type.items() if blocks)
        lines.append(
            f"{worker.id}: {tier.tier} tier {bar(used, BAR_CHARS)} {used:4.0%} of {count(tier.blocks_max)} blocks"
            f"{f' ({types})' if types else ''}, {count(tier.loaded_blocks)} loaded, "
            f"{count(tier.evicted_blocks)} evicted, {count(tier.copies_under_way)} copies under way"
        )
    return lines


def _row(worker: Worker, picks: float, picks_total: float) -> list[str]:
    share = percent(picks / picks_total) if picks_total else NOTHING
    load = worker.load
    if load is None:
        return [worker.id, worker.state, NOTHING, NOTHING, NOTHING, NOTHING, str(worker.in_flight), share]
    used = load.kv_blocks_used / load.kv_blocks_total if load.kv_blocks_total else None
    stale = f" ({load.age_s:.0f} s old)" if load.age_s > STALE_S else ""
    return [
        worker.id,
        worker.state + stale,
        str(load.running),
        str(load.waiting),
        NOTHING if used is None else f"{bar(used, BAR_CHARS)} {used:4.0%}",
        count(load.prefill_tokens_per_s) if load.prefill_tokens_per_s > 0 else NOTHING,
        str(worker.in_flight),
        share,
    ]


def _ms(value: float | None) -> str:
    return NOTHING if value is None else milliseconds(value / 1e3)


def _quantiles(values: Quantiles) -> str:
    return f"p50 {_ms(values.p50)} p90 {_ms(values.p90)}"
