"""`ghostcacher analyze`: reads a file of requests, finds what a cache could save of it, and shows that."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import msgspec

from ghostcacher_cli.analyze.arguments import AnalyzeOptions, parse
from ghostcacher_cli.analyze.policy_curves import PolicyRuns
from ghostcacher_cli.analyze.previews import Previews
from ghostcacher_cli.analyze.report import Assumed, BestOrder, Counts, Prefix, Report, SizeHits, Tier
from ghostcacher_cli.analyze.send_order import curve_of_order, depth_first, write_in_order
from ghostcacher_cli.analyze.shared_prefixes import shared_prefixes
from ghostcacher_cli.analyze.stack_distance import HitCurve, hit_curve
from ghostcacher_cli.analyze.traces import SPACING_S, Trace, read_trace
from ghostcacher_cli.analyze.worth import GIB, sizes_for, tiers_worth
from ghostcacher_cli.terminal.live import Live

PROGRESS_S = 0.5


def main(words: Sequence[str]) -> int:
    """Analyze a file, print what was found, and return the exit code. Raises ConfigError and BadLine."""
    options = parse(words)
    from ghostcacher_cli.analyze.charts import draw, require, write_picture  # noqa: PLC0415 - looks for libraries

    require(chart=options.chart, plot=options.plot)
    began = time.monotonic()
    progress = _Progress()
    report = analyze(options, progress.tell, lambda: time.monotonic() - began)
    progress.clear()
    if options.plot is not None:
        write_picture(report, options.plot)
    if options.as_json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
        return 0
    from ghostcacher_cli.analyze.report_text import report_lines  # noqa: PLC0415 - not for JSON

    print(*report_lines(report, draw(report, chart=options.chart)), sep="\n")
    return 0


def analyze(options: AnalyzeOptions, tell: Callable[[str], object], elapsed: Callable[[], float]) -> Report:
    """Return what there is to say of a file. tell: is told what is being done. elapsed: s since the beginning."""
    given = options.assumptions
    size = options.file.stat().st_size if options.file.is_file() else 0
    trace = read_trace(
        options.file,
        options.block_tokens,
        given.text_bytes_per_token,
        lambda done: tell(f"reading {done >> 20} of {size >> 20} MiB"),
    )
    tell("counting")
    curve = hit_curve(trace.blocks, trace.starts, trace.tokens_of)
    order = depth_first(trace)
    best = curve_of_order(trace, order)
    if options.write_order is not None:
        write_in_order(options.file, options.write_order, trace, order)
    block_bytes = trace.block_tokens * given.bytes_per_token
    counts = _counts(trace, curve, given.bytes_per_token)
    sizes = options.sizes_bytes or sizes_for(curve, block_bytes)
    blocks = [size // block_bytes for size in sizes]
    runs = PolicyRuns(trace, curve)
    saved: dict[str, list[int]] = {}
    for policy in options.policies:
        saved[policy] = []
        for each in blocks:
            tell(f"trying {policy}: {len(saved[policy])} of {len(blocks)} sizes")
            saved[policy].append(runs.saved(policy, each))
    prompt_tokens = max(1, counts.prompt_tokens)
    return Report(
        str(options.file),
        trace.kind.name,
        counts,
        counts.saveable_ratio,
        counts.dedup_ratio,
        _prefixes(options, trace),
        [
            SizeHits(
                sizes[place],
                blocks[place],
                {policy: each[place] / prompt_tokens for policy, each in saved.items()},
                best.at(blocks[place]) / prompt_tokens,
            )
            for place in range(len(sizes))
        ],
        _best_order(curve, best, options, counts, block_bytes),
        _tiers(curve, options, counts, block_bytes),
        _assumed(options, trace, runs.one_in if len(saved) > 1 else 1),
        elapsed(),
    )


def _counts(trace: Trace, curve: HitCurve, bytes_per_token: int) -> Counts:
    prompt_tokens = sum(trace.prompt_tokens)
    return Counts(
        trace.requests,
        prompt_tokens,
        prompt_tokens - curve.most,
        curve.most,
        trace.block_tokens,
        len(trace.blocks),
        len(trace.tokens_of),
        sum(trace.tokens_of) * bytes_per_token,
        max(trace.prompt_tokens, default=0),
    )


def _prefixes(options: AnalyzeOptions, trace: Trace) -> list[Prefix]:
    previews = Previews(options.file, trace, options.assumptions.text_bytes_per_token)
    return [
        Prefix(
            each.start_tokens,
            each.tokens,
            each.requests,
            each.saves_tokens,
            each.level,
            previews.beginning_of(each.first_block),
        )
        for each in shared_prefixes(trace, options.prefixes)
    ]


def _best_order(
    curve: HitCurve, best: HitCurve, options: AnalyzeOptions, counts: Counts, block_bytes: int
) -> BestOrder:
    engine_blocks = int(options.assumptions.engine_gib * GIB) // block_bytes
    saved = best.at(engine_blocks) - curve.at(engine_blocks)
    prompt_tokens = max(1, counts.prompt_tokens)
    return BestOrder(
        best.enough * block_bytes,
        curve.enough * block_bytes,
        best.at(engine_blocks) / prompt_tokens,
        curve.at(engine_blocks) / prompt_tokens,
        saved,
        options.assumptions.compute_s(saved),
    )


def _tiers(curve: HitCurve, options: AnalyzeOptions, counts: Counts, block_bytes: int) -> list[Tier]:
    prompt_tokens = max(1, counts.prompt_tokens)
    return [
        Tier(
            each.name,
            each.size_bytes,
            each.filled_bytes,
            each.saved_tokens / prompt_tokens,
            each.saved_tokens,
            each.loaded_bytes,
            each.compute_s,
            each.load_s,
            each.worth_s,
        )
        for each in tiers_worth(curve, counts.distinct_bytes, block_bytes, options.assumptions)
    ]


def _assumed(options: AnalyzeOptions, trace: Trace, one_in: int) -> Assumed:
    given = options.assumptions
    return Assumed(
        given.bytes_per_token,
        given.kv_of,
        given.prefill_tokens_per_second,
        given.load_gib_per_second,
        given.object_gib_per_second,
        given.engine_gib,
        given.host_gib,
        given.text_bytes_per_token if trace.kind.unit == "text" else None,
        None if trace.timed else SPACING_S,
        one_in,
    )


class _Progress:
    """A line that says what is being done, where a person looks at the terminal."""

    def __init__(self) -> None:
        self._live = Live(sys.stderr)
        self._shown_at = time.monotonic()

    def tell(self, what: str) -> None:
        now = time.monotonic()
        if now - self._shown_at >= PROGRESS_S:
            self._shown_at = now
            self._live.show([what])

    def clear(self) -> None:
        self._live.clear()
