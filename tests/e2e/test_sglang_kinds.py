"""Whole engines of SGLang with kinds of models beside plain full attention: with GHOSTCACHER_KINDS=all alone.

(``make test-kinds``) Not MLA, nor KV in FP8: SGLang has them for CPUs with AMX alone.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness import compare, ensure_model, run_concurrently
from benchmarks.harness.model_recipe import Kind
from tests.e2e.fleet import Fleet, running
from tests.e2e.sglang import TOLERANCE, engine, engine_marks

pytestmark = engine_marks(900)

PAGE = 16
POOL_TOKENS = 1024
"""Two or three of the prompts below fill it."""
REQUESTS = 120
INDEX_LAG_S = 0.3


KINDS: tuple[Kind, ...] = ("window",)
CHOSEN = KINDS if os.environ.get("GHOSTCACHER_KINDS") == "all" else ()


@pytest.fixture(scope="module", params=CHOSEN)
def fleet(request: pytest.FixtureRequest, log_dir: Path) -> Iterator[Fleet]:
    small = engine(
        pool_tokens=POOL_TOKENS,
        context_tokens=512,
        page_tokens=PAGE,
        chunk_tokens=128,
        running_max=4,
    )
    model = ensure_model("tiny", kind=request.param)
    with running(model, {"a": small, "b": small}, log_dir=log_dir, index_lag_s=INDEX_LAG_S) as fleet:
        fleet.prime("b", "a")
        fleet.prime("a", "b")
        yield fleet


def test_pulled_answer_is_that_on_top_of_the_engines_own_cache(fleet: Fleet) -> None:
    """To the last bit: both begin with the same bytes, and compute the same."""
    prompt = fleet.document(18 * PAGE + 1)
    fleet.compute("a", prompt)
    counters = fleet.counters("b")
    pulled = fleet.client("b").complete(prompt, max_tokens=8)
    assert counters.hits() == 18
    local = fleet.client("b").complete(prompt, max_tokens=8)
    assert local.cached_tokens == pulled.cached_tokens == 18 * PAGE
    assert compare(pulled, local).logprob_max == 0.0


def test_pages_reused_all_the_time_give_no_wrong_answer(fleet: Fleet) -> None:
    """Requests from both sides over more documents than fit: pages are pulled, and none of them is wrong."""
    documents = [fleet.document(330) for _ in range(8)]
    prompts = [document[:cut] for document in documents for cut in (100, 225, 330)]
    expected = [fleet.recompute("a", prompt, max_tokens=8) for prompt in prompts]
    before = {name: fleet.counters(name) for name in "ab"}
    rng = random.Random(20)
    work = [(rng.choice("ab"), rng.randrange(len(prompts))) for _ in range(REQUESTS)]

    def ask(item: tuple[str, int]) -> float:
        name, number = item
        return compare(fleet.client(name).complete(prompts[number], max_tokens=8), expected[number]).logprob_max

    differences = run_concurrently(ask, work, concurrency=4)

    assert max(differences) <= TOLERANCE
    assert sum(counters.hits() for counters in before.values()) > 0
