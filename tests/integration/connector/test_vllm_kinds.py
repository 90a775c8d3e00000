"""Kinds of models beside plain full attention: each is pulled as it was computed, and reused slots never pass for it.

What makes a kind sound is in docs/DESIGN.md, under 11. Here vLLM's own code makes the groups of its layers.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

from ghostcacher_connector.engines.vllm.scheduling import publishing
from tests.conftest import SOAK
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, RunnerRequest, expected_output, prompts, tokens_of
from tests.integration.connector.simcaches import CACHES
from tests.integration.connector.simfleet import bump_late, drive, drive_until_wrong, meet, settled
from tests.integration.connector.test_vllm_evidence import published_of
from tests.integration.connector.test_vllm_host_tier import BLOCKS, compute, tier_of

pytestmark = pytest.mark.engine

REQUESTS = 10_000 if SOAK else 60
ROUNDS_MAX = 5
"""How often stale blocks come up depends on how fast the machine is."""
NGRAM = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 3}}
OTHERS = [{"cache": cache} for cache in CACHES if cache != "full"]
SEVERAL_RANKS = [
    {"ranks": 2},
    {"cache": "mla", "ranks": 2},
    {"stages": 2},
    {"stages": 3, "ranks": 2},
    {"cache": "mla", "stages": 2},
]
ALL = [*OTHERS, *SEVERAL_RANKS, NGRAM, {"cache": "window", **NGRAM}]


def named(options: dict[str, Any]) -> str:
    words = [
        options.get("cache", "full"),
        *(f"{name}{options[name]}" for name in ("ranks", "stages") if name in options),
    ]
    return "-".join(filter(None, [*words, "ngram" if "speculative_config" in options else ""]))


def rows(engine: SimEngine, rank: int, request: Any, count: int) -> torch.Tensor:
    """Return the bytes of a request's first blocks on one rank, on all layers."""
    slots = engine.connector._scheduler._fleet.publisher.held_blocks.blocks_by_slot()
    slot_of = {block: slot for slot, block in slots.items()}
    where = [slot_of[block] for block in request.block_hashes[:count]]
    return torch.stack([memory[where] for memory in engine.ranks[rank].memory.values()])


@pytest.mark.parametrize("options", ALL, ids=named)
def test_pulled_blocks_have_the_bytes_of_those_that_were_computed(make: Make, options: dict[str, Any]) -> None:
    """On every rank and layer; answers are pulled as well as prompts, and outputs are those of an engine alone."""
    a, b = make("a", blocks=64, **options), make("b", blocks=64, **options)
    meet(a, b)
    prompt = tokens_of(1, 5 * BLOCK_TOKENS + 3)
    first = a.add("first", prompt, max_tokens=3 * BLOCK_TOKENS)
    a.run()
    settled(a)
    turn = prompt + a.outputs("first")
    second = b.add("second", turn)
    b.run()
    settled(b)
    assert (b.wrong, a.outputs("first")) == ([], expected_output(prompt, 3 * BLOCK_TOKENS))
    assert b.outputs("second") == expected_output(turn, 4)
    count, whole = int(b.counted("gc_cache_hits_total")), len(turn) // BLOCK_TOKENS
    # The last block may have been filled by drafts, which nothing proves any more.
    assert whole - ("speculative_config" in options) <= count <= whole
    for rank in range(len(a.ranks)):
        pulled = rows(b, rank, second, count)
        assert pulled.any()
        assert torch.equal(rows(a, rank, first, count), pulled)
        replica = CACHES[options.get("cache", "full")].replicated and "stages" not in options
        assert torch.equal(pulled, rows(a, 0, first, count)) is (rank == 0 or replica)


