"""Stages about time: to the first token, between tokens while others pull, of many pulls at once, and by layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu_check.engines import Pair
from benchmarks.gpu_check.results import Check, numbers_of
from benchmarks.harness.client import Client, Completion, compare, run_concurrently
from benchmarks.harness.comparison import ROUNDING_MAX
from benchmarks.harness.report import milliseconds, now, percentile
from benchmarks.harness.scenario import NotShared, compute_and_publish, nudge, pull_numbers, share

Found = tuple[list[Check], dict[str, Any]]

PULLED_OF_COLD_MAX = 0.05
"""Goal at the longest prompt: time to first token, pulled over computed."""

DECODE_P99_MAX = 1.10
"""Goal: time between tokens while others are pulled, over the time without."""

ANSWER_TOKENS = 4
STREAM_TOKENS = 64
"""Prompt of each request that decodes."""

DECODE_DOCUMENTS = 8
"""Documents that are pulled one after another while others decode."""


def ttft(pair: Pair) -> Found:
    """Cold, pulled and found in the own cache, the same document on the same engine; medians."""
    checks, numbers = [], {}
    for length in pair.sizes.ttft_lengths:
        found = []
        for number in range(pair.sizes.ttft_repeat + 1):  # the first one is thrown away
            pair.progress(f"ttft: {length} tokens, document {number} of {pair.sizes.ttft_repeat}")
            prompt = pair.documents.tokens(length, seed=10_000 + 10 * length + number)
            found.append(share(pair.a, pair.b, prompt, max_tokens=ANSWER_TOKENS))
        measured = found[1:]
        cold, pulled, local = (
            median(getattr(one, name).ttft_s for one in measured) for name in ("alone_cold", "pulled", "local")
        )
        pull_s, pull_bytes = median(one.pull.seconds for one in measured), median(one.pull.bytes for one in measured)
        part = pulled / cold
        text = f"{part:.1%}: cold {milliseconds(cold)}, pulled {milliseconds(pulled)}, local {milliseconds(local)}"
        longest = length == max(pair.sizes.ttft_lengths)
        limit = PULLED_OF_COLD_MAX if longest else 1.0
        checks.append(Check(f"TTFT {length} tokens, pulled / cold", text, f"<= {limit:.0%}", part <= limit, "goal"))
        numbers[str(length)] = {
            "cold_s": cold,
            "pulled_s": pulled,
            "local_s": local,
            "pull_s": pull_s,
            "pull_bytes": pull_bytes,
        }
    return checks, numbers


def decode(pair: Pair) -> Found:
    """Time between tokens of B: undisturbed, while it takes prompts from its own cache, and while it pulls them."""
    length = pair.sizes.pull_length
    prompts = [pair.documents.tokens(length, seed=20_000 + number) for number in range(DECODE_DOCUMENTS)]
    for number, prompt in enumerate(prompts):
        pair.progress(f"decode: A computes document {number + 1} of {len(prompts)}")
        compute_and_publish(pair.a, prompt, max_tokens=1)
    client = pair.b.client
    gaps = {"quiet": decoding(pair)}
    before = client.metrics()
    gaps["pulls"] = decoding(pair, lambda: _ask_all(client, prompts))
    nudge(client)
    pull = pull_numbers(before, client.metrics())
    gaps["own cache"] = decoding(pair, lambda: _ask_all(client, prompts))
    p99 = {name: percentile(values, 99) for name, values in gaps.items()}
    ratio = p99["pulls"] / p99["quiet"]
    text = ", ".join(f"{name} {milliseconds(value)}" for name, value in p99.items())
    checks = [
        Check("tokens pulled meanwhile", f"{pull.tokens}", "> 0", pull.tokens > 0, "right"),
        Check(
            "p99 between tokens, pulls / quiet",
            f"{ratio:.2f}: {text}",
            f"<= {DECODE_P99_MAX}",
            ratio <= DECODE_P99_MAX,
            "goal",
        ),
    ]
    return checks, {"p99_s": p99, "p50_s": {name: percentile(values, 50) for name, values in gaps.items()}}


def concurrent(pair: Pair) -> Found:
    """Many documents pulled at the same time: all come, all answers are right, and how long it takes."""
    count, length = pair.sizes.pulls_at_once, pair.sizes.pull_length
    prompts = [pair.documents.tokens(length, seed=30_000 + number) for number in range(count)]
    expected = []
    for number, prompt in enumerate(prompts):
        pair.progress(f"concurrent: A computes document {number + 1} of {count}")
        expected.append(compute_and_publish(pair.a, prompt, max_tokens=ANSWER_TOKENS))
    client = pair.b.client
    client.reset_prefix_cache()
    before = client.metrics()

    def ask(prompt: list[int]) -> Completion:
        return client.complete(prompt, max_tokens=ANSWER_TOKENS)

    found = run_concurrently(ask, prompts, concurrency=count)
    nudge(client)
    pull = pull_numbers(before, client.metrics())
    off = max(compare(one, other).logprob_max for one, other in zip(expected, found, strict=True))
    slowest = max(one.ttft_s for one in found)
    checks = [
        Check("blocks missed", f"{pull.misses or 'none'}", "none", not pull.misses, "right"),
        Check("answers against those of A", f"off by {off:.4f}", f"<= {ROUNDING_MAX}", off <= ROUNDING_MAX, "right"),
    ]
    numbers = {"slowest_ttft_s": slowest, "pull_s": pull.seconds, "bytes": pull.bytes, "misses": pull.misses}
    return checks, numbers


def decode_layout(pair: Pair, folder: Path) -> Found:
    """The time between tokens in vLLM's own layout, and what block-major costs against it."""
    own = decoding(pair)
    quiet = {"p50": percentile(own, 50), "p99": percentile(own, 99)}
    earlier = numbers_of(folder, "decode", pair.device)
    ratio = {name: earlier[f"{name}_s"]["quiet"] / value for name, value in quiet.items()}
    text = f"p50 {ratio['p50']:.3f}, p99 {ratio['p99']:.3f} (p50 {milliseconds(quiet['p50'])} in vLLM's own)"
    checks = [Check("between tokens, block-major / vLLM's own layout", text, "<= 1.02", ratio["p50"] <= 1.02, "goal")]
    return checks, {"own_s": quiet, "block_major_over_own": ratio}


