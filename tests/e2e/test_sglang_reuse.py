"""Pools so small that pages are reused all the time, under an index that lags: stale pulls, no wrong answer.

Pages of one token (another allocator of SGLang than that of larger pages) under the overlap schedule, and pages of 16.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness import run_concurrently
from tests.conftest import SOAK
from tests.e2e.fleet import Fleet, running
from tests.e2e.sglang import difference, engine, engine_marks

pytestmark = engine_marks(3000 if SOAK else 600)

POOL_TOKENS = 1024
"""Two or three of the prompts below fill it: the others' pages are evicted, and requests are retracted."""

INDEX_LAG_S = 0.3
"""Of the index behind the engines. Meanwhile a busy engine reuses every page that it has, several times."""

DOCUMENTS = 10
CUTS = (100, 225, 330)
MAX_TOKENS = 8
REQUESTS = 6000 if SOAK else 400
CLIENTS = 6


@pytest.fixture(scope="module", params=[1, 16], ids=["page-1-overlap", "page-16"])
def fleet(request: pytest.FixtureRequest, model: Path, log_dir: Path) -> Iterator[Fleet]:
    page = request.param
    small = engine(
        pool_tokens=POOL_TOKENS,
        context_tokens=512,
        page_tokens=page,
        chunk_tokens=128,
        running_max=6,
        overlap=page == 1,
    )
    with running(model, {"a": small, "b": small}, log_dir=log_dir, index_lag_s=INDEX_LAG_S) as fleet:
        fleet.prime("b", "a")
        fleet.prime("a", "b")
        yield fleet


def test_pages_reused_all_the_time_give_no_wrong_answer(fleet: Fleet) -> None:
    """Hundreds of requests to both sides over shared documents: pages are pulled, many are stale, none is wrong."""
    documents = [fleet.document(max(CUTS)) for _ in range(DOCUMENTS)]
    prompts = [document[:cut] for document in documents for cut in CUTS]
    answers = [fleet.recompute("a", prompt, max_tokens=MAX_TOKENS) for prompt in prompts]
    before = {name: fleet.counters(name) for name in "ab"}
    rng = random.Random(20)
    work = [(rng.choice("ab"), rng.randrange(len(prompts))) for _ in range(REQUESTS)]

    def fault(item: tuple[str, int]) -> str:
        name, number = item
        answer = fleet.client(name).complete(prompts[number], max_tokens=MAX_TOKENS)
        return difference(answer, answers[number])

    wrong = [found for found in run_concurrently(fault, work, concurrency=CLIENTS) if found]

    assert not wrong, f"{len(wrong)} of {len(work)} answers are wrong, the first: {wrong[0]}"
    grown = [counters.reasons() for counters in before.values()]
    assert sum(counters.hits() for counters in before.values()) > 0, grown
    assert sum(reasons.get("stale_generation", 0) for reasons in grown) > 0, grown
