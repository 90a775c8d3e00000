"""KV spaces so small that slots are reused all the time, under an index that lags: stale pulls, no wrong answer.

vLLM's CPU build turns asynchronous scheduling off whatever is asked for, so both engines schedule synchronously here.
What asynchronous scheduling changes for us (steps planned before the last one ran) is tested on the real scheduler,
without a model, in tests/integration/connector/test_vllm_scheduler.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness import Completion, run_concurrently
from tests.conftest import SOAK
from tests.e2e.fleet import BLOCK_TOKENS, TOLERANCE, Fleet, assert_same, running

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3000 if SOAK else 600)]

BLOCKS = 40
"""Of 32 tokens each: four or five of the prompts below fill an engine."""

HOST_TIER_GIB = 0.006
"""Of the second engine: as many blocks as it has in its own cache, or less."""

INDEX_LAG_S = 0.4
"""Of the index behind the engines. Meanwhile a busy engine reuses every slot it has, several times."""

DOCUMENTS = 10
CUTS = (100, 225, 384, 450)
MAX_TOKENS = 10
REQUESTS = 6000 if SOAK else 360
CLIENTS = 5
PULLS_WANTED = REQUESTS / 10
ROUNDS = 4
"""At most, of REQUESTS each: how many of the pulls come in time depends on how fast this machine computes."""


@pytest.fixture(scope="module")
def fleet(model: Path, log_dir: Path) -> Iterator[Fleet]:
    small = {"num_blocks": BLOCKS, "max_model_len": 640}
    tiered = {**small, "connector": {"host_tier_gib": HOST_TIER_GIB}}
    with running(model, {"a": small, "b": tiered}, log_dir=log_dir, index_lag_s=INDEX_LAG_S) as fleet:
        fleet.prime("b", "a")
        fleet.prime("a", "b")
        yield fleet


@pytest.fixture(scope="module")
def answers(fleet: Fleet) -> list[tuple[list[int], Completion]]:
    """Prompts over shared documents, each with the answer that an engine computes alone."""
    documents = [fleet.document(max(CUTS)) for _ in range(DOCUMENTS)]
    prompts = [document[:cut] for document in documents for cut in CUTS]
    return [(prompt, fleet.recompute("a", prompt, max_tokens=MAX_TOKENS)) for prompt in prompts]


def test_one_wrong_block_would_be_seen(fleet: Fleet, answers: list[tuple[list[int], Completion]]) -> None:
    """A block of another document in a prompt moves the answer further than rounding may."""
    full = answers[len(CUTS) - 1 :: len(CUTS)]
    seen = 0
    for number, (prompt, expected) in enumerate(full):
        at = number % (min(CUTS) // BLOCK_TOKENS) * BLOCK_TOKENS
        other = full[number - 1][0][at : at + BLOCK_TOKENS]
        wrong = [*prompt[:at], *other, *prompt[at + BLOCK_TOKENS :]]
        seen += bool(_difference(fleet.recompute("b", wrong, max_tokens=MAX_TOKENS), expected))
    assert seen == len(full)


def test_evicted_prompt_comes_back_from_the_host_tier(fleet: Fleet) -> None:
    """As it was, without a peer that has it: an engine without a tier would compute it again, and rightly so."""
    prompts = [fleet.document(max(CUTS)) for _ in range(4)]
    expected = [fleet.recompute("a", prompt, max_tokens=MAX_TOKENS) for prompt in prompts]
    client, counters = fleet.client("b"), fleet.counters("b")
    for prompt in prompts:
        client.complete(prompt, max_tokens=MAX_TOKENS, pull=False)
    found = [client.complete(prompt, max_tokens=MAX_TOKENS) for prompt in prompts[:2]]
    for answer, right in zip(found, expected, strict=False):
        assert_same(answer, right, tolerance=TOLERANCE)
        assert answer.cached_tokens
    assert counters.grown("gc_rdma_transfers_total", transport="local", outcome="done") > 0
    assert counters.grown("gc_tier_copied_blocks_total", result="valid") > 0


def test_slots_reused_all_the_time_give_no_wrong_answer(
    fleet: Fleet, answers: list[tuple[list[int], Completion]]
) -> None:
    """Hundreds of requests from both sides over shared documents: blocks are pulled, many are stale, none is wrong."""
    before = {name: fleet.counters(name) for name in "ab"}
    rng = random.Random(20)
    hits = 0.0

    for _ in range(ROUNDS):
        work = [(rng.choice("ab"), rng.randrange(len(answers))) for _ in range(REQUESTS)]
        found = run_concurrently(lambda item: _fault(fleet, answers, *item), work, concurrency=2 * CLIENTS)
        wrong = [fault for fault in found if fault]
        assert not wrong, f"{len(wrong)} of {len(work)} answers are wrong, the first: {wrong[0]}"
        hits = sum(counters.hits() for counters in before.values())
        if hits > PULLS_WANTED:
            break

    stale = sum(counters.grown("gc_cache_misses_total", reason="stale_generation") for counters in before.values())
    withdrawn = sum(counters.grown("gc_withdrawn_entries_total") for counters in before.values())
    print(f"hits {hits:.0f}, stale {stale:.0f}, withdrawn {withdrawn:.0f} blocks")
    assert hits > PULLS_WANTED
    assert stale > 0
    assert withdrawn > 0


def test_preempted_requests_give_no_wrong_answer(fleet: Fleet, answers: list[tuple[list[int], Completion]]) -> None:
    """Long generations that push each other out of the cache, while prefixes are pulled, end as if alone."""
    prompts = [prompt for prompt, _ in answers[1 :: len(CUTS)]][:6]
    expected = [fleet.recompute("a", prompt, max_tokens=120) for prompt in prompts]
    before = {name: fleet.counters(name) for name in "ab"}

    def ask(item: tuple[str, int]) -> str:
        name, number = item
        answer = fleet.client(name).complete(prompts[number], max_tokens=120)
        return _difference(answer, expected[number])

    work = [(name, number) for number in range(len(prompts)) for name in "abab"]
    wrong = [fault for fault in run_concurrently(ask, work, concurrency=len(work)) if fault]

    assert not wrong, f"{len(wrong)} of {len(work)} answers are wrong, the first: {wrong[0]}"
    assert sum(counters.grown("vllm:num_preemptions_total") for counters in before.values()) > 0
    assert sum(counters.hits() for counters in before.values()) > 0


def test_nothing_is_left_in_use(fleet: Fleet) -> None:
    """After all that, every block is free on both engines."""
    for name in "ab":
        fleet.counters(name).grown("gc_cache_hits_total")
        assert fleet.client(name).metrics().sum("vllm:kv_cache_usage_perc") == 0.0
        fleet.client(name).reset_prefix_cache()


def _fault(fleet: Fleet, answers: list[tuple[list[int], Completion]], name: str, number: int) -> str:
    prompt, expected = answers[number]
    return _difference(fleet.client(name).complete(prompt, max_tokens=MAX_TOKENS), expected)


def _difference(answer: Completion, expected: Completion) -> str:
    """Return how an answer is wrong, or an empty text."""
    try:
        assert_same(answer, expected, tolerance=TOLERANCE)
    except AssertionError as exc:
        return str(exc) or "another length"
    return ""