def decoding(pair: Pair, meanwhile: Callable[[], None] | None = None) -> list[float]:
    """Let B decode on several streams; return the times between tokens, in seconds.

    meanwhile: done on another thread; then only the times that ended while it lasted are returned.
    """
    pair.progress("decoding")

    def stream(number: int) -> list[tuple[float, float]]:
        prompt, started = pair.documents.tokens(STREAM_TOKENS, seed=40_000 + number), now()
        answer = pair.b.client.complete(prompt, max_tokens=pair.sizes.decode_tokens, ignore_eos=True, pull=False)
        ends = accumulate(answer.gaps_s, initial=started + answer.ttft_s)
        next(ends)  # that of the first token
        return list(zip(ends, answer.gaps_s, strict=True))

    def timed() -> tuple[float, float]:
        started = now()
        if meanwhile is not None:
            meanwhile()
        return (started, now()) if meanwhile is not None else (-math.inf, math.inf)

    with ThreadPoolExecutor(max_workers=1) as other:
        window = other.submit(timed)
        streams = run_concurrently(stream, range(pair.sizes.decode_streams), concurrency=pair.sizes.decode_streams)
        begun, ended = window.result()
    gaps = [gap for stream_gaps in streams for end, gap in stream_gaps if begun <= end <= ended]
    if not gaps:
        raise NotShared(f"decoding: expected tokens while something else was done ({ended - begun:.2f} s), found none")
    return gaps


def _ask_all(client: Client, prompts: list[list[int]]) -> None:
    for prompt in prompts:
        client.complete(prompt, max_tokens=1)
