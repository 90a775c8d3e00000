"""Stages about answers: pulled and computed ones are the same, under torture and when the owner dies, too."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from benchmarks.gpu_check.engines import Pair
from benchmarks.gpu_check.results import Check
from benchmarks.harness.client import Completion, compare, run_concurrently
from benchmarks.harness.comparison import ROUNDING_MAX
from benchmarks.harness.scenario import block_tokens, compute_and_publish, nudge, pull_numbers, share

Found = tuple[list[Check], dict[str, Any]]

ANSWER_TOKENS = 16
CONCURRENCY = 8


def answers(pair: Pair) -> Found:
    """Pulled against what the same engine finds in its own cache, which must be equal, and against computing it all."""
    checks, numbers = [], {}
    block = block_tokens(pair.b.client.metrics())
    for number, length in enumerate(pair.sizes.answer_lengths):
        pair.progress(f"answers: {length} tokens")
        prompt = pair.documents.tokens(length, seed=100 + number)
        window_blocks = pair.kind.window_blocks(pair.device)
        found = share(pair.a, pair.b, prompt, max_tokens=ANSWER_TOKENS, window_blocks=window_blocks)
        wanted = max(0, (length - 1) // block * block - pair.kind.held_back(pair.device))
        same = found.against_local
        off, rounding = found.against_cold.logprob_max, found.rounding.logprob_max
        checks += [
            Check(
                f"{length} tokens: pulled", f"{found.pull.tokens}", f"{wanted}", found.pull.tokens == wanted, "right"
            ),
            Check(
                f"{length} tokens: pulled against own cache",
                f"tokens {'equal' if same.same_tokens else 'differ'}, log-probabilities off by {same.logprob_max:g}",
                "equal, 0",
                same.identical,
                "right",
            ),
            Check(
                f"{length} tokens: pulled against computed",
                f"{off:.4f}",
                f"<= {max(rounding, ROUNDING_MAX):.4f}",
                off <= max(rounding, ROUNDING_MAX),
                "right",
            ),
        ]
        numbers[str(length)] = {"pulled": found.pull.tokens, "local_off": same.logprob_max, "cold_off": off}
    return checks, numbers


def torture(pair: Pair) -> Found:
    """Many requests over documents that together are several times either cache: every answer is checked."""
    sizes, rng = pair.sizes, random.Random(5)
    documents = [pair.documents.tokens(sizes.torture_length, seed=500 + n) for n in range(sizes.torture_documents)]
    expected: dict[tuple[int, int], Completion] = {}
    cuts = [sizes.torture_length, sizes.torture_length // 2 + 7]
    for number, document in enumerate(documents):
        for cut in cuts:
            pair.progress(f"torture: expected answer {len(expected) + 1} of {len(documents) * len(cuts)}")
            pair.b.client.reset_prefix_cache()
            expected[number, cut] = pair.b.client.complete(document[:cut], max_tokens=ANSWER_TOKENS, pull=False)
    before = [engine.client.metrics() for engine in (pair.a, pair.b)]
    asked = [
        (engine, rng.randrange(len(documents)), rng.choice(cuts))
        for _ in range(sizes.torture_requests)
        for engine in (pair.a, pair.b)
    ]

    def ask(item: tuple[Any, int, int]) -> float:
        engine, number, cut = item
        answer = engine.client.complete(documents[number][:cut], max_tokens=ANSWER_TOKENS)
        return compare(expected[number, cut], answer).logprob_max

    pair.progress(f"torture: {len(asked)} requests")
    off = run_concurrently(ask, asked, concurrency=CONCURRENCY)
    for engine in (pair.a, pair.b):
        nudge(engine.client)
    after = [engine.client.metrics() for engine in (pair.a, pair.b)]
    pulls = [pull_numbers(*pages) for pages in zip(before, after, strict=True)]
    stale = sum(pull.misses.get("stale_generation", 0) for pull in pulls)
    tokens = sum(pull.tokens for pull in pulls)
    checks = [
        Check(
            "answers off by more than rounding",
            f"{sum(one > ROUNDING_MAX for one in off)} of {len(off)}",
            "0",
            max(off) <= ROUNDING_MAX,
            "right",
        ),
        Check("tokens pulled meanwhile", f"{tokens}", "> 0", tokens > 0, "right"),
    ]
    return checks, {"off": off, "pulled_tokens": tokens, "stale_blocks": stale}


def owner_killed(pair: Pair) -> Found:
    """Kill the owner (SIGKILL) in the midst of a pull: the reader's answer is right, and so is the next one.

    When is taken from the pull of another document as long: half of its time to first token.
    """
    other, prompt = (pair.documents.tokens(max(pair.sizes.ttft_lengths), seed=900 + number) for number in range(2))
    for document in (other, prompt):
        compute_and_publish(pair.a, document, max_tokens=1)
    kill_after_s = pair.b.client.complete(other, max_tokens=1).ttft_s / 2
    expected = pair.b.client.complete(prompt, max_tokens=ANSWER_TOKENS, pull=False)
    pair.b.client.reset_prefix_cache()
    nudge(pair.b.client)
    before = pair.b.client.metrics()
    killer = threading.Timer(kill_after_s, pair.a.kill)
    killer.start()
    started = time.monotonic()
    during = pair.b.client.complete(prompt, max_tokens=ANSWER_TOKENS)
    during_s = time.monotonic() - started
    killer.join()
    pair.b.client.reset_prefix_cache()
    after = pair.b.client.complete(prompt, max_tokens=ANSWER_TOKENS)
    off = [compare(expected, answer).logprob_max for answer in (during, after)]
    nudge(pair.b.client)
    pull = pull_numbers(before, pair.b.client.metrics())
    alive = pair.b.process.poll() is None
    checks = [
        Check(
            "answer while the owner dies", f"off by {off[0]:.4f}", f"<= {ROUNDING_MAX}", off[0] <= ROUNDING_MAX, "right"
        ),
        Check("answer after that", f"off by {off[1]:.4f}", f"<= {ROUNDING_MAX}", off[1] <= ROUNDING_MAX, "right"),
        Check("the reader lives", str(alive), "True", alive, "right"),
    ]
    numbers = {
        "off": off,
        "kill_after_s": kill_after_s,
        "during_s": during_s,
        "pulled_tokens": pull.tokens,
        "misses": pull.misses,
    }
    return checks, numbers
