"""Results of simulations as lines of text. Pure: a report in, lines out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from ghostcacher_cli.simulate.results import LeastFound, Percentiles, Report, RunFound, Sources
from ghostcacher_cli.terminal.text import NOTHING, count, duration, milliseconds, printable, table
from ghostcacher_simulator.replay.replay import FLOW_ENDINGS

ANSWERED = "answered"


def report_lines(report: Report) -> list[str]:
    """Return all there is to say."""
    return [
        *_load(report),
        "",
        *_least(report.least),
        *_runs(report.runs),
        "",
        *_tokens(report.runs),
        *_endings(report.runs),
        *_tenants(report.runs),
        "",
        *_worker(report),
    ]


def _load(report: Report) -> Iterator[str]:
    load = report.load
    saveable = 1 - load.distinct_tokens / load.prompt_tokens
    yield printable(
        f"{load.name}: {load.requests:,} requests in {duration(load.duration_s)}, {count(load.prompt_tokens)} prompt "
        f"tokens ({percent(saveable)} of them were there before), {count(load.answer_tokens)} answer tokens"
    )


def _least(least: Sequence[LeastFound]) -> Iterator[str]:
    for each in least:
        goals, reached = ", ".join(each.goals), ", ".join(each.reached)
        if each.workers is None:
            most = f"no fleet of up to {each.tried} workers is enough for {goals} (with {each.tried}: {reached})"
            yield f"{each.policy_name}: {most}"
        else:
            yield f"{each.policy_name}: {each.workers} workers are enough for {goals} ({reached})"
    if least:
        yield ""


def _runs(runs: Sequence[RunFound]) -> Iterator[str]:
    heads = ("policy", "workers", "TTFT p50", "p90", "p99", "ITL p50", "p90", "p99", "took", "USD/M tokens")
    rows = [
        (
            run.policy_name,
            str(run.workers),
            *_times(run.ttft),
            *_times(run.itl),
            duration(run.took_s),
            NOTHING if run.usd_per_million_tokens is None else f"{run.usd_per_million_tokens:.3f}",
        )
        for run in runs
    ]
    yield from _indented(heads, rows)


def _tokens(runs: Sequence[RunFound]) -> Iterator[str]:
    yield "Where prompt tokens came from, and how even the work was (the busiest worker over the mean)"
    yield ""
    heads = (
        "policy",
        "workers",
        "engine",
        "host",
        "peers",
        "objects",
        "computed",
        "tokens",
        "pulls",
        "requests",
        "computing",
    )
    rows = []
    for run in runs:
        found = run.sources
        parts = msgspec.structs.astuple(found) if found else (None,) * len(Sources.__struct_fields__)
        rows.append(
            (
                run.policy_name,
                str(run.workers),
                *(NOTHING if part is None else percent(part) for part in parts),
                count(run.computed_tokens),
                f"{run.pulls:,}",
                f"{run.requests_max_over_mean:.2f}",
                f"{run.computed_max_over_mean:.2f}",
            )
        )
    yield from _indented(heads, rows)


def _endings(runs: Sequence[RunFound]) -> Iterator[str]:
    for run in runs:
        others = [f"{number:,} {ending}" for ending, number in run.endings.items() if ending != ANSWERED]
        if others:
            answered = f"{run.endings.get(ANSWERED, 0):,} {ANSWERED}"
            yield f"  {run.policy_name}, {run.workers} workers: {', '.join([answered, *others])}"


def _tenants(runs: Sequence[RunFound]) -> Iterator[str]:
    rows = []
    for run in runs:
        for found in run.tenants:
            refused = (found.endings.get(ending.value, 0) for ending in FLOW_ENDINGS.values())
            rows.append(
                (
                    run.policy_name,
                    str(run.workers),
                    printable(found.tenant) or NOTHING,
                    str(found.priority),
                    f"{found.requests:,}",
                    f"{found.queued:,}",
                    *_times(found.wait),
                    *(f"{count:,}" for count in refused),
                    *_times(found.ttft)[::2],
                )
            )
    if not rows:
        return
    yield ""
    yield "Who waited for a turn in the routers, and who got none"
    yield ""
    heads = ("policy", "workers", "tenant", "priority", "requests", "queued", "wait p50", "p90", "p99")
    yield from _indented((*heads, *(ending.value for ending in FLOW_ENDINGS.values()), "TTFT p50", "p99"), rows)


def _worker(report: Report) -> Iterator[str]:
    worker = report.worker
    yield "Each worker"
    yield ""
    rows = [
        (f"{worker.kv_tokens:,} tokens", "in its KV cache (--kv-tokens)"),
        (f"{worker.host_tokens:,} tokens", "in its host tier (--host-gib)"),
        (f"{worker.prefill_tokens_per_s:,.0f} tokens/s", "of prompts are computed (--prefill-tokens-per-second)"),
        (f"{worker.step_s * 1e3:.1f} ms", "take a step (--step-ms)"),
        (f"{worker.answer_s * 1e3:.3f} ms", "more for each running answer (--answer-ms)"),
        (f"{worker.pull_bytes_per_s / 1e9:,.3g} GB/s", "are pulled from a peer (--link-gb-per-second)"),
        (f"{worker.kv_bytes_per_token:,} bytes", "of KV a token (--kv-bytes-per-token)"),
    ]
    if worker.object_bytes_per_s is not None:
        rate = f"{worker.object_bytes_per_s / 1e9:,.3g} GB/s"
        rows.insert(2, (rate, "are read from the object tier, and written (--object-gb-per-second)"))
    if worker.usd_per_hour is not None:
        rows.append((f"{worker.usd_per_hour:,.2f} USD/h", "is its price (--usd-per-hour)"))
    width = max(len(row[0]) for row in rows)
    for value, what in rows:
        yield f"  {value:>{width}}  {what}"
    for source in worker.sources:
        yield printable(f"  {source}")


def percent(part: float) -> str:
    return f"{part:.1%}".replace("%", " %")


def _times(found: Percentiles | None) -> tuple[str, str, str]:
    if found is None:
        return NOTHING, NOTHING, NOTHING
    return milliseconds(found.p50_s), milliseconds(found.p90_s), milliseconds(found.p99_s)


def _indented(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for line in table(heads, rows).splitlines():
        yield f"  {line}"
