"""Whole engines with kinds of models beside plain full attention.

One pair by default, which has several kinds at once: layers with windows among layers that see all, a KV cache in FP8
with the checkpoint's scales, and drafts. With GHOSTCACHER_KINDS=all (``make test-kinds``) each alone, and MLA, too.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.harness import compare, ensure_model, run_concurrently
from benchmarks.harness.model_recipe import Kind
from tests.conftest import SOAK
from tests.e2e.fleet import BLOCK_TOKENS, TOLERANCE, Fleet, assert_same, running

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

NO_HYBRID = ("--disable-hybrid-kv-cache-manager",)
FP8 = ("--kv-cache-dtype", "fp8")
NGRAM = (
    "--speculative-config",
    json.dumps({"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 3, "prompt_lookup_min": 1}),
)
ROOT = Path(__file__).parents[2]
FP8_TOLERANCE = 0.1
BLOCKS = 60
INDEX_LAG_S = 0.4
REQUESTS = 4000 if SOAK else 120


class Case(NamedTuple):
    """How both engines of a pair are started."""

    kind: Kind
    extra_args: tuple[str, ...]
    block_tokens: int = BLOCK_TOKENS
    env: Mapping[str, str] = {}
    blocks: int = BLOCKS
    """Of the KV cache, counted as those of a cache with one group."""
    window_blocks: int = 0
    """Blocks of a window in a KV cache group of its own."""

    @property
    def tolerance(self) -> float:
        """What rounding may do. In FP8 a number at the edge between two falls on either side in another batch."""
        return FP8_TOLERANCE if FP8[0] in self.extra_args else TOLERANCE

    @property
    def drafts(self) -> bool:
        return NGRAM[0] in self.extra_args


CASES = {
    "window-fp8-ngram": Case("window-fp8", (*NO_HYBRID, *FP8, *NGRAM)),
    "window": Case("window", NO_HYBRID),
    "hybrid": Case("window", (), blocks=80, window_blocks=3),
    "fp8": Case("qwen3", FP8),
    "ngram": Case("qwen3", NGRAM),
    "mla": Case("mla", (), 16, {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests/support/mla_cpu"), str(ROOT)])}),
}
"""MLA on a CPU without AMX: in blocks of 16 tokens, and with prompts of whole blocks and one token more alone."""
CHOSEN = list(CASES) if os.environ.get("GHOSTCACHER_KINDS") == "all" else list(CASES)[:1]


@pytest.fixture(scope="module", params=CHOSEN)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def fleet(case: Case, log_dir: Path) -> Iterator[Fleet]:
    options = {
        "extra_args": case.extra_args,
        "env": case.env,
        "block_size": case.block_tokens,
        "num_blocks": case.blocks,
        "max_model_len": 28 * case.block_tokens,
    }
    model = ensure_model("tiny", kind=case.kind)
    with running(model, {"a": options, "b": options}, log_dir=log_dir, index_lag_s=INDEX_LAG_S) as fleet:
        fleet.window_blocks = case.window_blocks
        yield fleet


def prompt_of(fleet: Fleet, case: Case, blocks: int) -> list[int]:
    """Return a prompt of whole blocks and one token more: all blocks of it can be pulled."""
    return fleet.document(blocks * case.block_tokens + 1)


@pytest.mark.parametrize("blocks", [1, 2, 7, 20])
def test_pulled_prefix_gives_the_answer_of_the_engine_s_own_cache(fleet: Fleet, case: Case, blocks: int) -> None:
    """To the last bit of each log-probability, inside of a window and far beyond it; another block would be seen."""
    prompt = prompt_of(fleet, case, blocks)
    computed = fleet.compute("a", prompt)
    counters = fleet.counters("b")

    pulled = fleet.client("b").complete(prompt, max_tokens=8)

    assert (counters.hits(), counters.misses()) == (blocks, 0)
    assert_same(pulled, fleet.client("b").complete(prompt, max_tokens=8, pull=False))
    fleet.assert_right("b", pulled, prompt)
    assert_same(fleet.client("a").complete(prompt, max_tokens=8, pull=False), pulled, tolerance=TOLERANCE)
    at = blocks // 2 * case.block_tokens
    wrong = [*prompt[:at], *fleet.document(case.block_tokens), *prompt[at + case.block_tokens :]]
    assert compare(fleet.recompute("b", wrong), computed).logprob_max > 2 * case.tolerance


def test_generated_tokens_are_shared_too(fleet: Fleet, case: Case) -> None:
    """Drafts that were right are pulled like other tokens, and what they leave of the wrong ones is not."""
    if case.window_blocks:
        pytest.skip("vLLM keeps the windows at the ends of prompts, and not those of answers")
    prompt = prompt_of(fleet, case, 2)
    before, drafted = fleet.settled_entries("b"), fleet.counters("b")
    first = fleet.client("b").complete(prompt, max_tokens=4 * case.block_tokens, ignore_eos=True)
    whole = (len(prompt) + len(first.tokens) - 1) // case.block_tokens
    fleet.wait_published("b", before, whole - case.drafts)
    turn = [*prompt, *first.tokens][: whole * case.block_tokens + 1]
    counters = fleet.counters("a")

    pulled = fleet.client("a").complete(turn, max_tokens=8)

    if case.drafts:
        assert drafted.grown("vllm:spec_decode_num_accepted_tokens_total") > 0
        assert drafted.grown("vllm:spec_decode_num_draft_tokens_total") > drafted.grown(
            "vllm:spec_decode_num_accepted_tokens_total"
        )
    assert counters.hits() >= whole - case.drafts
    assert_same(pulled, fleet.client("a").complete(turn, max_tokens=8, pull=False))
    fleet.assert_right("a", pulled, turn)


def test_slots_reused_all_the_time_give_no_wrong_answer(fleet: Fleet, case: Case) -> None:
    """Requests from both sides over more documents than fit: blocks are pulled, and none of them is wrong."""
    if case.kind == "mla":
        pytest.skip("vLLM's backend for CPUs without AMX cannot compute several tokens behind a cached prefix")
    documents = [prompt_of(fleet, case, 12) for _ in range(8)]
    prompts = [document[: blocks * case.block_tokens + 1] for document in documents for blocks in (4, 9, 12)]
    expected = [fleet.recompute("a", prompt) for prompt in prompts]
    before = {name: fleet.counters(name) for name in "ab"}
    rng = random.Random(20)
    work = [(rng.choice("ab"), rng.randrange(len(prompts))) for _ in range(REQUESTS)]

    def ask(item: tuple[str, int]) -> float:
        name, number = item
        return compare(fleet.client(name).complete(prompts[number], max_tokens=8), expected[number]).logprob_max

    off = max(run_concurrently(ask, work, concurrency=6))

    hits = sum(counters.hits() for counters in before.values())
    stale = sum(counters.grown("gc_cache_misses_total", reason="stale_generation") for counters in before.values())
    print(f"hits {hits:.0f}, stale {stale:.0f} blocks, answers off by at most {off:g}")
    assert off <= case.tolerance
    assert hits > REQUESTS / 4
