"""Whole engines of SGLang with kinds of models beside plain full attention: with GHOSTCACHER_KINDS=all alone.

(``make test-kinds``)
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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
FP8_TOLERANCE = 0.1


class Case(NamedTuple):
    """How both engines of a pair are started."""

    kind: Kind
    extra_args: tuple[str, ...] = ()
    tolerance: float = TOLERANCE
    """What rounding may do. In FP8 a number at the edge between two falls on either side in another batch."""


YARN = {"rope_type": "deepseek_yarn", "factor": 1.0, "original_max_position_embeddings": 32768, "mscale_all_dim": 1.0}
"""SGLang's CPU build has no other positions for MLA."""

CASES = {
    "mla": Case("mla", ("--json-model-override-args", json.dumps({"rope_scaling": YARN, "moe_layer_freq": 1}))),
    "window": Case("window"),
    "fp8": Case("qwen3", ("--kv-cache-dtype", "fp8_e4m3"), FP8_TOLERANCE),
}
CHOSEN = list(CASES) if os.environ.get("GHOSTCACHER_KINDS") == "all" else []


@pytest.fixture(scope="module", params=CHOSEN)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def fleet(case: Case, log_dir: Path) -> Iterator[Fleet]:
    small = engine(
        pool_tokens=POOL_TOKENS,
        context_tokens=512,
        page_tokens=PAGE,
        chunk_tokens=128,
        running_max=4,
        extra_args=case.extra_args,
    )
    model = ensure_model("tiny", kind=case.kind)
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


def test_pages_reused_all_the_time_give_no_wrong_answer(fleet: Fleet, case: Case) -> None:
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

    assert max(differences) <= case.tolerance
    assert sum(counters.hits() for counters in before.values()) > 0
