"""Whole engines with kinds of models beside plain full attention.

One pair by default, which has several kinds at once: layers with windows among layers that see all, a KV cache in FP8
with the checkpoint's scales, and drafts. With GHOSTCACHER_KINDS=all (``make test-kinds``) each alone, MLA and requests
with a LoRA adapter, too. See test_kind_*.py for others.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.harness import compare, core_shares, ensure_model, run_concurrently
from benchmarks.harness.drafter import ensure_drafter
from benchmarks.harness.lora_adapter import RANK, make_adapter
from benchmarks.harness.model_recipe import Kind
from tests.conftest import SOAK
from tests.e2e.fleet import BLOCK_TOKENS, TOLERANCE, Fleet, assert_different, assert_same, nudge, running

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

NO_HYBRID = ("--disable-hybrid-kv-cache-manager",)
FP8 = ("--kv-cache-dtype", "fp8")
NGRAM = (
    "--speculative-config",
    json.dumps({"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 3, "prompt_lookup_min": 1}),
)
STAGES = ("--pipeline-parallel-size", "2", "--worker-cls", "tests.support.staged_worker.StagedWorker")
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
    ranks: int = 1
    b_args: tuple[str, ...] | None = None
    """Of the second engine in place of `extra_args`, where it has one rank and the first has several."""
    drafter: str = ""
    """vLLM's name for the kind of drafter with KV of its own, if there is one."""
    adapter: bool = False
    """Whether requests are for a LoRA adapter, which each engine knows by another name from another path."""

    @property
    def tolerance(self) -> float:
        """What rounding may do. In FP8 a number at the edge between two falls on either side in another batch."""
        return FP8_TOLERANCE if FP8[0] in self.extra_args else TOLERANCE

    @property
    def drafts(self) -> bool:
        return bool(self.drafter) or NGRAM[0] in self.extra_args

    @property
    def held_back(self) -> int:
        """How many blocks at the end of what is found are computed all the same."""
        return int(self.drafter in ("eagle", "mtp"))

    def args_for(self, model: Path) -> tuple[str, ...]:
        """Return what both engines are started with for a model."""
        if not self.drafter:
            return self.extra_args
        options = {"method": self.drafter, "num_speculative_tokens": 3}
        if self.drafter != "mtp":  # which is a part of the model
            drafter = ensure_drafter(model) if self.drafter == "eagle" else model  # whose drafts are all right
            options["model"] = str(drafter)
        return (*self.extra_args, "--no-async-scheduling", "--speculative-config", json.dumps(options))


