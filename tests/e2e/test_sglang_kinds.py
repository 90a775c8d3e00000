"""Whole engines of SGLang with kinds of models beside plain full attention: with GHOSTCACHER_KINDS=all alone.

(``make test-kinds``) Not MLA, nor KV in FP8: SGLang has them for CPUs with AMX alone.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.harness import compare, ensure_model, run_concurrently
from benchmarks.harness.lora_adapter import RANK, make_adapter
from benchmarks.harness.model_recipe import Kind
from tests.e2e.fleet import Fleet, running
from tests.e2e.sglang import TOLERANCE, assert_right, engine, engine_marks

pytestmark = engine_marks(900)

PAGE = 16
POOL_TOKENS = 1024
"""Two or three of the prompts below fill it."""
REQUESTS = 120
INDEX_LAG_S = 0.3


class Case(NamedTuple):
    """How both engines of a pair are started."""

    kind: Kind = "qwen3"
    adapter: bool = False
    """Whether requests are for a LoRA adapter, which each engine knows by another name from another path."""


CASES = {"window": Case("window"), "adapter": Case(adapter=True)}
CHOSEN = list(CASES) if os.environ.get("GHOSTCACHER_KINDS") == "all" else []
ADAPTERS = {"a": {"mine": 1, "other": 2}, "b": {"yours": 1, "other": 3}}
"""By engine, what it calls an adapter and the seed of its content: one content under two names, and one name of two."""
LORA = ("--enable-lora", "--lora-backend", "torch_native", "--max-lora-rank", str(RANK), "--lora-paths")


@pytest.fixture(scope="module", params=CHOSEN)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def fleet(case: Case, log_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    model, folder, engines = ensure_model("tiny", kind=case.kind), tmp_path_factory.mktemp("adapters"), {}
    for name, adapters in ADAPTERS.items():
        more: tuple[str, ...] = ()
        if case.adapter:
            paths = [f"{each}={make_adapter(folder / name / each, model, seed=n)}" for each, n in adapters.items()]
            more = (*LORA, *paths)
        engines[name] = engine(
            pool_tokens=POOL_TOKENS,
            context_tokens=512,
            page_tokens=PAGE,
            chunk_tokens=128,
            running_max=4,
            extra_args=more,
        )
    with running(model, engines, log_dir=log_dir, index_lag_s=INDEX_LAG_S) as fleet:
        if case.adapter:
            fleet.models = {name: f"m:{next(iter(adapters))}" for name, adapters in ADAPTERS.items()}
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


@pytest.mark.parametrize("case", [name for name in CHOSEN if CASES[name].adapter], indirect=True)
def test_adapter_is_its_content_and_nothing_else(fleet: Fleet, case: Case) -> None:
    """One content under two names is shared; one name with two contents is not, and neither is the model alone."""
    prompt = fleet.document(10 * PAGE + 1)
    computed = fleet.compute("a", prompt)
    for name, hits in {"yours": 10, "other": 0, "": 0}.items():
        fleet.models["b"] = f"m:{name}"
        try:
            counters = fleet.counters("b")
            answer = fleet.client("b").complete(prompt, max_tokens=8)
            assert counters.hits() == hits, name
            assert_right(fleet, "b", answer, prompt)
        finally:
            fleet.models["b"] = "m:yours"
        assert (compare(answer, computed).logprob_max <= TOLERANCE) is (hits > 0), name