@pytest.mark.parametrize("options", ALL, ids=named)
def test_slots_reused_all_the_time_never_give_a_wrong_token(
    make: Make, lagging_url: str, options: dict[str, Any]
) -> None:
    """With a pool of a few prompts, an index that lags, and aborts, stale blocks are met and every output is right."""
    in_flight = 1 if {"speculative_config", "stages"} & options.keys() else 2
    engines = [
        make(name, blocks=30, in_flight=in_flight, settings={"redis_url": lagging_url}, **options) for name in "ab"
    ]
    meet(*engines)
    entries = [engine.watch_published() for engine in engines]
    for seed in range(1, ROUNDS_MAX + 1):
        wrong = drive(engines, REQUESTS, prompts(seed, documents=6, blocks=8, tail=20), abort_every=7)
        assert [engine.wrong for engine in engines] == [[], []]
        assert wrong == 0
        hits = sum(engine.counted("gc_cache_hits_total") for engine in engines)
        stale = sum(engine.counted("gc_cache_misses_total", reason="stale_generation") for engine in engines)
        if hits > 0 and stale > 0:
            break
    assert [engine.lies(published) for engine, published in zip(engines, entries, strict=True)] == [[], []]
    assert hits > 0
    assert stale > 0


@pytest.mark.parametrize("options", ALL, ids=named)
def test_with_late_bumps_wrong_tokens_would_be_seen(make: Make, lagging_url: str, options: dict[str, Any]) -> None:
    """The torture proves something: where ranks bump some steps late, stale blocks pass for right ones."""
    in_flight = 1 if {"speculative_config", "stages"} & options.keys() else 2
    engines = [
        make(name, blocks=30, in_flight=in_flight, settings={"redis_url": lagging_url}, **options) for name in "ab"
    ]
    meet(*engines)
    for rank in (rank for engine in engines for rank in engine.ranks):  # a block counts when it is right on all
        bump_late(rank)
    drive_until_wrong(engines, REQUESTS, prompts(1, documents=6, blocks=8, tail=20))


@pytest.mark.parametrize("cache", [options["cache"] for options in OTHERS])
def test_evicted_prompts_come_back_from_the_host_tier(make: Make, cache: str) -> None:
    """Bit by bit: each block's numbers are checked at every step that would read them."""
    engine = make(blocks=16, settings=tier_of(64), cache=cache)
    assert [compute(engine, seed) for seed in range(4)] == [0] * 4
    assert [compute(engine, seed) for seed in range(4)] == [BLOCKS] * 4


# -- speculative decoding ----------------------------------------------------------------------------------------------


def unsound(engine: SimEngine) -> list[str]:
    """Return what counts as proven of requests that run, and is not what it should be."""
    found = []
    for name, tracked in engine.connector._scheduler._tracked.items():
        table = engine.scheduler.kv_cache_manager.get_blocks(name).blocks[0]
        right = RunnerRequest(list(tracked.request.all_token_ids), [])
        for index in range(tracked.evidence.sound):
            end = (index + 1) * BLOCK_TOKENS
            if end > len(right.tokens) or not engine.holds(
                table[index].block_id, BLOCK_TOKENS - 1, right.number(end - 1)
            ):
                found.append(f"{name}: block {index}")
    return found


def long_answers(make: Make) -> tuple[SimEngine, list[str]]:
    """Have an engine give long answers with drafts, many of them wrong; return what counted as proven, and was not."""
    engine, wrong = make(blocks=60, **NGRAM), []
    for number in range(6):
        engine.add(f"r{number}", tokens_of(number, 20 + 3 * number), max_tokens=60)
    while engine.scheduler.has_requests():
        engine.step()
        wrong += unsound(engine)
    return engine, wrong


def test_rejected_drafts_prove_nothing(make: Make) -> None:
    """At no moment does a block with a token that was only drafted count, and answers are published all the same."""
    engine, wrong = long_answers(make)
    assert wrong == []
    for number in range(6):
        prompt = tokens_of(number, 20 + 3 * number)
        assert engine.outputs(f"r{number}") == expected_output(prompt, 60)
        whole = (len(prompt) + 59) // BLOCK_TOKENS
        assert published_of(engine, engine.requests[f"r{number}"]) in (list(range(whole)), list(range(whole - 1)))


def test_drafts_that_counted_as_computed_would_be_seen(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above proves something: with drafts taken for tokens, blocks with wrong ones count as proven."""
    monkeypatch.setattr(publishing, "_known_tokens", lambda output: output.num_scheduled_tokens)
    _, wrong = long_answers(make)
    assert wrong