CASES = {
    "window-fp8-ngram": Case("window-fp8", (*NO_HYBRID, *FP8, *NGRAM)),
    "window": Case("window", NO_HYBRID),
    "hybrid": Case("window", (), blocks=80, window_blocks=3),
    "fp8": Case("qwen3", FP8),
    "ngram": Case("qwen3", NGRAM),
    "stages": Case("qwen3", STAGES, env={"PYTHONPATH": str(ROOT)}, ranks=2),
    "sizes": Case("qwen3", ("--tensor-parallel-size", "2"), ranks=2, b_args=()),
    "eagle": Case("qwen3", (), drafter="eagle"),
    "draft-model": Case("qwen3", (), drafter="draft_model"),
    "mtp": Case("mtp", (), drafter="mtp"),
    "mla": Case("mla", (), 16, {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests/support/mla_cpu"), str(ROOT)])}),
    "adapter": Case("qwen3", ("--enable-lora", "--max-loras", "2", "--max-lora-rank", str(RANK)), adapter=True),
}
"""MLA on a CPU without AMX: in blocks of 16 tokens, and with prompts of whole blocks and one token more alone."""
CHOSEN = list(CASES) if os.environ.get("GHOSTCACHER_KINDS") == "all" else list(CASES)[:1]


@pytest.fixture(scope="module", params=CHOSEN)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


ADAPTERS = {"a": {"mine": 1, "other": 2}, "b": {"yours": 1, "other": 3}}
"""By engine, what it calls an adapter and the seed of its content: one content under two names, and one name of two."""


@pytest.fixture(scope="module")
def fleet(case: Case, log_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    options = {
        "env": case.env,
        "block_size": case.block_tokens,
        "num_blocks": case.blocks,
        "max_model_len": 28 * case.block_tokens,
    }
    model, folder = ensure_model("tiny", kind=case.kind), tmp_path_factory.mktemp("adapters")
    engines = {}
    for name, adapters in ADAPTERS.items():
        more: tuple[str, ...] = ()
        if case.adapter:
            paths = [f"{each}={make_adapter(folder / name / each, model, seed=n)}" for each, n in adapters.items()]
            more = ("--lora-modules", *paths)
        alone = case.ranks == 1 or (name == "b" and case.b_args is not None)
        args = case.args_for(model) if name == "a" or case.b_args is None else case.b_args
        cores = None if alone else "|".join(core_shares(case.ranks))
        engines[name] = {**options, "extra_args": (*args, *more), "cores": cores}
    with running(model, engines, log_dir=log_dir, index_lag_s=INDEX_LAG_S) as fleet:
        fleet.window_blocks = case.window_blocks
        if case.adapter:
            fleet.models = {name: next(iter(adapters)) for name, adapters in ADAPTERS.items()}
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

    assert (counters.hits(), counters.misses()) == (blocks - case.held_back, 0)
    assert_same(pulled, fleet.client("b").complete(prompt, max_tokens=8, pull=False))
    fleet.assert_right("b", pulled, prompt)
    assert_same(fleet.client("a").complete(prompt, max_tokens=8, pull=False), pulled, tolerance=TOLERANCE)
    at = blocks // 2 * case.block_tokens
    others = [[*prompt[:at], *fleet.document(case.block_tokens), *prompt[at + case.block_tokens :]] for _ in range(3)]
    wrong = [compare(fleet.recompute("b", other), computed) for other in others]
    assert max(found.logprob_max for found in wrong) > 2 * case.tolerance, "two tokens may be as likely, three not"


def test_generated_tokens_are_shared_too(fleet: Fleet, case: Case) -> None:
    """Drafts that were right are pulled like other tokens, and what they leave of the wrong ones is not.

    With windows in a group of their own the prompt alone is pulled: vLLM keeps no window of an answer at first.
    """
    prompt = prompt_of(fleet, case, 2)
    before, drafted = fleet.settled_entries("b"), fleet.counters("b")
    first = fleet.client("b").complete(prompt, max_tokens=4 * case.block_tokens, ignore_eos=True)
    whole = (len(prompt) + len(first.tokens) - 1) // case.block_tokens
    fleet.wait_published("b", before, whole - case.drafts, prompt_blocks=2)
    turn = [*prompt, *first.tokens][: whole * case.block_tokens + 1]
    counters = fleet.counters("a")

    pulled = fleet.client("a").complete(turn, max_tokens=8)

    if case.drafts:
        assert drafted.grown("vllm:spec_decode_num_accepted_tokens_total") > 0
    if case.drafts and case.drafter != "draft_model":  # which is the model itself
        assert drafted.grown("vllm:spec_decode_num_draft_tokens_total") > drafted.grown(
            "vllm:spec_decode_num_accepted_tokens_total"
        )
    assert counters.hits() >= (2 if case.window_blocks else whole - case.drafts - case.held_back)
    assert_same(pulled, fleet.client("a").complete(turn, max_tokens=8, pull=False))
    if case.kind == "mla":
        # What vLLM decodes on CPUs without AMX is not what it computes of the same tokens as a prompt.
        assert_same(pulled, fleet.client("b").complete(turn, max_tokens=8, pull=False))
    else:
        # Answers were computed a few tokens at a time, and as a prompt all at once.
        fleet.assert_right("a", pulled, turn, tolerance=case.tolerance)


def test_answer_that_a_grammar_constrains_is_the_same_after_a_pull(fleet: Fleet, case: Case) -> None:
    """To the last bit of each log-probability; and it is another one than without the grammar."""
    prompt, wanted = prompt_of(fleet, case, 4), {"structured_outputs": {"regex": "[0-9]+(, [0-9]+)+"}}
    free = fleet.compute("a", prompt)
    counters = fleet.counters("b")

    pulled = fleet.client("b").complete(prompt, max_tokens=8, **wanted)

    assert (counters.hits(), counters.misses()) == (4 - case.held_back, 0)
    assert_same(pulled, fleet.client("b").complete(prompt, max_tokens=8, pull=False, **wanted))
    assert pulled.tokens != free.tokens


def test_as_many_drafts_are_right_after_a_pull(fleet: Fleet, case: Case) -> None:
    """As on top of the engine's own cache: the drafter's KV has come along."""
    if not case.drafter:
        pytest.skip("no drafter with KV of its own")
    prompts = [prompt_of(fleet, case, blocks) for blocks in (3, 8, 15)]
    for prompt in prompts:
        fleet.compute("a", prompt)

    def accepted(name: str, *, pull: bool) -> float:
        nudge(fleet.client(name))
        counters = fleet.counters(name)
        for prompt in prompts:
            fleet.client(name).complete(prompt, max_tokens=48, ignore_eos=True, pull=pull)
        return counters.grown("vllm:spec_decode_num_accepted_tokens_total")

    counters = fleet.counters("b")
    pulled = accepted("b", pull=True)
    assert counters.hits() == sum(len(prompt) // case.block_tokens - case.held_back for prompt in prompts)
    assert pulled == accepted("b", pull=False) == accepted("a", pull=False)
    assert pulled > 0
    print(f"{pulled:.0f} drafts were right")


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


@pytest.mark.parametrize("case", [name for name in CHOSEN if CASES[name].adapter], indirect=True)
def test_adapter_is_its_content_and_nothing_else(fleet: Fleet, case: Case) -> None:
    """One content under two names is shared; one name with two contents is not, and neither is the model alone."""
    prompt = prompt_of(fleet, case, 6)
    computed = fleet.compute("a", prompt)
    names = {"yours": 6, "other": 0, "m": 0}
    for name, hits in names.items():
        fleet.models["b"] = name
        try:
            counters = fleet.counters("b")
            answer = fleet.client("b").complete(prompt, max_tokens=8)
            assert counters.hits() == hits, name
            fleet.assert_right("b", answer, prompt)
        finally:
            fleet.models["b"] = "yours"
        (assert_same if hits else assert_different)(answer, computed, **({"tolerance": TOLERANCE} if hits else {}))
